//! A span of few query vectors, as decoding has them: what takes time is reading the cache.
//!
//! ```text
//!  keys of sixteen positions ─► .. ─► values of sixteen positions, all columns ─► .. ─► next span
//! ```
//! Each such piece is read once and whole, as it lies in its block, while one behind it is asked
//! for: memory brings no other order of blocks faster.
#![allow(unsafe_code, reason = "kernels work through pointers")]
#![allow(clippy::needless_range_loop, reason = "register tiles read best by their indices")]

use super::cached::Cached;
use super::places::Next;
use super::softmax::softmax;
use super::span::{Rows, Tile, accumulate};
use super::{SPAN, Softmax, TILE_VECTORS};
use crate::backend::cpu::kv::LayerKv;
use crate::backend::cpu::simd::Simd16;
use crate::ids::BlockId;

/// Most vectors that are few.
const FEW: usize = 4;
/// Accumulators that a path must have registers for.
pub(super) const ACCUMULATORS: usize = 16;
/// How far ahead pieces are asked for.
const AHEAD_BYTES: usize = 8 << 10;

/// Whether `run` serves these vectors, on a path that has registers for it.
#[inline(always)]
pub(super) fn serves(kv: &LayerKv, count: usize) -> bool {
    count <= FEW && kv.block_size.is_multiple_of(16)
}

/// As `span::run`, for positions `from..to` of the span from `start`; `from` is a multiple of 16.
#[inline(always)]
pub(super) unsafe fn run<P: Cached>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    (start, from, to): (usize, usize, usize),
    next: Option<Next<'_>>,
) -> [Softmax; TILE_VECTORS] {
    let piece = t.kv.dim.div_ceil(P::STEP) * P::STEP_BYTES;
    let ahead = 16 * (AHEAD_BYTES / piece.max(1)).clamp(2, SPAN / 16);
    let end = to.next_multiple_of(16);
    let [keys, values] = [[t.kv.k.cast_const(); SPAN / 16], [t.kv.v.cast_const(); SPAN / 16]];
    let scales = [[std::ptr::null(); SPAN / 16]; 2];
    let mut pieces = Pieces { t, start, from, to, end, keys, values, scales, next, ahead };
    pieces.find::<P>();
    let mut results = [Softmax::EMPTY; TILE_VECTORS];
    // SAFETY: by `attend`'s contract.
    unsafe {
        match rows.count {
            1 => vectors::<P, 1, 8>(&pieces, rows, &mut results),
            2 => vectors::<P, 2, 8>(&pieces, rows, &mut results),
            3 => vectors::<P, 3, 4>(&pieces, rows, &mut results),
            _ => vectors::<P, 4, 4>(&pieces, rows, &mut results),
        }
    }
    results
}

/// What a span's vectors read, in order.
struct Pieces<'a, X> {
    t: &'a Tile<'a, X>,
    /// The span's first position.
    start: usize,
    /// The first position that is seen, relative to the span, as all others here.
    from: usize,
    /// The first position behind those that are seen.
    to: usize,
    /// The same in whole pieces.
    end: usize,
    /// Where the keys of each piece lie.
    keys: [*const u8; SPAN / 16],
    /// Where its values lie.
    values: [*const u8; SPAN / 16],
    /// Where the scales of its keys and of its values lie, of int8.
    scales: [[*const f32; SPAN / 16]; 2],
    /// What follows.
    next: Option<Next<'a>>,
    /// How many positions ahead is asked.
    ahead: usize,
}

/// A block and a slot of it. Positions past the blocks are never read, only asked for.
#[inline(always)]
fn slot_of(kv: &LayerKv, blocks: &[BlockId], position: usize) -> (usize, usize) {
    let block = (position / kv.block_size).min(blocks.len() - 1);
    (blocks[block].index(), position % kv.block_size)
}

impl<X> Pieces<'_, X> {
    /// Finds the pieces. Step by step: a division for each would be felt.
    #[inline(always)]
    fn find<P: Cached>(&mut self) {
        let (kv, head, blocks) = (self.t.kv, self.t.kv_head, self.t.blocks);
        let first = self.start + self.from;
        let (mut block, mut slot) = (first / kv.block_size, first % kv.block_size);
        for piece in self.from / 16..self.end / 16 {
            let id = blocks[block].index();
            self.keys[piece] = kv.k.wrapping_add(kv.k_at(id, head, slot));
            self.values[piece] = kv.v.wrapping_add(kv.v_at(id, head, 0, slot));
            if P::SCALED {
                self.scales[0][piece] = kv.k_scale(id, head, slot);
                self.scales[1][piece] = kv.v_scale(id, head, slot);
            }
            slot += 16;
            if slot == kv.block_size {
                (block, slot) = (block + 1, 0);
            }
        }
    }

    /// What is asked for while the keys from `position` on are read, and how far its steps are
    /// apart.
    #[inline(always)]
    fn behind_keys<P: Cached>(&self, position: usize) -> (*const u8, usize) {
        let far = position + self.ahead;
        if far >= self.end {
            let far = (self.from + far - self.end).min(self.end - 16);
            return (self.values[far / 16], self.t.kv.v_step_bytes());
        }
        if P::SCALED {
            P::Acc::prefetch(self.scales[0][far / 16].cast());
            P::Acc::prefetch(self.scales[1][far / 16].cast());
        }
        (self.keys[far / 16], self.t.kv.k_apart())
    }

    /// What is asked for while the values from `position` on are read, columns from `16 * group`
    /// to `16 * end`.
    #[inline(always)]
    fn behind_values(&self, position: usize, group: usize, end: usize) -> *const u8 {
        let (kv, far) = (self.t.kv, position + self.ahead);
        let of_group =
            |piece: usize, group: usize| self.values[piece].wrapping_add(group * kv.v_apart());
        if far < self.end {
            return of_group(far / 16, group);
        }
        let far = far - self.end;
        match &self.next {
            _ if 16 * end < kv.dim_padded => {
                of_group((self.from + far).min(self.end - 16) / 16, end)
            }
            Some(next) => {
                let (block, slot) = slot_of(kv, next.blocks, next.span * SPAN + far);
                kv.k.wrapping_add(kv.k_at(block, next.kv_head, slot))
            }
            None => self.values[self.from / 16],
        }
    }
}

