//! One span: scores, softmax and values of a tile of query vectors.
//!
//! Scores and values are `linear::Panel`s, too: sixteen positions are the outputs of a step along
//! the head's elements, sixteen elements those of a step along the positions.
#![allow(unsafe_code, reason = "kernels work through pointers")]
#![allow(clippy::needless_range_loop, reason = "register tiles read best by their indices")]

use super::{SPAN, Softmax, TILE_VECTORS};
use crate::backend::cpu::kv::LayerKv;
use crate::backend::cpu::linear::Panel;
use crate::backend::cpu::simd::Simd16;
use crate::ids::BlockId;

/// What a tile's spans work on.
pub(super) struct Tile<'a, X> {
    pub(super) kv: &'a LayerKv,
    pub(super) kv_head: usize,
    /// The sequence's blocks.
    pub(super) blocks: &'a [BlockId],
    /// `[TILE_VECTORS][dim_padded]`.
    pub(super) queries: *const X,
    /// `[TILE_VECTORS][SPAN]`, before the factor.
    pub(super) scores: *mut f32,
    /// `[TILE_VECTORS][SPAN]`, not yet divided by their sum.
    pub(super) probabilities: *mut X,
    /// `[TILE_VECTORS][dim_padded]`: the span's result, not yet divided by the sum.
    pub(super) values: *mut f32,
    pub(super) scale: f32,
}

/// The positions `low <= p < high` that each query vector sees; both ascend with the vectors.
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) low: [usize; TILE_VECTORS],
    pub(super) high: [usize; TILE_VECTORS],
}

impl Rows {
    /// What vector `v` sees of the span from `start`, relative to it.
    #[inline(always)]
    pub(super) fn visible(&self, v: usize, start: usize) -> (usize, usize) {
        let low = self.low[v].saturating_sub(start).min(SPAN);
        (low, self.high[v].saturating_sub(start).min(SPAN).max(low))
    }
}

/// Where the keys and values of a span lie, for every eight positions.
struct Places {
    /// Keys, from their first element on; some behind the span, to be asked for.
    keys: [*const u8; EIGHTS + AHEAD],
    /// Values, from their first sixteen elements on.
    values: [*const u8; EIGHTS],
    /// Positions that lie together: 16 or 8.
    run: usize,
}

impl Places {
    /// Of the eights `range` of the span from `start`. Eights past the sequence's blocks repeat its
    /// last ones; they are masked later.
    #[inline(always)]
    fn new<X>(t: &Tile<'_, X>, start: usize, range: std::ops::Range<usize>) -> Self {
        let size = t.kv.block_size;
        let run = if size.is_multiple_of(16) { 16 } else { 8 };
        let mut places = Self { keys: [t.kv.k; _], values: [t.kv.v; _], run };
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
            }
            slot += 8;
            if slot >= size {
                (block, slot) = (block + 1, 0);
            }
        }
        places
    }
}

/// Eights of a span.
const EIGHTS: usize = SPAN / 8;
/// Eights of keys that are asked for before they are used.
const AHEAD: usize = 8;

/// Computes span number `span` of every query vector.
#[inline(always)]
pub(super) unsafe fn run<P: Panel, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    span: usize,
) -> [Softmax; TILE_VECTORS] {
    if P::TILES {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by `attend`'s contract.
        return unsafe { super::tiles::run::<P>(t, rows, span) };
    }
    let start = span * SPAN;
    // What any of the vectors sees, in whole groups of sixteen positions at its beginning.
    let from = rows.visible(0, start).0 / 16 * 16;
    let to = rows.visible(rows.count - 1, start).1;
    let mut results = [Softmax::EMPTY; TILE_VECTORS];
    let places = Places::new(t, start, from / 8..to.next_multiple_of(16) / 8);
    // SAFETY: by `attend`'s contract.
    unsafe {
        let mut group = from / 16;
        while group * 16 < to {
            if (group + N) * 16 <= to.next_multiple_of(16) {
                scores_of::<P, R, N>(t, rows, &places, (start, group));
                group += N;
            } else {
                scores_of::<P, R, 1>(t, rows, &places, (start, group));
                group += 1;
            }
        }
        for v in 0..rows.count {
            let scores = t.scores.add(v * SPAN);
            let to_p = t.probabilities.add(v * SPAN);
            results[v] = softmax::<P>(scores, to_p, rows.visible(v, start), (from, to), t.scale);
        }
        let mut v = 0;
        while v < rows.count {
            let left = rows.count - v;
            v += if left >= R {
                values_of::<P, R, N>(t, rows, &places, (start, v))
            } else if left >= 4 {
                values_of::<P, 4, N>(t, rows, &places, (start, v))
            } else if left >= 2 {
                values_of::<P, 2, N>(t, rows, &places, (start, v))
            } else {
                values_of::<P, 1, N>(t, rows, &places, (start, v))
            };
        }
    }
    results
}

