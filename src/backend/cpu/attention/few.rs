//! A span of few query vectors, as decoding has them: what takes time is reading the cache.
//!
//! ```text
//!  keys of sixteen positions ─► .. ─► values of sixteen positions, all columns ─► .. ─► next span
//! ```
//! Each such piece is read once and whole, as it lies in its block, while one behind it is asked
//! for. Of many KV heads the pieces of all of them are read before the next positions: so lies what
//! is read in memory, which brings no other order faster.
#![allow(unsafe_code, reason = "kernels work through pointers")]
#![allow(clippy::needless_range_loop, reason = "register tiles read best by their indices")]

use std::ops::Range;

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
/// Positions whose keys, or values, of one head are read before the next head's.
const TOGETHER: usize = 32;
/// How far ahead pieces are asked for.
const AHEAD_BYTES: usize = 8 << 10;

/// Whether `run` serves these vectors of a KV head, on a path that has registers for it.
#[inline(always)]
pub(super) fn serves(kv: &LayerKv, count: usize) -> bool {
    count <= FEW && kv.block_size.is_multiple_of(16)
}

/// Whether `run` takes several KV heads at a time, of `count` vectors each. The scales of int8 have
/// room for one.
#[inline(always)]
pub(super) fn takes_heads<P: Cached, const R: usize, const N: usize>(
    kv: &LayerKv,
    count: usize,
) -> bool {
    (const { !P::TILES && !P::SCALED && R * N >= ACCUMULATORS }) && serves(kv, count)
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
    let heads_ahead = AHEAD_BYTES.div_ceil(2 * piece.max(1)).min(t.kv_heads);
    let mut pieces =
        Pieces { t, start, from, to, end, keys, values, scales, next, ahead, heads_ahead };
    pieces.find::<P>();
    let mut results = [Softmax::EMPTY; TILE_VECTORS];
    // The softmax is the same for any number of vectors, and much code.
    // SAFETY: by `attend`'s contract.
    unsafe {
        match rows.count / t.kv_heads {
            1 => scores_of_heads::<P, 1>(&pieces),
            2 => scores_of_heads::<P, 2>(&pieces),
            3 => scores_of_heads::<P, 3>(&pieces),
            _ => scores_of_heads::<P, 4>(&pieces),
        }
        if P::SCALED {
            pieces.gather();
        }
        softmax::<P>(t, rows, start, (from, to), &mut results);
        match rows.count / t.kv_heads {
            1 => values_of_heads::<P, 1, 8>(&pieces),
            2 => values_of_heads::<P, 2, 8>(&pieces),
            3 => values_of_heads::<P, 3, 4>(&pieces),
            _ => values_of_heads::<P, 4, 4>(&pieces),
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
    /// How many heads ahead, where there are several.
    heads_ahead: usize,
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

    /// Brings the scales of keys and values together.
    #[inline(always)]
    unsafe fn gather(&self) {
        for position in (self.from..self.end).step_by(16) {
            for (half, from) in self.scales.iter().enumerate() {
                let to = self.t.scales.wrapping_add(half * SPAN + position);
                // SAFETY: sixteen slots of a block have their scales side by side; the tile holds
                // a span's.
                unsafe { from[position / 16].copy_to_nonoverlapping(to, 16) };
            }
        }
    }

    /// Where the keys and the values of a head lie behind those of the first.
    #[inline(always)]
    fn of_head(&self, head: usize) -> (usize, usize) {
        (head * self.t.kv.k_head_bytes(), head * self.t.kv.v_head_bytes())
    }

    /// The head that is read `heads_ahead` behind this one, and the positions, where there are
    /// several heads.
    #[inline(always)]
    fn later(&self, position: usize, head: usize) -> (usize, usize) {
        let far = head + self.heads_ahead;
        match far < self.t.kv_heads {
            true => (position, far),
            false => (position + TOGETHER, far - self.t.kv_heads),
        }
    }

    /// What is asked for while the keys from `position` on are read, and how far its steps are
    /// apart.
    #[inline(always)]
    fn behind_keys<P: Cached>(&self, position: usize, head: usize) -> (*const u8, usize) {
        if self.t.kv_heads > 1 {
            let (far, head) = self.later(position, head);
            let (keys, values) = self.of_head(head);
            return match far < self.end {
                true => (self.keys[far / 16].wrapping_add(keys), self.t.kv.k_apart()),
                false => {
                    let far = self.from + far % TOGETHER;
                    let first = self.values[far.min(self.end - 16) / 16];
                    (first.wrapping_add(values), self.t.kv.v_step_bytes())
                }
            };
        }
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
    fn behind_values(
        &self,
        (position, head): (usize, usize),
        group: usize,
        end: usize,
    ) -> *const u8 {
        let (kv, far) = (self.t.kv, position + self.ahead);
        if self.t.kv_heads > 1 {
            let (far, head) = self.later(position, head);
            let (keys, values) = self.of_head(head);
            let within = group * kv.v_apart();
            return match &self.next {
                _ if far < self.end => self.values[far / 16].wrapping_add(values + within),
                Some(next) => {
                    let (block, slot) = slot_of(kv, next.blocks, next.span * SPAN + far % TOGETHER);
                    let first = kv.k.wrapping_add(kv.k_at(block, next.kv_head, slot));
                    first.wrapping_add(keys + within)
                }
                None => self.values[self.from / 16],
            };
        }
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

/// Scores of `R` vectors of each head.
#[inline(always)]
unsafe fn scores_of_heads<P: Cached, const R: usize>(p: &Pieces<'_, P::X>) {
    for position in (p.from..p.end).step_by(TOGETHER) {
        for head in 0..p.t.kv_heads {
            // SAFETY: by `attend`'s contract.
            unsafe {
                if position + TOGETHER <= p.end {
                    scores::<P, R, { TOGETHER / 16 }>(p, position, head);
                } else {
                    scores::<P, R, 1>(p, position, head);
                }
            }
        }
    }
}

/// Values of `R` vectors of each head; a tile has `N` groups of sixteen columns.
#[inline(always)]
unsafe fn values_of_heads<P: Cached, const R: usize, const N: usize>(p: &Pieces<'_, P::X>) {
    let at_once = if p.t.kv_heads > 1 { TOGETHER } else { SPAN };
    for first in (p.from..p.to).step_by(at_once) {
        let positions = first..(first + at_once).min(p.to);
        for head in 0..p.t.kv_heads {
            // SAFETY: by `attend`'s contract.
            unsafe { values_of_head::<P, R, N>(p, head, &positions) };
        }
    }
}

/// Values of one head, all columns.
#[inline(always)]
unsafe fn values_of_head<P: Cached, const R: usize, const N: usize>(
    p: &Pieces<'_, P::X>,
    head: usize,
    positions: &Range<usize>,
) {
    let (mut group, groups) = (0, p.t.kv.dim_padded / 16);
    // SAFETY: the caller's contract.
    unsafe {
        while group < groups {
            if group + N <= groups {
                values::<P, R, N>(p, head, positions, group);
                group += N;
            } else if group + 2 <= groups {
                values::<P, R, 2>(p, head, positions, group);
                group += 2;
            } else {
                values::<P, R, 1>(p, head, positions, group);
                group += 1;
            }
        }
    }
}

/// Scores of one head at `N` pieces: each one chain along the head's elements, as in `span`.
#[inline(always)]
unsafe fn scores<P: Cached, const R: usize, const N: usize>(
    p: &Pieces<'_, P::X>,
    position: usize,
    head: usize,
) {
    let (t, apart, (within, _)) = (p.t, p.t.kv.k_apart(), p.of_head(head));
    let mut keys = [p.keys[position / 16].wrapping_add(within); N];
    let mut behind = [p.behind_keys::<P>(position, head); N];
    for n in 1..N {
        keys[n] = p.keys[position / 16 + n].wrapping_add(within);
        behind[n] = p.behind_keys::<P>(position + 16 * n, head);
    }
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the caller's contract: the keys are places of the cache, the last step is padded
    // with zeros as queries are.
    unsafe {
        let queries = t.queries.add(head * R * t.kv.dim_padded);
        for step in 0..t.kv.dim.div_ceil(P::STEP) {
            let mut inputs = [P::broadcast(queries.add(step * P::STEP)); R];
            for r in 1..R {
                inputs[r] = P::broadcast(queries.add(r * t.kv.dim_padded + step * P::STEP));
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
                acc[r][n].store(t.scores.add((head * R + r) * SPAN + position + 16 * n));
            }
        }
    }
}

/// Values of `N` groups of sixteen columns: each one chain over the positions, as in `span`, which
/// goes on where it was left.
#[inline(always)]
unsafe fn values<P: Cached, const R: usize, const N: usize>(
    p: &Pieces<'_, P::X>,
    head: usize,
    positions: &Range<usize>,
    group: usize,
) {
    let (t, apart, (_, within)) = (p.t, p.t.kv.v_apart(), p.of_head(head));
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the caller's contract. The last position may stand alone in its step: what lies
    // behind it was perhaps never written.
    unsafe {
        let results = t.values.add(head * R * t.kv.dim_padded + group * 16);
        if positions.start > p.from {
            for r in 0..R {
                for n in 0..N {
                    acc[r][n] = P::Acc::load(results.add(r * t.kv.dim_padded + n * 16));
                }
            }
        }
        for first in positions.clone().step_by(16) {
            let count = (positions.end - first).min(16);
            let (at, behind) = (
                p.values[first / 16].wrapping_add(within + group * apart),
                p.behind_values((first, head), group, group + N),
            );
            let probabilities = t.probabilities.add(head * R * SPAN + first);
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
            if !count.is_multiple_of(P::STEP) {
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
                acc[r][n].store(results.add(r * t.kv.dim_padded + n * 16));
            }
        }
    }
}
