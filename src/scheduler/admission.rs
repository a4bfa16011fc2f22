//! Admission: from the waiting queue into the running list.

use super::Scheduler;
use super::batch::Batch;
use super::in_flight::InFlightStep;
use super::sequence::State;
use super::sequences::Slot;
use crate::kv_cache::CacheKey;

/// What admitting a sequence takes.
struct Admission {
    /// Leading blocks found in the cache, by group in `Scheduler::hits`.
    num_hits: usize,
    /// Rows of its first step.
    num_rows: usize,
}

impl Scheduler {
    /// Admits sequences from the head of the queue while budget, `max_num_seqs` and blocks last.
    /// Nobody overtakes a sequence that does not fit; held ones are passed over.
    pub(super) fn admit_waiting(
        &mut self,
        mut budget: usize,
        step: &mut InFlightStep,
        batch: &mut Batch,
    ) {
        if self.waiting.is_empty() {
            return;
        }
        let max_num_seqs = self.config.max_num_seqs;
        // Held sequences do not take part in steps; others may use their seats.
        let held = self.running.iter().filter(|&&slot| self.sequences[slot].held).count();
        let mut after = None;
        while budget > 0
            && step.parts.len() < max_num_seqs
            && self.running.len() - held < max_num_seqs
        {
            let Some((key, slot)) = self.waiting.next(after) else { break };
            let seq = &self.sequences[slot];
            if seq.held {
                after = Some(key);
                continue;
            }
            // A preempted sequence resumes with all its tokens: those in flight come first.
            if seq.num_in_flight > 0 {
                break;
            }
            let Some(admission) = self.plan_admission(slot, budget) else { break };
            self.waiting.remove(key);
            self.admit(slot, &admission, batch);
            self.advance(slot, admission.num_rows, step, batch);
            budget -= admission.num_rows;
        }
    }

    /// Whether the sequence can be admitted now, and how. Its whole length must fit in the free
    /// blocks, even if only its first chunk is scheduled.
    fn plan_admission(&mut self, slot: Slot, budget: usize) -> Option<Admission> {
        let num_hits = self.find_hits(slot);
        let (block_size, num_groups) = (self.config.block_size, self.config.num_groups);
        let num_tokens = self.sequences[slot].tokens().len();
        let wanted = self.limit_rows(num_tokens - num_hits * block_size);
        if wanted > budget && !self.config.enable_chunked_prefill {
            return None;
        }
        // Hits that nobody holds are free blocks which are free no longer.
        let taken = |block: &&_| self.pool.is_available(**block);
        let revived = self.hits.iter().flat_map(|hits| &hits[..num_hits]).filter(taken).count();
        let new = (num_tokens.div_ceil(block_size) - num_hits) * num_groups;
        let reserve = match self.running.is_empty() {
            true => 0,
            false => (self.config.watermark * self.pool.num_usable() as f32) as usize,
        };
        let fits = new + revived + reserve <= self.pool.num_available();
        fits.then_some(Admission { num_hits, num_rows: wanted.min(budget) })
    }

    /// Fills `hits` with the longest run of cached blocks from the start that all groups have, and
    /// returns its length. At least one token is left to compute: its logits are needed.
    fn find_hits(&mut self, slot: Slot) -> usize {
        self.hits.iter_mut().for_each(Vec::clear);
        let seq = &mut self.sequences[slot];
        if seq.skip_cache_read || !self.config.enable_prefix_caching {
            return 0;
        }
        let most = (seq.tokens().len() - 1) / self.config.block_size;
        for (i, &hash) in seq.block_hashes(most, self.config.block_size).iter().enumerate() {
            for (group, hits) in (0..).zip(&mut self.hits) {
                let Some(block) = self.pool.lookup(&CacheKey { hash, group }) else { return i };
                hits.push(block);
            }
        }
        most
    }

    fn admit(&mut self, slot: Slot, admission: &Admission, batch: &mut Batch) {
        let num_cached = admission.num_hits * self.config.block_size;
        let seq = &mut self.sequences[slot];
        for (table, hits) in seq.block_tables.iter_mut().zip(&self.hits) {
            let hits = &hits[..admission.num_hits];
            hits.iter().for_each(|&block| self.pool.touch(block));
            table.extend_from_slice(hits);
        }
        seq.num_hit_blocks = admission.num_hits;
        seq.num_hashed_blocks = admission.num_hits;
        seq.num_computed = num_cached;
        seq.state = State::Running;
        if !std::mem::replace(&mut seq.admitted_before, true) {
            seq.num_cached_tokens = num_cached;
            if self.config.enable_prefix_caching && !seq.skip_cache_read {
                self.counters.prefix_cache_queries += seq.tokens().len() as u64;
                self.counters.prefix_cache_hits += num_cached as u64;
            }
        }
        batch.admitted.push((seq.id(), num_cached));
        self.running.push(slot);
        self.grow(slot, admission.num_rows);
    }
}