/// Scores of all vectors at `N` groups of sixteen positions.
#[inline(always)]
unsafe fn scores_of<P: Panel, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    places: &Places,
    (start, group): (usize, usize),
) {
    let keys = Keys {
        low: std::array::from_fn(|n| places.keys[2 * (group + n)]),
        high: std::array::from_fn(|n| places.keys[2 * (group + n) + 1]),
        next: std::array::from_fn(|n| places.keys[2 * (group + n) + AHEAD]),
        values: std::array::from_fn(|n| places.values[2 * (group + n)]),
        whole: places.run == 16,
    };
    let mut v = 0;
    while v < rows.count {
        let left = rows.count - v;
        // SAFETY: the caller's contract; vectors stay below `rows.count`.
        v += unsafe {
            if left >= R {
                score_chunk::<P, R, N>(t, rows, start, (v, group), &keys)
            } else if left >= 4 {
                score_chunk::<P, 4, N>(t, rows, start, (v, group), &keys)
            } else if left >= 2 {
                score_chunk::<P, 2, N>(t, rows, start, (v, group), &keys)
            } else {
                score_chunk::<P, 1, N>(t, rows, start, (v, group), &keys)
            }
        };
    }
}

/// `R` vectors, unless none of them sees these groups. The first ones ask for what comes next.
#[inline(always)]
unsafe fn score_chunk<P: Panel, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    start: usize,
    (v, group): (usize, usize),
    keys: &Keys<N>,
) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        if v == 0 {
            score_tile::<P, R, N, true>(t, v, group, keys);
        } else if rows.visible(v + R - 1, start).1 > group * 16 {
            score_tile::<P, R, N, false>(t, v, group, keys);
        }
    }
    R
}

/// Where the first elements of `N` groups of keys lie.
struct Keys<const N: usize> {
    /// The first eight of each group.
    low: [*const u8; N],
    /// The others: behind them where blocks hold whole groups.
    high: [*const u8; N],
    /// The keys to be asked for.
    next: [*const u8; N],
    /// The values of these groups, to be asked for.
    values: [*const u8; N],
    whole: bool,
}

