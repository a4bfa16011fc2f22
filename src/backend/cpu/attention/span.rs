//! One span: scores, softmax and values of a tile of query vectors.
//!
//! Scores and values are `linear::Panel`s, too: sixteen positions are the outputs of a step along
//! the head's elements, sixteen elements those of a step along the positions.
#![allow(unsafe_code, reason = "kernels work through pointers")]
#![allow(clippy::needless_range_loop, reason = "register tiles read best by their indices")]

use super::cached::Cached;
use super::few;
use super::places::{AHEAD, EIGHTS, Keys, Next, Places, Values};
use super::softmax::softmax;
use super::{SPAN, Softmax, TILE_VECTORS};
use crate::backend::cpu::kv::LayerKv;
use crate::backend::cpu::linear::Panel;
use crate::backend::cpu::simd::Simd16;
use crate::ids::BlockId;

/// What a tile's spans work on.
pub(super) struct Tile<'a, X> {
    pub(super) kv: &'a LayerKv,
    /// The first KV head.
    pub(super) kv_head: usize,
    /// How many; their vectors follow each other. More than one only where `few` serves.
    pub(super) kv_heads: usize,
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
    /// `[2][SPAN]`: scales of int8 keys and values.
    pub(super) scales: *mut f32,
    /// `WIDENED` bytes and more: keys or values of int8 as many vectors read them.
    pub(super) widened: *mut u8,
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

    /// Whether each of the vectors sees something of the span from `start`.
    #[inline(always)]
    pub(super) fn all_see(&self, vectors: std::ops::Range<usize>, start: usize) -> bool {
        let mut all = true;
        for v in vectors {
            let (low, high) = self.visible(v, start);
            all &= low < high;
        }
        all
    }
}

/// Most groups of sixteen that are computed side by side.
const GROUPS: usize = 2;
/// Steps of values in a span, or of keys where heads are no longer than that.
const WIDENED_STEPS: usize = SPAN / 2;
/// Bytes of widened values.
pub(super) const WIDENED: usize = GROUPS * WIDENED_STEPS * WIDEST_STEP;
/// Bytes of a step of the widest panel that int8 is widened to.
pub(super) const WIDEST_STEP: usize = 128;

/// Computes span number `span` of every query vector, and asks for the keys of the `next`.
#[inline(always)]
pub(super) unsafe fn run<P: Cached, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    span: usize,
    next: Option<Next<'_>>,
) -> [Softmax; TILE_VECTORS] {
    const { assert!(N <= GROUPS && P::Widened::STEP_BYTES <= WIDEST_STEP) };
    if P::TILES {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by `attend`'s contract.
        return unsafe { super::tiles::run::<P>(t, rows, span) };
    }
    let start = span * SPAN;
    // What any of the vectors sees, in whole groups of sixteen positions at its beginning.
    let from = rows.visible(0, start).0 / 16 * 16;
    let to = rows.visible(rows.count - 1, start).1;
    if const { R * N >= few::ACCUMULATORS } && few::serves(t.kv, rows.count / t.kv_heads) {
        // SAFETY: by `attend`'s contract.
        return unsafe { few::run::<P>(t, rows, (start, from, to), next) };
    }
    let mut results = [Softmax::EMPTY; TILE_VECTORS];
    let eights = from / 8..to.next_multiple_of(16) / 8;
    let places = Places::new::<P>(t, start, eights.clone());
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
        if P::SCALED {
            places.gather(t, eights);
        }
        softmax::<P>(t, rows, start, (from, to), &mut results);
        let (mut group, groups) = (0, t.kv.dim_padded / 16);
        let mut ahead = places.values;
        if let Some(next) = next
            && asks::<R>(rows)
        {
            next.keys(t.kv, &mut ahead);
        }
        while group < groups {
            if group + N <= groups {
                values_of::<P, R, N>(t, rows, &places, (start, from, to), group, &ahead);
                group += N;
            } else {
                values_of::<P, R, 1>(t, rows, &places, (start, from, to), group, &ahead);
                group += 1;
            }
        }
    }
    results
}

/// Whether values ask for the keys that come next: where many vectors share what is read, reading
/// is not what takes time.
#[inline(always)]
fn asks<const R: usize>(rows: &Rows) -> bool {
    rows.count <= R
}

