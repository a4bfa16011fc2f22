//! From vectors' scores in a span to probabilities.
#![allow(unsafe_code, reason = "kernels work through pointers")]
#![allow(clippy::needless_range_loop, reason = "register tiles read best by their indices")]

use std::ops::Range;

use super::cached::Cached;
use super::span::{Rows, Tile};
use super::{SPAN, Softmax, TILE_VECTORS};
use crate::backend::cpu::simd::Simd16;

/// Vectors whose softmax is computed side by side: each waits for its own greatest score.
const TOGETHER: usize = 4;

/// Turns the scores of all vectors in the span from `start` into probabilities, not yet divided by
/// their sum: those of the positions that a vector sees, and 0 for the other positions of the
/// groups of `from..to`. Over int8 each is then multiplied with its value's scale.
#[inline(always)]
pub(super) unsafe fn softmax<P: Cached>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    start: usize,
    (from, to): (usize, usize),
    results: &mut [Softmax; TILE_VECTORS],
) {
    let mut v = 0;
    while v < rows.count {
        // SAFETY: the caller vouches for the groups that hold `from..to`.
        unsafe {
            if v + TOGETHER <= rows.count && rows.all_see(v..v + TOGETHER, start) {
                vectors::<P, TOGETHER>(t, rows, (start, v), (from, to), results);
                v += TOGETHER;
            } else {
                vectors::<P, 1>(t, rows, (start, v), (from, to), results);
                v += 1;
            }
        }
    }
}

/// `W` vectors from `vector` on, of which each sees something of the span unless it is alone.
#[inline(always)]
unsafe fn vectors<P: Cached, const W: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    (start, vector): (usize, usize),
    (from, to): (usize, usize),
    results: &mut [Softmax; TILE_VECTORS],
) {
    let mut seen = [rows.visible(vector, start); W];
    for w in 1..W {
        seen[w] = rows.visible(vector + w, start);
    }
    // Both ends ascend with the vectors.
    let ((lowest, least), (low, high)) = (seen[0], seen[W - 1]);
    let (first, end) = match lowest < high {
        true => (lowest / 16 * 16, high.next_multiple_of(16)),
        false => (to, to),
    };
    let probabilities = t.probabilities.wrapping_add(vector * SPAN);
    // SAFETY: the caller vouches for the groups that hold `from..to`, and for what is seen in it.
    unsafe {
        for i in (from..first).chain(end..to).step_by(16) {
            for w in 0..W {
                P::put(P::Acc::splat(0.0), probabilities.add(w * SPAN + i));
            }
        }
        if lowest >= high {
            return;
        }
        // Groups that all see whole lie between those that are not.
        let whole = low.next_multiple_of(16).min(end)..(least / 16 * 16).max(first);
        let (before, behind) = match whole.is_empty() {
            true => (first..end, end..end),
            false => (first..whole.start, whole.end..end),
        };
        let scores = t.scores.cast_const().wrapping_add(vector * SPAN);
        let some = Vectors { scores, scales: t.scales, seen };
        let mut greatest = [P::Acc::splat(f32::NEG_INFINITY); W];
        some.greatest::<P, true>(before.clone(), &mut greatest);
        some.greatest::<P, false>(whole.clone(), &mut greatest);
        some.greatest::<P, true>(behind.clone(), &mut greatest);
        let mut below = [0.0; W];
        for w in 0..W {
            let max = greatest[w].greatest() * t.scale;
            (results[vector + w].max, below[w]) = (max, -max * P::EXP_FACTOR);
        }
        let (by, mut sums) = ((t.scale * P::EXP_FACTOR, below), [P::Acc::splat(0.0); W]);
        some.exp::<P, true>(before, by, probabilities, &mut sums);
        some.exp::<P, false>(whole, by, probabilities, &mut sums);
        some.exp::<P, true>(behind, by, probabilities, &mut sums);
        for w in 0..W {
            results[vector + w].sum = sums[w].sum();
        }
    }
}

/// What the softmax of `W` vectors reads, and the positions that each of them sees.
struct Vectors<const W: usize> {
    /// `[W][SPAN]`.
    scores: *const f32,
    /// As a tile's.
    scales: *const f32,
    seen: [(usize, usize); W],
}

impl<const W: usize> Vectors<W> {
    /// `v` where its positions, from `i` on, are seen. Selected and not multiplied: a scale of a
    /// hidden position may be a NaN.
    #[inline(always)]
    fn seen<S: Simd16>(&self, w: usize, v: S, i: usize, other: f32) -> S {
        let (low, high) = self.seen[w];
        v.keep(low.saturating_sub(i), high.saturating_sub(i), S::splat(other))
    }

    #[inline(always)]
    unsafe fn score<P: Cached, const MASKED: bool>(&self, w: usize, i: usize) -> P::Acc {
        // SAFETY: the caller vouches for a group of sixteen.
        let score = unsafe {
            let score = P::Acc::load(self.scores.add(w * SPAN + i));
            if P::SCALED { score.mul(P::Acc::load(self.scales.add(i))) } else { score }
        };
        if MASKED { self.seen(w, score, i, f32::NEG_INFINITY) } else { score }
    }

    /// The greatest scores of some groups, lane by lane, or what was greater before.
    #[inline(always)]
    unsafe fn greatest<P: Cached, const MASKED: bool>(
        &self,
        groups: Range<usize>,
        greatest: &mut [P::Acc; W],
    ) {
        for i in groups.step_by(16) {
            for w in 0..W {
                // SAFETY: the caller vouches for the groups.
                greatest[w] = greatest[w].max(unsafe { self.score::<P, MASKED>(w, i) });
            }
        }
    }

    /// Writes some groups' probabilities, and adds them to `sums`.
    #[inline(always)]
    unsafe fn exp<P: Cached, const MASKED: bool>(
        &self,
        groups: Range<usize>,
        (factor, below): (f32, [f32; W]),
        probabilities: *mut P::X,
        sums: &mut [P::Acc; W],
    ) {
        let factor = P::Acc::splat(factor);
        for i in groups.step_by(16) {
            for w in 0..W {
                // SAFETY: the caller vouches for the groups.
                unsafe {
                    let score = self.score::<P, MASKED>(w, i);
                    let mut p = P::exp(score.mul_add(factor, P::Acc::splat(below[w])));
                    sums[w] = sums[w].add(p);
                    if P::SCALED {
                        p = p.mul(P::Acc::load(self.scales.add(SPAN + i)));
                        if MASKED {
                            p = self.seen(w, p, i, 0.0);
                        }
                    }
                    P::put(p, probabilities.add(w * SPAN + i));
                }
            }
        }
    }
}