/// `R` vectors by `N` groups of positions: each score one chain along the head's elements.
#[inline(always)]
unsafe fn score_tile<P: Panel, const R: usize, const N: usize, const ASK: bool>(
    t: &Tile<'_, P::X>,
    vector: usize,
    group: usize,
    keys: &Keys<N>,
) {
    let (width, apart) = (t.kv.dim_padded, 4 * t.kv.block_size);
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the keys are places of the cache; steps are `apart` bytes apart, the last one padded
    // with zeros as queries are; vectors are in range.
    unsafe {
        let queries = t.queries.add(vector * width);
        for step in 0..t.kv.dim.div_ceil(P::STEP) {
            let weights: [P::W; N] = std::array::from_fn(|n| {
                if ASK {
                    P::Acc::prefetch(keys.next[n].wrapping_add(step * apart));
                    P::Acc::prefetch_l2(keys.values[n].wrapping_add(step * 64));
                }
                let low = keys.low[n].add(step * apart);
                if keys.whole {
                    P::weights(low)
                } else {
                    P::weights_halves(low, keys.high[n].add(step * apart))
                }
            });
            for r in 0..R {
                let q = P::broadcast(queries.add(r * width + step * P::STEP));
                for n in 0..N {
                    acc[r][n] = P::step(acc[r][n], weights[n], q);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                let to = t.scores.add((vector + r) * SPAN + (group + n) * 16);
                acc.store(to);
            }
        }
    }
}

/// Turns the scores of one vector into probabilities, not yet divided by their sum: those of
/// `low..high`, and 0 for the other positions of the groups of `from..to`.
#[inline(always)]
pub(super) unsafe fn softmax<P: Panel>(
    scores: *const f32,
    probabilities: *mut P::X,
    (low, high): (usize, usize),
    (from, to): (usize, usize),
    scale: f32,
) -> Softmax {
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
        let visible =
            |i: usize| P::Acc::load(scores.add(i)).keep(low.saturating_sub(i), high - i, hidden);
        let mut greatest = hidden;
        for i in (first..end).step_by(16) {
            greatest = greatest.max(visible(i));
        }
        let max = greatest.greatest() * scale;
        let (factor, below) = (P::Acc::splat(scale), P::Acc::splat(-max));
        let mut sums = zero;
        for i in (first..end).step_by(16) {
            let p = P::exp(visible(i).mul_add(factor, below));
            P::put(p, probabilities.add(i));
            sums = sums.add(p);
        }
        Softmax { max, sum: sums.sum() }
    }
}

/// Values of `R` vectors: each one chain over the positions, ascending. A position that a vector
/// does not see has a probability of 0 and changes no bit of its chain.
#[inline(always)]
unsafe fn values_of<P: Panel, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    places: &Places,
    (start, vector): (usize, usize),
) -> usize {
    let groups = t.kv.dim_padded / 16;
    let low = rows.visible(vector, start).0 / 16 * 16;
    let range = (low, rows.visible(vector + R - 1, start).1);
    let mut group = 0;
    while group < groups {
        // SAFETY: the caller's contract; columns stay within the padded head.
        unsafe {
            if group + N <= groups {
                value_tile::<P, R, N>(t, places, range, vector, group);
                group += N;
            } else {
                value_tile::<P, R, 1>(t, places, range, vector, group);
                group += 1;
            }
        }
    }
    R
}

/// `R` vectors by `N` groups of sixteen columns.
#[inline(always)]
unsafe fn value_tile<P: Panel, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    places: &Places,
    (from, to): (usize, usize),
    vector: usize,
    group: usize,
) {
    // Bytes from sixteen columns to the next.
    let apart = t.kv.block_size / P::STEP * 64;
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the caller's contract: vectors, columns and positions are in range. The last
    // position may stand alone in its step: what lies behind it was perhaps never written.
    unsafe {
        let probabilities = t.probabilities.add(vector * SPAN);
        let place = |at: usize| places.values[at / 8].add(group * apart + at % 8 / P::STEP * 64);
        // One loop, not one for each block: the accumulators stay in registers.
        for step in from / P::STEP..to / P::STEP {
            let at = step * P::STEP;
            let here = place(at);
            let weights = std::array::from_fn(|n| P::weights(here.add(n * apart)));
            accumulate::<P, R, N>(&mut acc, probabilities.add(at), weights);
        }
        if to % P::STEP != 0 {
            let here = place(to - 1);
            let weights = std::array::from_fn(|n| P::first(P::weights(here.add(n * apart))));
            accumulate::<P, R, N>(&mut acc, probabilities.add(to - 1), weights);
        }
        let values = t.values.add(vector * t.kv.dim_padded + group * 16);
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(values.add(r * t.kv.dim_padded + n * 16));
            }
        }
    }
}

/// Adds one step of positions.
#[inline(always)]
unsafe fn accumulate<P: Panel, const R: usize, const N: usize>(
    acc: &mut [[P::Acc; N]; R],
    probabilities: *const P::X,
    weights: [P::W; N],
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller vouches for a step of probabilities of each vector.
        let p = unsafe { P::broadcast(probabilities.add(r * SPAN)) };
        for n in 0..N {
            acc[n] = P::step(acc[n], weights[n], p);
        }
    }
}