/// Whether int8 is converted as it is read: by few vectors, where `few` has no registers for them.
/// Where many read it, it pays to convert it beforehand.
#[inline(always)]
fn reads_bytes<const R: usize, const N: usize>(rows: &Rows) -> bool {
    (const { R * N < few::ACCUMULATORS }) && rows.count <= R
}

/// Scores of all vectors at `N` groups of sixteen positions.
#[inline(always)]
unsafe fn scores_of<P: Cached, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    places: &Places,
    at: (usize, usize),
) {
    let group = at.1;
    let mut keys = Keys {
        low: [places.keys[2 * group]; N],
        high: [places.keys[2 * group + 1]; N],
        apart: t.kv.k_apart(),
        next: [places.keys[2 * group + AHEAD]; N],
        values: [places.values[2 * group]; N],
        whole: places.run == 16,
    };
    for n in 1..N {
        let eight = 2 * (group + n);
        (keys.low[n], keys.high[n]) = (places.keys[eight], places.keys[eight + 1]);
        (keys.next[n], keys.values[n]) = (places.keys[eight + AHEAD], places.values[eight]);
    }
    // SAFETY: the caller's contract; the scratch holds `N` groups of keys.
    unsafe {
        if const { !P::SCALED } || reads_bytes::<R, N>(rows) {
            return scores::<P, R, N>(t, rows, at, &keys);
        }
        let (steps, bytes) = (t.kv.dim.div_ceil(P::STEP), P::Widened::STEP_BYTES);
        for n in 0..N {
            let to = t.widened.add(n * steps * bytes);
            for step in 0..steps {
                P::widen(keys.weights::<P>(n, step), to.add(step * bytes));
            }
            keys.low[n] = to;
        }
        (keys.apart, keys.whole) = (bytes, true);
        scores::<P::Widened, R, N>(t, rows, at, &keys);
    }
}

/// Scores of all vectors, `R` by `R` and the rest in smaller tiles.
#[inline(always)]
unsafe fn scores<P: Cached, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    at: (usize, usize),
    keys: &Keys<N>,
) {
    let mut v = 0;
    while v < rows.count {
        let left = rows.count - v;
        // SAFETY: the caller's contract; vectors stay below `rows.count`.
        v += unsafe {
            if left >= R {
                score_chunk::<P, R, N>(t, rows, v, at, keys)
            } else if const { R > 4 } && left >= 4 {
                score_chunk::<P, 4, N>(t, rows, v, at, keys)
            } else if const { R > 2 } && left >= 2 {
                score_chunk::<P, 2, N>(t, rows, v, at, keys)
            } else {
                score_chunk::<P, 1, N>(t, rows, v, at, keys)
            }
        };
    }
}

/// `R` vectors, unless none of them sees these groups. The first ones ask for what comes next.
#[inline(always)]
unsafe fn score_chunk<P: Cached, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    v: usize,
    (start, group): (usize, usize),
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

