//! Handles: a slot and a generation in a table that is never freed, cast to a pointer type.
//!
//! ```text
//!   63     56 55            24 23         0
//!  ┌─────────┬────────────────┬────────────┐
//!  │  kind   │   generation   │    slot    │
//!  └─────────┴────────────────┴────────────┘
//! ```
//!
//! The top byte makes the value a non-canonical address: dereferencing it faults at once, and a
//! collector that scans for pointers (Go's) never takes it for one of its own. A slot is used
//! again under its next generation, and retired at the last one, so that a stale handle never
//! names a new object.

use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, ErrorKind, Result};

const _: () = assert!(size_of::<usize>() == 8, "handles need 64-bit pointers");

const SLOT_BITS: u32 = 24;
const MAX_SLOTS: usize = 1 << SLOT_BITS;
const KIND_SHIFT: u32 = 56;
/// Generations `1..=LAST_GENERATION` are used; 0 is for values outside the table.
const LAST_GENERATION: u32 = u32::MAX;

/// What a handle names; its top byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Engine = 0x51,
    Queue = 0x52,
    Tokenizer = 0x53,
    Error = 0x54,
    Bytes = 0x55,
    ChatParser = 0x56,
}

impl Kind {
    fn type_name(self) -> &'static str {
        match self {
            Self::Engine => "VrustEngine",
            Self::Queue => "VrustQueue",
            Self::Tokenizer => "VrustTokenizer",
            Self::Error => "VrustError",
            Self::Bytes => "VrustBytes",
            Self::ChatParser => "VrustChatParser",
        }
    }
}

/// What a handle's value says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) slot: usize,
    pub(super) generation: u32,
}

/// What a lookup found.
pub(super) enum Lookup<T> {
    /// The object.
    Live(Arc<T>),
    /// It was destroyed.
    Destroyed,
    /// NULL, another kind of handle, or no handle at all.
    Foreign,
}

/// Every object of one kind.
pub(super) struct Table<T> {
    kind: Kind,
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    entries: Vec<Slot<T>>,
    /// Slots without an object. Its capacity is that of `entries`, so that freeing never fails.
    free: Vec<usize>,
}

struct Slot<T> {
    /// The generation of the object, or of the last one.
    generation: u32,
    object: Option<Arc<T>>,
}

impl<T> Table<T> {
    pub(super) const fn new(kind: Kind) -> Self {
        let slots = Slots { entries: Vec::new(), free: Vec::new() };
        Self { kind, slots: RwLock::new(slots) }
    }

    /// Adds an object and returns its handle, as a pointer of the host's type.
    pub(super) fn insert<Opaque>(&self, object: Arc<T>) -> Result<*mut Opaque> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None => slots.grow()?,
        };
        let entry = &mut slots.entries[slot];
        entry.generation += 1;
        entry.object = Some(object);
        Ok(encode(self.kind, Parts { slot, generation: entry.generation }) as *mut Opaque)
    }

    /// Finds a handle's object.
    pub(super) fn look_up<Opaque>(&self, handle: *const Opaque) -> Lookup<T> {
        let Some(parts) = decode(self.kind, handle as usize) else { return Lookup::Foreign };
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        match slots.entries.get(parts.slot) {
            Some(Slot { generation, object: Some(object) }) if *generation == parts.generation => {
                Lookup::Live(object.clone())
            }
            Some(slot) if (1..=slot.generation).contains(&parts.generation) => Lookup::Destroyed,
            _ => Lookup::Foreign,
        }
    }

    /// Finds a handle's object, or says what is wrong with the argument `name`.
    pub(super) fn get<Opaque>(&self, handle: *const Opaque, name: &str) -> Result<Arc<T>> {
        let kind = self.kind.type_name();
        match self.look_up(handle) {
            Lookup::Live(object) => Ok(object),
            Lookup::Destroyed => {
                Err(Error::invalid(name, format!("{name}: this {kind} was destroyed")))
            }
            Lookup::Foreign if handle.is_null() => {
                Err(Error::invalid(name, format!("{name}: must not be NULL")))
            }
            Lookup::Foreign => Err(Error::invalid(name, format!("{name}: not a {kind}"))),
        }
    }

    /// Takes a handle's object out: from now on the handle is stale.
    pub(super) fn remove<Opaque>(&self, handle: *const Opaque) -> Option<Arc<T>> {
        let parts = decode(self.kind, handle as usize)?;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let entry = slots.entries.get_mut(parts.slot)?;
        if entry.generation != parts.generation {
            return None;
        }
        let object = entry.object.take()?;
        if parts.generation < LAST_GENERATION {
            slots.free.push(parts.slot);
        }
        Some(object)
    }
}

