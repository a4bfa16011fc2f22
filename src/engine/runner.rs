//! Model runner: flattens a `Batch`, walks the model, and hands out rows of logits.

use crate::backend::{Backend, BackendCounters, DrawRule, SeqInput, StepInput};
use crate::error::Result;
use crate::ids::{BlockId, TokenId};
use crate::model::Model;
use crate::scheduler::{Batch, Scheduler};

/// Rows of logits computed at a time. Bounds the memory of logits, whatever the batch.
pub(crate) const MAX_LOGITS_ROWS: usize = 64;

/// How every row's token may be drawn by the backend, and who takes the tokens.
#[derive(Clone, Copy)]
pub(crate) struct Draw<'a> {
    pub(crate) rules: &'a [DrawRule],
    /// Called with a row's index and its token.
    pub(crate) take: &'a dyn Fn(usize, TokenId),
}

/// Owns the model and the backend it runs on.
pub(crate) struct Runner {
    backend: Box<dyn Backend>,
    model: Box<dyn Model>,
    block_size: usize,
    token_ids: Vec<TokenId>,
    positions: Vec<u32>,
    seqs: Vec<SeqInput>,
    slot_mapping: Vec<Vec<u64>>,
}

impl Runner {
    pub(crate) fn new(
        backend: Box<dyn Backend>,
        model: Box<dyn Model>,
        block_size: usize,
        num_groups: usize,
    ) -> Self {
        Self {
            backend,
            model,
            block_size,
            token_ids: Vec::new(),
            positions: Vec::new(),
            seqs: Vec::new(),
            slot_mapping: vec![Vec::new(); num_groups],
        }
    }

    /// Describes the forward pass of `batch` to the backend. It runs at the next synchronisation.
    pub(crate) fn forward(&mut self, batch: &Batch, scheduler: &Scheduler) {
        self.flatten(batch, scheduler);
        let input = StepInput {
            token_ids: &self.token_ids,
            positions: &self.positions,
            seqs: &self.seqs,
            block_tables: &batch.block_tables,
            slot_mapping: &self.slot_mapping,
            block_copies: &batch.block_copies,
        };
        self.backend.begin_step(&input);
        self.model.forward(&mut *self.backend);
    }

    /// Runs the forward pass and then `f(i, logits)` for each `rows[i]`, concurrently. Where every
    /// row may be drawn by the backend, `draw` has the rules and takes the tokens: `f` then runs
    /// only if the backend cannot.
    pub(crate) fn logits(
        &mut self,
        rows: &[u32],
        draw: Option<Draw<'_>>,
        f: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<()> {
        if rows.is_empty() {
            return self.backend.finish_step();
        }
        for (slice, rows) in rows.chunks(MAX_LOGITS_ROWS).enumerate() {
            self.backend.logits(self.model.head(), self.model.hidden(), rows);
            let first = slice * MAX_LOGITS_ROWS;
            if let Some(Draw { rules, take }) = draw
                && let Some(tokens) = self.backend.draw(&rules[first..first + rows.len()])?
                && tokens.iter().all(Option::is_some)
            {
                tokens.into_iter().flatten().zip(first..).for_each(|(token, i)| take(i, token));
                continue;
            }
            self.backend.map_logits(&|i, logits| f(first + i, logits))?;
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> BackendCounters {
        self.backend.counters()
    }

    /// Fills free blocks with NaN: a read of them would show.
    pub(crate) fn poison(&mut self, blocks: &[BlockId]) {
        self.backend.fill_blocks(blocks, f32::NAN);
    }

    fn flatten(&mut self, batch: &Batch, scheduler: &Scheduler) {
        self.token_ids.clear();
        self.positions.clear();
        self.seqs.clear();
        self.slot_mapping.iter_mut().for_each(Vec::clear);
        for scheduled in &batch.seqs {
            let start = scheduled.num_computed_tokens;
            let end = start + scheduled.num_scheduled_tokens;
            let Some(sequence) = scheduler.sequence(scheduled.id) else { continue };
            self.seqs.push(SeqInput {
                query_start: self.token_ids.len(),
                query_len: scheduled.num_scheduled_tokens,
                context_len: start,
                block_table_start: scheduled.block_table_start,
                num_blocks: scheduled.num_blocks,
            });
            self.token_ids.extend_from_slice(&sequence.tokens()[start..end]);
            self.positions.extend(start as u32..end as u32);
            for (slots, table) in self.slot_mapping.iter_mut().zip(&batch.block_tables) {
                let table = &table[scheduled.block_table_start..];
                slots.extend((start..end).map(|position| {
                    let block = u64::from(table[position / self.block_size].0);
                    block * self.block_size as u64 + (position % self.block_size) as u64
                }));
            }
        }
    }
}
