//! Model runner: flattens a `Batch`, walks the model, and hands out rows of logits.

use crate::backend::{Backend, BackendCounters, DrawRule, Drawn, SeqInput, StepInput};
use crate::error::Result;
use crate::ids::{BlockId, SeqId, TokenId};
use crate::model::Model;
use crate::scheduler::{Batch, Scheduler};

/// Rows of logits computed at a time. Bounds the memory of logits, whatever the batch.
pub(crate) const MAX_LOGITS_ROWS: usize = 64;

/// Owns the model and the backend it runs on.
pub(crate) struct Runner {
    backend: Box<dyn Backend>,
    model: Box<dyn Model>,
    block_size: usize,
    token_ids: Vec<TokenId>,
    positions: Vec<u32>,
    seqs: Vec<SeqInput>,
    slot_mapping: Vec<Vec<u64>>,
    /// Rows whose token the host does not know yet, and where it was drawn.
    fed: Vec<(u32, u32)>,
    /// The sequences that the step submitted last drew for, and the rows.
    drawn: Vec<(SeqId, u32)>,
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
            fed: Vec::new(),
            drawn: Vec::new(),
        }
    }

    /// Describes the forward pass of `batch`, which was just prepared, to the backend. It runs at
    /// the next synchronisation. Logits will be asked for of `rows` at most, which ascend.
    pub(crate) fn forward(&mut self, batch: &Batch, rows: &[u32]) {
        let input = StepInput {
            token_ids: &self.token_ids,
            positions: &self.positions,
            seqs: &self.seqs,
            block_tables: &batch.block_tables,
            slot_mapping: &self.slot_mapping,
            block_copies: &batch.block_copies,
            wanted: Some(rows),
        };
        self.backend.begin_step(&input);
        if !self.fed.is_empty() {
            self.backend.feed(&self.fed);
        }
        self.model.forward(&mut *self.backend);
    }

    /// Runs the forward pass and then `f(i, logits)` for each `rows[i]`, concurrently.
    pub(crate) fn logits(
        &mut self,
        rows: &[u32],
        f: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<()> {
        if rows.is_empty() {
            return self.backend.finish_step();
        }
        for (slice, rows) in rows.chunks(MAX_LOGITS_ROWS).enumerate() {
            self.backend.logits(self.model.head(), self.model.hidden(), rows);
            let first = slice * MAX_LOGITS_ROWS;
            self.backend.map_logits(&|i, logits| f(first + i, logits))?;
        }
        Ok(())
    }

    /// Whether the backend draws tokens.
    pub(crate) fn draws(&self) -> bool {
        self.backend.draws()
    }

    /// Starts the forward pass and has tokens drawn from `rows`; those of sequences may be inputs
    /// of the next step. False where the backend cannot: the step is then to be run by `logits`.
    pub(crate) fn submit(
        &mut self,
        rows: &[u32],
        rules: &[DrawRule],
        sequences: impl Iterator<Item = (SeqId, u32)>,
    ) -> Result<bool> {
        let (head, hidden) = (self.model.head(), self.model.hidden());
        if !self.backend.submit(head, hidden, rows, rules)? {
            return Ok(false);
        }
        self.drawn.clear();
        self.drawn.extend(sequences);
        Ok(true)
    }

    /// Waits for the oldest step that was submitted.
    pub(crate) fn collect(&mut self) -> Result<Vec<Drawn>> {
        self.backend.collect()
    }

    pub(crate) fn counters(&self) -> BackendCounters {
        self.backend.counters()
    }

    /// Fills free blocks with NaN: a read of them would show.
    pub(crate) fn poison(&mut self, blocks: &[BlockId]) {
        self.backend.fill_blocks(blocks, f32::NAN);
    }

    /// Flattens a batch that was just scheduled: its sequences are all there. A token that the step
    /// before has yet to give is fed on the device.
    pub(crate) fn prepare(&mut self, batch: &Batch, scheduler: &Scheduler) {
        let mut next = 0;
        self.fed.clear();
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
            let tokens = sequence.tokens();
            self.token_ids.extend_from_slice(&tokens[start..end.min(tokens.len())]);
            if end > tokens.len() {
                let place = self.place_drawn(scheduled.id, &mut next);
                self.fed.push((self.token_ids.len() as u32, place));
                self.token_ids.push(TokenId(0));
            }
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
    /// Where the last step drew the token of a sequence: as a rule at `next`, which moves on.
    fn place_drawn(&self, id: SeqId, next: &mut usize) -> u32 {
        let is_it = |&at: &usize| self.drawn.get(at).is_some_and(|(seq, _)| *seq == id);
        let found = Some(*next).filter(is_it).or_else(|| (0..self.drawn.len()).find(is_it));
        let at = found.expect("what is not known yet was drawn by the step before");
        *next = at + 1;
        self.drawn[at].1
    }
}
