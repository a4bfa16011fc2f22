//! Where a span's keys and values lie, block by block.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use super::SPAN;
use super::cached::Cached;
use super::span::Tile;
use crate::backend::cpu::kv::LayerKv;
use crate::backend::cpu::linear::Panel;
use crate::ids::BlockId;

/// Where the keys and values of a span lie, for every eight positions.
pub(super) struct Places {
    /// Keys, from their first element on; some behind the span, to be asked for.
    pub(super) keys: [*const u8; EIGHTS + AHEAD],
    /// Values, from their first sixteen elements on.
    pub(super) values: [*const u8; EIGHTS],
    /// Scales of int8: keys', values'.
    pub(super) scales: [[*const f32; EIGHTS]; 2],
    /// Positions that lie together: 16 or 8.
    pub(super) run: usize,
}

impl Places {
    /// Of the eights `range` of the span from `start`. Eights past the sequence's blocks repeat its
    /// last ones; they are masked later.
    #[inline(always)]
    pub(super) fn new<P: Cached>(
        t: &Tile<'_, P::X>,
        start: usize,
        range: std::ops::Range<usize>,
    ) -> Self {
        let size = t.kv.block_size;
        let run = if size.is_multiple_of(16) { 16 } else { 8 };
        let scales = [[std::ptr::null(); _]; 2];
        let mut places = Self { keys: [t.kv.k; _], values: [t.kv.v; _], scales, run };
        let first = start + range.start * 8;
        let (mut block, mut slot) = (first / size, first % size);
        for i in range.start..range.end + AHEAD {
            if block >= t.blocks.len() {
                (block, slot) = (t.blocks.len() - 1, size - run + i * 8 % run);
            }
            let id = t.blocks[block].index();
            places.keys[i] = t.kv.k.wrapping_add(t.kv.k_at(id, t.kv_head, slot));
            if i < range.end {
                places.values[i] = t.kv.v.wrapping_add(t.kv.v_at(id, t.kv_head, 0, slot));
                if P::SCALED {
                    places.scales[0][i] = t.kv.k_scale(id, t.kv_head, slot);
                    places.scales[1][i] = t.kv.v_scale(id, t.kv_head, slot);
                }
            }
            slot += 8;
            if slot >= size {
                (block, slot) = (block + 1, 0);
            }
        }
        places
    }

    /// Brings the scales of the eights `range` together.
    #[inline(always)]
    pub(super) unsafe fn gather<X>(&self, t: &Tile<'_, X>, range: std::ops::Range<usize>) {
        for (half, from) in self.scales.iter().enumerate() {
            for i in range.clone() {
                // SAFETY: the scales of eight positions lie together; the tile holds a span's.
                unsafe { from[i].copy_to_nonoverlapping(t.scales.add(half * SPAN + i * 8), 8) };
            }
        }
    }
}

/// Eights of a span.
pub(super) const EIGHTS: usize = SPAN / 8;
/// Eights of keys that are asked for before they are used.
pub(super) const AHEAD: usize = 8;

/// Where the first elements of `N` groups of keys lie.
pub(super) struct Keys<const N: usize> {
    /// The first eight of each group.
    pub(super) low: [*const u8; N],
    /// The others: behind them where blocks hold whole groups.
    pub(super) high: [*const u8; N],
    /// Bytes from one step to the next.
    pub(super) apart: usize,
    /// The keys to be asked for.
    pub(super) next: [*const u8; N],
    /// The values of these groups, to be asked for.
    pub(super) values: [*const u8; N],
    pub(super) whole: bool,
}

impl<const N: usize> Keys<N> {
    /// One step of group `n`.
    #[inline(always)]
    pub(super) unsafe fn weights<P: Panel>(&self, n: usize, step: usize) -> P::W {
        // SAFETY: the caller vouches for the step.
        unsafe {
            let low = self.low[n].add(step * self.apart);
            if self.whole {
                P::weights(low)
            } else {
                P::weights_halves(low, self.high[n].add(step * self.apart))
            }
        }
    }
}

/// Where the values of a span lie.
pub(super) struct Values {
    /// The first sixteen columns, for every eight positions.
    pub(super) places: [*const u8; EIGHTS],
    /// Bytes from sixteen columns to the next.
    pub(super) apart: usize,
    /// What is asked for meanwhile.
    pub(super) next: [*const u8; EIGHTS],
    pub(super) next_apart: usize,
}

impl Values {
    /// The step of position `at` in group `n`.
    #[inline(always)]
    pub(super) unsafe fn at<P: Panel>(&self, n: usize, at: usize) -> *const u8 {
        // SAFETY: the caller vouches for the position and the group.
        unsafe { self.places[at / 8].add(n * self.apart + at % 8 / P::STEP * P::STEP_BYTES) }
    }

    /// What to ask for with that step.
    #[inline(always)]
    pub(super) fn next<P: Panel>(&self, n: usize, at: usize) -> *const u8 {
        self.next[at / 8].wrapping_add(n * self.next_apart + at % 8 / P::STEP * P::STEP_BYTES)
    }
}

/// The span whose keys are wanted next.
pub(super) struct Next<'a> {
    pub(super) blocks: &'a [BlockId],
    pub(super) kv_head: usize,
    pub(super) span: usize,
}

impl Next<'_> {
    /// Its keys, to be asked for while values are multiplied: a block of keys is as long as one of
    /// values, so that what lies as far in it is asked for, and all of it in the end.
    #[inline(always)]
    pub(super) fn keys(&self, kv: &LayerKv, places: &mut [*const u8; EIGHTS]) {
        let last = self.blocks.len() - 1;
        for (i, place) in places.iter_mut().enumerate() {
            let position = self.span * SPAN + i * 8;
            let block = self.blocks[(position / kv.block_size).min(last)].index();
            let within = position % kv.block_size / kv.step() * kv.v_step_bytes();
            *place = kv.k.wrapping_add(kv.k_at(block, self.kv_head, 0) + within);
        }
    }
}
