//! The running sequences' share of a step, and preemption.

use super::Scheduler;
use super::batch::Batch;
use super::in_flight::InFlightStep;
use super::queue::Arrival;
use super::sequence::State;
use super::sequences::Slot;
use crate::config::SchedulingPolicy;

impl Scheduler {
    /// Chooses the running sequences' rows, in order, and takes blocks for them; whoever must make
    /// room is preempted. Says whether any was.
    pub(super) fn choose_running(&mut self, budget: &mut usize) -> bool {
        self.chosen.clear();
        let before = self.preempted.len();
        let mut at = 0;
        while at < self.running.len() && *budget > 0 && self.chosen.len() < self.config.max_num_seqs
        {
            let slot = self.running[at];
            let seq = &self.sequences[slot];
            let wanted = if seq.held { 0 } else { seq.num_rows_wanted(self.config.max_model_len) };
            let num_rows = self.limit_rows(wanted).min(*budget);
            if num_rows == 0 {
                at += 1;
            } else if self.make_room(slot, num_rows, &mut at, budget) {
                self.grow(slot, num_rows);
                self.chosen.push((slot, num_rows));
                *budget -= num_rows;
                at += 1;
            }
        }
        self.preempted.len() > before
    }

    /// Adds the chosen rows to the step. Only now do their blocks enter the cache: while choosing,
    /// a sequence that was chosen may still be preempted.
    pub(super) fn commit_running(&mut self, step: &mut InFlightStep, batch: &mut Batch) {
        for i in 0..self.chosen.len() {
            let (slot, num_rows) = self.chosen[i];
            self.advance(slot, num_rows, step, batch);
        }
    }

    /// Cuts `wanted` to the longest part of a prompt, unless the sequence is alone.
    pub(super) fn limit_rows(&self, wanted: usize) -> usize {
        let threshold = self.config.long_prefill_token_threshold;
        let alone = self.running.len() + self.waiting.len() == 1;
        if threshold == 0 || alone || !self.config.enable_chunked_prefill {
            return wanted;
        }
        wanted.min(threshold)
    }

    /// Takes the blocks that `num_rows` more positions need. The pool has them.
    pub(super) fn grow(&mut self, slot: Slot, num_rows: usize) {
        let seq = &mut self.sequences[slot];
        let num_blocks = (seq.num_computed + num_rows).div_ceil(self.config.block_size);
        for table in &mut seq.block_tables {
            while table.len() < num_blocks {
                table.push(self.pool.allocate().expect("the caller counted the free blocks"));
            }
        }
    }

    /// Preempts until the pool has the blocks that `num_rows` more positions need. False if `slot`
    /// itself, which stands at `at`, was preempted.
    fn make_room(
        &mut self,
        slot: Slot,
        num_rows: usize,
        at: &mut usize,
        budget: &mut usize,
    ) -> bool {
        let seq = &self.sequences[slot];
        let num_blocks = (seq.num_computed + num_rows).div_ceil(self.config.block_size);
        let missing = num_blocks.saturating_sub(seq.block_tables[0].len());
        while missing * self.config.num_groups > self.pool.num_available() {
            let victim_at = self.victim();
            let victim = self.running[victim_at];
            // Under the priority policy the victim may already have its share of this step.
            if let Some(i) = self.chosen.iter().position(|&(chosen, _)| chosen == victim) {
                *budget += self.chosen.remove(i).1;
            }
            self.preempt(victim_at);
            if victim == slot {
                return false;
            }
            *at -= usize::from(victim_at < *at);
        }
        true
    }

    /// Who is preempted next: the newest, or under the priority policy the one with the highest
    /// (priority, arrival).
    fn victim(&self) -> usize {
        let last = self.running.len() - 1;
        match self.config.policy {
            SchedulingPolicy::Fcfs => last,
            SchedulingPolicy::Priority => {
                let key = |&at: &usize| {
                    let seq = &self.sequences[self.running[at]];
                    (seq.priority, seq.arrival, seq.id())
                };
                (0..=last).max_by_key(key).unwrap_or(last)
            }
        }
    }

    /// Takes all blocks of the sequence at `at` of the running list and puts it back in the queue.
    /// It keeps its tokens; those of steps in flight are appended when they come.
    pub(super) fn preempt(&mut self, at: usize) {
        let slot = self.running.remove(at);
        self.release_blocks(slot);
        let seq = &mut self.sequences[slot];
        let (id, priority, arrival) = (seq.id(), seq.priority, seq.arrival);
        let key = self.waiting.key_of_preempted(Arrival { id, priority, arrival });
        seq.state = State::Waiting(key);
        seq.num_preemptions += 1;
        self.waiting.insert(key, slot);
        self.counters.preemptions += 1;
        self.preempted.push(id);
    }

    /// Preempts the newest held sequence for the sake of one that waits and is not held. False if
    /// there are no such two.
    pub(super) fn preempt_newest_held(&mut self) -> bool {
        let held = |slot: &Slot| self.sequences[*slot].held;
        if self.waiting.iter().all(|(_, slot)| held(&slot)) {
            return false;
        }
        let Some(at) = self.running.iter().rposition(held) else { return false };
        self.preempt(at);
        true
    }

    /// Gives all blocks of a sequence back to the pool.
    pub(super) fn release_blocks(&mut self, slot: Slot) {
        let seq = &mut self.sequences[slot];
        for table in &seq.block_tables {
            self.pool.release(table);
        }
        seq.forget_blocks();
    }
}
