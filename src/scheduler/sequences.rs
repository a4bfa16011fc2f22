//! `Sequences`: a slab of sequences, found by slot or by id.

use std::ops::{Index, IndexMut};

use super::sequence::Sequence;
use crate::ids::SeqId;
use crate::kv_cache::FastMap;

/// A place in the slab. Lists hold slots, so that a step needs no map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u32);

/// The sequences: unfinished ones by id, and finished ones until their steps are back.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    slots: Vec<Option<Sequence>>,
    vacant: Vec<Slot>,
    by_id: FastMap<SeqId, Slot>,
}

impl Sequences {
    pub(super) fn insert(&mut self, sequence: Sequence) -> Slot {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot((self.slots.len() - 1) as u32)
        });
        self.by_id.insert(sequence.id(), slot);
        self.slots[slot.0 as usize] = Some(sequence);
        slot
    }

    /// The slot of an unfinished sequence.
    pub(super) fn find(&self, id: SeqId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    /// Whether no sequence is unfinished.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// `id` names nothing any more; the slot stays.
    pub(super) fn forget_id(&mut self, id: SeqId) {
        self.by_id.remove(&id);
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        if self.slots[slot.0 as usize].take().is_some() {
            self.vacant.push(slot);
        }
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Sequence> {
        self.slots[slot.0 as usize].as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Sequence)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(i, sequence)| Some((Slot(i as u32), sequence.as_ref()?)))
    }
}

impl Index<Slot> for Sequences {
    type Output = Sequence;

    fn index(&self, slot: Slot) -> &Sequence {
        // Slots are given back only when no list and no step in flight holds them.
        self.slots[slot.0 as usize].as_ref().expect("a slot in a list is occupied")
    }
}

impl IndexMut<Slot> for Sequences {
    fn index_mut(&mut self, slot: Slot) -> &mut Sequence {
        // As above.
        self.slots[slot.0 as usize].as_mut().expect("a slot in a list is occupied")
    }
}