/// `R` vectors; a tile of values has `N` groups of sixteen columns.
#[inline(always)]
unsafe fn vectors<P: Cached, const R: usize, const N: usize>(
    p: &Pieces<'_, P::X>,
    rows: &Rows,
    results: &mut [Softmax; TILE_VECTORS],
) {
    // SAFETY: by `attend`'s contract.
    unsafe {
        let mut position = p.from;
        while position < p.end {
            if position + 32 <= p.end {
                scores::<P, R, 2>(p, position);
                position += 32;
            } else {
                scores::<P, R, 1>(p, position);
                position += 16;
            }
        }
        if P::SCALED {
            gather(p);
        }
        softmax::<P>(p.t, rows, p.start, (p.from, p.to), results);
        let (mut group, groups) = (0, p.t.kv.dim_padded / 16);
        while group < groups {
            if group + N <= groups {
                values::<P, R, N>(p, group);
                group += N;
            } else if group + 2 <= groups {
                values::<P, R, 2>(p, group);
                group += 2;
            } else {
                values::<P, R, 1>(p, group);
                group += 1;
            }
        }
    }
}

/// Brings the scales of keys and values together.
#[inline(always)]
unsafe fn gather<X>(p: &Pieces<'_, X>) {
    for position in (p.from..p.end).step_by(16) {
        for (half, from) in p.scales.iter().enumerate() {
            // SAFETY: sixteen slots of a block have their scales side by side; the tile holds a
            // span's.
            unsafe {
                from[position / 16]
                    .copy_to_nonoverlapping(p.t.scales.add(half * SPAN + position), 16)
            };
        }
    }
}

/// Scores at `N` pieces: each one chain along the head's elements, as in `span`.
#[inline(always)]
unsafe fn scores<P: Cached, const R: usize, const N: usize>(p: &Pieces<'_, P::X>, position: usize) {
    let (t, apart) = (p.t, p.t.kv.k_apart());
    let mut keys = [p.keys[position / 16]; N];
    let mut behind = [p.behind_keys::<P>(position); N];
    for n in 1..N {
        keys[n] = p.keys[position / 16 + n];
        behind[n] = p.behind_keys::<P>(position + 16 * n);
    }
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the caller's contract: the keys are places of the cache, the last step is padded
    // with zeros as queries are.
    unsafe {
        for step in 0..t.kv.dim.div_ceil(P::STEP) {
            let mut inputs = [P::broadcast(t.queries.add(step * P::STEP)); R];
            for r in 1..R {
                inputs[r] = P::broadcast(t.queries.add(r * t.kv.dim_padded + step * P::STEP));
            }
            for n in 0..N {
                P::Acc::prefetch(behind[n].0.wrapping_add(step * behind[n].1));
                let weights = P::weights(keys[n].add(step * apart));
                for r in 0..R {
                    acc[r][n] = P::step(acc[r][n], weights, inputs[r]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(t.scores.add(r * SPAN + position + 16 * n));
            }
        }
    }
}

/// Values of `N` groups of sixteen columns: each one chain over the positions, as in `span`.
#[inline(always)]
unsafe fn values<P: Cached, const R: usize, const N: usize>(p: &Pieces<'_, P::X>, group: usize) {
    let (t, apart) = (p.t, p.t.kv.v_apart());
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the caller's contract. The last position may stand alone in its step: what lies
    // behind it was perhaps never written.
    unsafe {
        for first in (p.from..p.to).step_by(16) {
            let count = (p.to - first).min(16);
            let (at, behind) = (
                p.values[first / 16].wrapping_add(group * apart),
                p.behind_values(first, group, group + N),
            );
            let probabilities = t.probabilities.add(first);
            for step in 0..count / P::STEP {
                let within = step * P::STEP_BYTES;
                let mut inputs = [P::broadcast(probabilities.add(step * P::STEP)); R];
                for r in 1..R {
                    inputs[r] = P::broadcast(probabilities.add(r * SPAN + step * P::STEP));
                }
                for n in 0..N {
                    P::Acc::prefetch(behind.wrapping_add(n * apart + within));
                    let weights = P::weights(at.add(n * apart + within));
                    for r in 0..R {
                        acc[r][n] = P::step(acc[r][n], weights, inputs[r]);
                    }
                }
            }
            if count % P::STEP != 0 {
                let at = at.add(count / P::STEP * P::STEP_BYTES);
                let mut weights = [P::first(P::weights(at)); N];
                for n in 1..N {
                    weights[n] = P::first(P::weights(at.add(n * apart)));
                }
                accumulate::<P, R, N>(&mut acc, probabilities.add(count - 1), weights);
            }
        }
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(t.values.add(r * t.kv.dim_padded + (group + n) * 16));
            }
        }
    }
}