/// `R` vectors by `N` groups of positions: each score one chain along the head's elements.
#[inline(always)]
unsafe fn score_tile<P: Panel, const R: usize, const N: usize, const ASK: bool>(
    t: &Tile<'_, P::X>,
    vector: usize,
    group: usize,
    keys: &Keys<N>,
) {
    let (width, apart, value_bytes) = (t.kv.dim_padded, t.kv.k_apart(), t.kv.v_step_bytes());
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the keys are places of the cache or widened; the last step is padded with zeros as
    // queries are; vectors are in range.
    unsafe {
        let queries = t.queries.add(vector * width);
        for step in 0..t.kv.dim.div_ceil(P::STEP) {
            // Not `array::from_fn`: what it calls may be compiled without the path's features.
            let mut weights = [keys.weights::<P>(0, step); N];
            for n in 0..N {
                if ASK {
                    P::Acc::prefetch(keys.next[n].wrapping_add(step * apart));
                    P::Acc::prefetch_l2(keys.values[n].wrapping_add(step * value_bytes));
                }
                if n > 0 {
                    weights[n] = keys.weights::<P>(n, step);
                }
            }
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

/// Values of all vectors in `N` groups of sixteen columns; `from..to` are the positions that any of
/// them sees.
#[inline(always)]
unsafe fn values_of<P: Cached, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    places: &Places,
    (start, from, to): (usize, usize, usize),
    group: usize,
    next: &[*const u8; EIGHTS],
) {
    let apart = t.kv.v_apart();
    let mut values = Values { places: places.values, apart, next: *next, next_apart: apart };
    for i in 0..EIGHTS {
        values.places[i] = values.places[i].wrapping_add(group * apart);
        values.next[i] = values.next[i].wrapping_add(group * apart);
    }
    // SAFETY: the caller's contract; the scratch holds `N` groups of a span.
    unsafe {
        if const { !P::SCALED } || reads_bytes::<R, N>(rows) {
            return values_by_rows::<P, R, N>(t, rows, start, group, &values);
        }
        let bytes = P::Widened::STEP_BYTES;
        for n in 0..N {
            for step in from / P::STEP..to.div_ceil(P::STEP) {
                let weights = P::weights(values.at::<P>(n, step * P::STEP));
                P::widen(weights, t.widened.add((n * WIDENED_STEPS + step) * bytes));
            }
        }
        values.apart = WIDENED_STEPS * bytes;
        for i in 0..EIGHTS {
            values.places[i] = t.widened.cast_const().wrapping_add(i * 8 / P::STEP * bytes);
        }
        values_by_rows::<P::Widened, R, N>(t, rows, start, group, &values);
    }
}

/// Values of all vectors, `R` by `R` and the rest in smaller tiles.
#[inline(always)]
unsafe fn values_by_rows<P: Cached, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    start: usize,
    group: usize,
    values: &Values,
) {
    let mut v = 0;
    while v < rows.count {
        let (left, at) = (rows.count - v, (v, group));
        // SAFETY: the caller's contract; vectors stay below `rows.count`.
        v += unsafe {
            if left >= R {
                value_chunk::<P, R, N>(t, rows, start, at, values)
            } else if const { R > 4 } && left >= 4 {
                value_chunk::<P, 4, N>(t, rows, start, at, values)
            } else if const { R > 2 } && left >= 2 {
                value_chunk::<P, 2, N>(t, rows, start, at, values)
            } else {
                value_chunk::<P, 1, N>(t, rows, start, at, values)
            }
        };
    }
}

/// `R` vectors, over the positions that they see.
#[inline(always)]
unsafe fn value_chunk<P: Cached, const R: usize, const N: usize>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    start: usize,
    (vector, group): (usize, usize),
    values: &Values,
) -> usize {
    let low = rows.visible(vector, start).0 / 16 * 16;
    let range = (low, rows.visible(vector + R - 1, start).1);
    // SAFETY: the caller's contract.
    unsafe {
        if vector == 0 && asks::<R>(rows) {
            value_tile::<P, R, N, true>(t, values, range, vector, group);
        } else {
            value_tile::<P, R, N, false>(t, values, range, vector, group);
        }
    }
    R
}

/// `R` vectors by `N` groups of sixteen columns: each one chain over the positions, ascending. A
/// position that a vector does not see has a probability of 0 and changes no bit of its chain.
#[inline(always)]
unsafe fn value_tile<P: Panel, const R: usize, const N: usize, const ASK: bool>(
    t: &Tile<'_, P::X>,
    values: &Values,
    (from, to): (usize, usize),
    vector: usize,
    group: usize,
) {
    let mut acc = [[P::Acc::splat(0.0); N]; R];
    // SAFETY: the caller's contract: vectors, columns and positions are in range. The last
    // position may stand alone in its step: what lies behind it was perhaps never written.
    unsafe {
        let probabilities = t.probabilities.add(vector * SPAN);
        // One loop, not one for each block: the accumulators stay in registers.
        for step in from / P::STEP..to / P::STEP {
            let at = step * P::STEP;
            let mut weights = [P::weights(values.at::<P>(0, at)); N];
            for n in 0..N {
                if ASK {
                    P::Acc::prefetch_l2(values.next::<P>(n, at));
                }
                if n > 0 {
                    weights[n] = P::weights(values.at::<P>(n, at));
                }
            }
            accumulate::<P, R, N>(&mut acc, probabilities.add(at), weights);
        }
        if to % P::STEP != 0 {
            let at = to - 1;
            let mut weights = [P::first(P::weights(values.at::<P>(0, at))); N];
            for n in 1..N {
                weights[n] = P::first(P::weights(values.at::<P>(n, at)));
            }
            accumulate::<P, R, N>(&mut acc, probabilities.add(at), weights);
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
pub(super) unsafe fn accumulate<P: Panel, const R: usize, const N: usize>(
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
