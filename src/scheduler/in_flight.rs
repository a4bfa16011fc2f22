//! What the scheduler remembers of a step until it is back.

use super::batch::StepId;
use super::sequences::Slot;
use crate::ids::{BlockId, SeqId};
use crate::kv_cache::CacheKey;

/// A step that was scheduled and is not yet back.
#[derive(Debug, Default)]
pub(super) struct InFlightStep {
    pub(super) step: StepId,
    /// One part a sequence, in the batch's order.
    pub(super) parts: Vec<Part>,
    /// Blocks that entered the cache although this step has yet to compute their end.
    pub(super) hashed: Vec<(BlockId, CacheKey)>,
    /// An earlier step failed and took this one with it.
    pub(super) void: bool,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) slot: Slot,
    pub(super) id: SeqId,
    /// The sequence's epoch: if it is another by now, this part is void.
    pub(super) epoch: u32,
    /// First position.
    pub(super) start: usize,
    /// Position after the last.
    pub(super) end: usize,
    /// Whether the sequence's next token comes of it.
    pub(super) samples: bool,
}

impl InFlightStep {
    /// Empty, with its memory kept.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.hashed.clear();
        self.void = false;
    }
}
