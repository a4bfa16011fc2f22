//! Checks of the invariants, for tests and debugging: linear in everything.

use super::Scheduler;
use super::sequence::{Sequence, State};
use super::sequences::Slot;

impl Scheduler {
    /// Checks that lists, counts, blocks and the prefix cache agree; says what does not.
    pub fn check_integrity(&self) -> std::result::Result<(), String> {
        let mut ref_counts = vec![0; self.config.num_blocks];
        ref_counts[0] = 1;
        let (mut running, mut waiting) = (0, 0);
        for (slot, seq) in self.sequences.iter() {
            self.check_sequence(slot, seq).map_err(|e| format!("sequence {}: {e}", seq.id()))?;
            for block in seq.block_tables.iter().flatten() {
                ref_counts[block.index()] += 1;
            }
            running += usize::from(seq.state == State::Running);
            waiting += usize::from(matches!(seq.state, State::Waiting(_)));
        }
        if running != self.running.len() || waiting != self.waiting.len() {
            let lists = (self.running.len(), self.waiting.len());
            return Err(format!("({running}, {waiting}) run and wait, the lists have {lists:?}"));
        }
        for (key, slot) in self.waiting.iter() {
            if self.sequences.get(slot).is_none_or(|seq| seq.state != State::Waiting(key)) {
                return Err(format!("the waiting queue has slot {} by a wrong key", slot.0));
            }
        }
        for &slot in &self.running {
            if self.sequences.get(slot).is_none_or(|seq| seq.state != State::Running) {
                return Err(format!("the running list has slot {}, which does not run", slot.0));
            }
        }
        self.pool.check_integrity(&ref_counts)
    }

    fn check_sequence(&self, slot: Slot, seq: &Sequence) -> std::result::Result<(), String> {
        let steps = self.in_flight.iter();
        let parts: Vec<_> = steps.flat_map(|s| &s.parts).filter(|p| p.slot == slot).collect();
        if parts.len() != seq.num_in_flight {
            return Err(format!("{} steps in flight, not {}", parts.len(), seq.num_in_flight));
        }
        if (self.sequences.find(seq.id()) == Some(slot)) != (seq.state != State::Finished) {
            return Err("found by id although finished, or the reverse".to_owned());
        }
        if seq.state == State::Finished {
            return Ok(());
        }
        let valid = parts.iter().filter(|part| part.epoch == seq.epoch && part.samples).count();
        if valid != seq.num_placeholders {
            return Err(format!("{valid} placeholders, not {}", seq.num_placeholders));
        }
        let num_blocks = seq.block_tables[0].len();
        if seq.block_tables.iter().any(|table| table.len() != num_blocks) {
            return Err("block tables differ in length".to_owned());
        }
        let waits = seq.state != State::Running;
        if waits && (num_blocks > 0 || seq.num_computed > 0) {
            return Err("waits with blocks or computed positions".to_owned());
        }
        if seq.num_computed > num_blocks * self.config.block_size {
            return Err(format!("{} positions in {num_blocks} blocks", seq.num_computed));
        }
        if seq.num_computed > seq.num_tokens_with_placeholders() {
            return Err(format!("{} positions computed, more than tokens", seq.num_computed));
        }
        let full = seq.num_computed / self.config.block_size;
        if seq.num_hit_blocks > seq.num_hashed_blocks || seq.num_hashed_blocks > full {
            return Err("more blocks are hashed than computed".to_owned());
        }
        Ok(())
    }
}
