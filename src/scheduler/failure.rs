//! Going back: a step failed, or sampled another number of tokens than was counted on.

use std::collections::HashSet;

use super::Scheduler;
use super::batch::StepId;
use super::in_flight::InFlightStep;
use super::sequence::State;
use super::sequences::Slot;
use crate::ids::BlockId;
use crate::kv_cache::CacheKey;

impl Scheduler {
    /// Nothing of `step`, the oldest in flight, was computed. It takes the later steps in flight
    /// with it, whose results no longer count: they too are to be taken back, by `postprocess` or
    /// `fail_step`. Their sequences will be scheduled again from where `step` found them.
    ///
    /// # Panics
    /// If `step` is not the oldest step in flight.
    pub fn fail_step(&mut self, step: StepId) {
        let mut failed = self.take_oldest(step);
        if !failed.void {
            let mut later = std::mem::take(&mut self.in_flight);
            let mut bad = HashSet::new();
            self.undo(&mut failed, &mut bad);
            later.iter_mut().for_each(|step| self.undo(step, &mut bad));
            self.in_flight = later;
            self.preempt_readers(&bad);
        }
        for part in &failed.parts {
            self.land(part);
        }
        self.recycle(failed);
    }

    /// Takes the blocks that `step` was to complete out of the cache, adds them to `bad`, and
    /// sends its sequences back. Steps are undone oldest first: a sequence's first part counts,
    /// and makes the later ones void.
    fn undo(&mut self, step: &mut InFlightStep, bad: &mut HashSet<BlockId>) {
        step.void = true;
        for (block, key) in step.hashed.drain(..) {
            self.pool.uncache(block, &key);
            bad.insert(block);
        }
        for part in &step.parts {
            let seq = &self.sequences[part.slot];
            if seq.epoch == part.epoch && seq.state != State::Finished {
                self.rewind(part.slot, part.start);
            }
        }
    }

    /// Preempts whoever was admitted on `bad` blocks. Such a sequence must not read them, and it
    /// cannot compute them itself: their other holder will. Newest first, so that the queue has
    /// them in their old order.
    fn preempt_readers(&mut self, bad: &HashSet<BlockId>) {
        for at in (0..self.running.len()).rev() {
            let seq = &self.sequences[self.running[at]];
            let mut hits = seq.block_tables.iter().flat_map(|t| &t[..seq.num_hit_blocks]);
            if hits.any(|block| bad.contains(block)) {
                self.preempt(at);
            }
        }
    }

    /// Sends a sequence back to `num_computed` positions and makes its parts of steps in flight
    /// void. It keeps its blocks and computes into them again; those that it will write leave the
    /// cache.
    pub(super) fn rewind(&mut self, slot: Slot, num_computed: usize) {
        let block_size = self.config.block_size;
        let seq = &mut self.sequences[slot];
        seq.epoch = seq.epoch.wrapping_add(1);
        seq.num_placeholders = 0;
        if seq.state != State::Running {
            return;
        }
        seq.num_computed = num_computed;
        let old = seq.num_hashed_blocks;
        let kept = old.min(num_computed / block_size);
        seq.num_hashed_blocks = kept;
        let hashes = seq.block_hashes(old, block_size)[kept..].to_vec();
        for (group, table) in (0..).zip(&seq.block_tables) {
            for (&block, &hash) in table[kept..old].iter().zip(&hashes) {
                self.pool.uncache(block, &CacheKey { hash, group });
            }
        }
    }
}
