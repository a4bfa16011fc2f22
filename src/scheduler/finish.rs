//! The end of a sequence.

use std::collections::HashSet;

use super::Scheduler;
use super::sequence::State;
use super::sequences::Slot;
use crate::ids::{BlockId, SeqId};

impl Scheduler {
    /// Ends a sequence (abort, deadline, stop string, error). Its blocks are free at once, or when
    /// its steps in flight are back. `poisoned`: what it computed is not to be trusted (NaN), and
    /// leaves the cache with all that was computed from it. Says whether `id` was known; tokens
    /// that come for it later are dropped.
    pub fn finish(&mut self, id: SeqId, poisoned: bool) -> bool {
        let Some(slot) = self.sequences.find(id) else { return false };
        if poisoned {
            self.poison(slot);
        }
        self.running.retain(|&running| running != slot);
        self.retire(slot);
        true
    }

    /// The sequence is finished; the caller takes it out of the running list.
    pub(super) fn retire(&mut self, slot: Slot) {
        let seq = &mut self.sequences[slot];
        if let State::Waiting(key) = std::mem::replace(&mut seq.state, State::Finished) {
            self.waiting.remove(key);
        }
        let id = seq.id();
        self.sequences.forget_id(id);
        self.remove_if_landed(slot);
    }

    /// Frees a finished sequence's blocks and slot if none of its steps is in flight.
    pub(super) fn remove_if_landed(&mut self, slot: Slot) {
        if self.sequences[slot].num_in_flight == 0 {
            self.release_blocks(slot);
            self.sequences.remove(slot);
        }
    }

    /// Takes what the sequence computed out of the cache, by content: a preempted sequence's
    /// blocks are no longer in its table.
    fn poison(&mut self, slot: Slot) {
        let block_size = self.config.block_size;
        let seq = &mut self.sequences[slot];
        let full = seq.tokens().len() / block_size;
        let mut bad: HashSet<BlockId> = seq.block_tables.iter().flatten().copied().collect();
        if self.config.enable_prefix_caching {
            let contents = seq.block_hashes(full, block_size);
            bad.extend(self.pool.uncache_with_descendants(contents));
        }
        // Who shares such a block may go on, but what it computes stays its own.
        for &running in &self.running {
            let seq = &mut self.sequences[running];
            if seq.block_tables.iter().flatten().any(|block| bad.contains(block)) {
                seq.cacheable = false;
            }
        }
    }
}