impl<T> Slots<T> {
    /// Makes a slot, and room in `free` for it.
    fn grow(&mut self) -> Result<usize> {
        let slot = self.entries.len();
        if slot == MAX_SLOTS {
            let message = format!("handles: {MAX_SLOTS} of one kind are live; destroy some");
            return Err(Error::new(ErrorKind::OutOfMemory, message).with("limit", MAX_SLOTS));
        }
        self.entries.try_reserve(1)?;
        self.free.try_reserve(self.entries.len() + 1)?;
        self.entries.push(Slot { generation: 0, object: None });
        Ok(slot)
    }
}

/// The value of a handle.
pub(super) const fn encode(kind: Kind, parts: Parts) -> usize {
    (kind as usize) << KIND_SHIFT | (parts.generation as usize) << SLOT_BITS | parts.slot
}

/// The parts of a handle, if it is of this kind.
pub(super) fn decode(kind: Kind, handle: usize) -> Option<Parts> {
    let parts = Parts { slot: handle & (MAX_SLOTS - 1), generation: (handle >> SLOT_BITS) as u32 };
    (handle >> KIND_SHIFT == kind as usize).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Opaque;

    #[test]
    fn stale_handles_never_name_a_new_object() {
        let table = Table::new(Kind::Bytes);
        let first: *mut Opaque = table.insert(Arc::new(1)).unwrap();
        assert_eq!(*table.get(first, "x").unwrap(), 1);
        assert_eq!(table.remove(first).as_deref(), Some(&1));
        assert!(table.remove(first).is_none());
        let second: *mut Opaque = table.insert(Arc::new(2)).unwrap();
        assert_ne!(first, second);
        assert!(matches!(table.look_up(first), Lookup::Destroyed));
        assert_eq!(*table.get(second, "x").unwrap(), 2);
        let message = table.get(first, "x").unwrap_err().message().to_owned();
        assert_eq!(message, "x: this VrustBytes was destroyed");
    }

    #[test]
    fn null_garbage_and_other_kinds_are_foreign() {
        let table = Table::<i32>::new(Kind::Engine);
        let real: *mut Opaque = table.insert(Arc::new(1)).unwrap();
        let (kind, bits) = (Kind::Queue as usize, real as usize & ((1 << KIND_SHIFT) - 1));
        for value in [0, 1, usize::MAX, kind << KIND_SHIFT | bits, real as usize + 1] {
            assert!(matches!(table.look_up(value as *const Opaque), Lookup::Foreign), "{value:x}");
        }
    }

    #[test]
    fn a_slot_is_retired_at_its_last_generation() {
        let table = Table::new(Kind::Bytes);
        let first: *mut Opaque = table.insert(Arc::new(1)).unwrap();
        table.remove(first).unwrap();
        table.slots.write().unwrap().entries[0].generation = LAST_GENERATION - 1;
        let last: *mut Opaque = table.insert(Arc::new(2)).unwrap();
        table.remove(last).unwrap();
        let next: *mut Opaque = table.insert(Arc::new(3)).unwrap();
        assert_eq!(decode(Kind::Bytes, next as usize), Some(Parts { slot: 1, generation: 1 }));
        assert!(matches!(table.look_up(last), Lookup::Destroyed));
    }

    #[test]
    fn lookups_and_changes_may_run_at_once() {
        let table = Table::new(Kind::Tokenizer);
        std::thread::scope(|scope| {
            for id in 0..4 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..2000 {
                        let handle: *mut Opaque = table.insert(Arc::new((id, round))).unwrap();
                        assert_eq!(*table.get(handle, "x").unwrap(), (id, round));
                        assert_eq!(*table.remove(handle).unwrap(), (id, round));
                    }
                });
            }
        });
        assert!(table.slots.read().unwrap().entries.len() <= 4);
    }
}
