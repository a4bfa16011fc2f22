//! What a step works on, in the backend's own memory.

use super::kept::Kept;
use crate::backend::{SeqInput, StepInput};
use crate::error::Result;
use crate::ids::{BlockCopy, BlockId, TokenId};

/// The step's input, copied, in memory that was reserved.
#[derive(Default)]
pub(crate) struct Input {
    pub(crate) token_ids: Vec<TokenId>,
    pub(crate) positions: Vec<u32>,
    pub(crate) seqs: Vec<SeqInput>,
    pub(crate) block_tables: Vec<Vec<BlockId>>,
    pub(crate) slot_mapping: Vec<Vec<u64>>,
    pub(crate) block_copies: Vec<BlockCopy>,
    pub(crate) kept: Kept,
}

impl Input {
    /// Makes room, so that `take` does not allocate.
    pub(crate) fn reserve(
        &mut self,
        tokens: usize,
        seqs: usize,
        table: usize,
        groups: usize,
    ) -> Result<()> {
        self.token_ids.try_reserve(tokens)?;
        self.positions.try_reserve(tokens)?;
        self.seqs.try_reserve(seqs)?;
        self.kept.reserve(tokens, seqs)?;
        for _ in 0..groups {
            let (mut blocks, mut slots) = (Vec::new(), Vec::new());
            blocks.try_reserve(table)?;
            slots.try_reserve(tokens)?;
            self.block_tables.push(blocks);
            self.slot_mapping.push(slots);
        }
        Ok(())
    }

    /// Copies a step's input.
    pub(crate) fn take(&mut self, input: &StepInput<'_>) {
        let tokens = input.token_ids.len();
        assert_eq!(input.positions.len(), tokens, "positions");
        assert_eq!(input.block_tables.len(), self.block_tables.len(), "groups");
        assert_eq!(input.slot_mapping.len(), self.slot_mapping.len(), "groups");
        copy(&mut self.token_ids, input.token_ids);
        copy(&mut self.positions, input.positions);
        copy(&mut self.seqs, input.seqs);
        copy(&mut self.block_copies, input.block_copies);
        self.kept.take(input.wanted, tokens);
        for (to, from) in self.block_tables.iter_mut().zip(input.block_tables) {
            copy(to, from);
        }
        for (to, from) in self.slot_mapping.iter_mut().zip(input.slot_mapping) {
            assert_eq!(from.len(), tokens, "slot_mapping");
            copy(to, from);
        }
    }
}

fn copy<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}
