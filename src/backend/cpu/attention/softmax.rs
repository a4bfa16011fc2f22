//! From one vector's scores in a span to probabilities.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::ops::Range;

use super::cached::Cached;
use super::span::Tile;
use super::{SPAN, Softmax};
use crate::backend::cpu::simd::Simd16;

/// Turns the scores of one vector into probabilities, not yet divided by their sum: those of
/// `low..high`, and 0 for the other positions of the groups of `from..to`. Over int8 each is then
/// multiplied with its value's scale.
#[inline(always)]
pub(super) unsafe fn softmax<P: Cached>(
    t: &Tile<'_, P::X>,
    vector: usize,
    (low, high): (usize, usize),
    (from, to): (usize, usize),
) -> Softmax {
    let scores = t.scores.wrapping_add(vector * SPAN);
    let probabilities = t.probabilities.wrapping_add(vector * SPAN);
    let (hidden, zero) = (P::Acc::splat(f32::NEG_INFINITY), P::Acc::splat(0.0));
    let (first, end) = match low < high {
        true => (low / 16 * 16, high.next_multiple_of(16)),
        false => (to, to),
    };
    // SAFETY: the caller vouches for the groups that hold `from..to`, and `low..high` within it.
    unsafe {
        for i in (from..first).chain(end..to).step_by(16) {
            P::put(zero, probabilities.add(i));
        }
        if low >= high {
            return Softmax::EMPTY;
        }
        // Groups that are seen whole lie between those that are not.
        let whole = low.next_multiple_of(16).min(end)..(high / 16 * 16).max(first);
        let (before, behind) = match whole.is_empty() {
            true => (first..end, end..end),
            false => (first..whole.start, whole.end..end),
        };
        let row = Row { scores, scales: t.scales, low, high };
        let greatest = row.greatest::<P, true>(before.clone(), hidden);
        let greatest = row.greatest::<P, false>(whole.clone(), greatest);
        let greatest = row.greatest::<P, true>(behind.clone(), greatest);
        let max = greatest.greatest() * t.scale;
        let by = (t.scale * P::EXP_FACTOR, -max * P::EXP_FACTOR);
        let sums = row.exp::<P, true>(before, by, probabilities, zero);
        let sums = row.exp::<P, false>(whole, by, probabilities, sums);
        let sums = row.exp::<P, true>(behind, by, probabilities, sums);
        Softmax { max, sum: sums.sum() }
    }
}

/// What the softmax of one vector reads, and the positions `low..high` that it sees.
struct Row {
    scores: *const f32,
    /// As a tile's.
    scales: *const f32,
    low: usize,
    high: usize,
}

impl Row {
    /// `v` where its positions, from `i` on, are seen. Selected and not multiplied: a scale of a
    /// hidden position may be a NaN.
    #[inline(always)]
    fn seen<S: Simd16>(&self, v: S, i: usize, other: f32) -> S {
        v.keep(self.low.saturating_sub(i), self.high - i, S::splat(other))
    }

    #[inline(always)]
    unsafe fn score<P: Cached, const MASKED: bool>(&self, i: usize) -> P::Acc {
        // SAFETY: the caller vouches for a group of sixteen.
        let score = unsafe {
            let score = P::Acc::load(self.scores.add(i));
            if P::SCALED { score.mul(P::Acc::load(self.scales.add(i))) } else { score }
        };
        if MASKED { self.seen(score, i, f32::NEG_INFINITY) } else { score }
    }

    /// The greatest scores of some groups, lane by lane, or what was greater before.
    #[inline(always)]
    unsafe fn greatest<P: Cached, const MASKED: bool>(
        &self,
        groups: Range<usize>,
        mut greatest: P::Acc,
    ) -> P::Acc {
        for i in groups.step_by(16) {
            // SAFETY: the caller vouches for the groups.
            greatest = greatest.max(unsafe { self.score::<P, MASKED>(i) });
        }
        greatest
    }

    /// Writes some groups' probabilities, and adds them to `sums`.
    #[inline(always)]
    unsafe fn exp<P: Cached, const MASKED: bool>(
        &self,
        groups: Range<usize>,
        (factor, below): (f32, f32),
        probabilities: *mut P::X,
        mut sums: P::Acc,
    ) -> P::Acc {
        let (factor, below) = (P::Acc::splat(factor), P::Acc::splat(below));
        for i in groups.step_by(16) {
            // SAFETY: the caller vouches for the groups.
            unsafe {
                let mut p = P::exp(self.score::<P, MASKED>(i).mul_add(factor, below));
                sums = sums.add(p);
                if P::SCALED {
                    p = p.mul(P::Acc::load(self.scales.add(SPAN + i)));
                    if MASKED {
                        p = self.seen(p, i, 0.0);
                    }
                }
                P::put(p, probabilities.add(i));
            }
        }
        sums
    }
}
