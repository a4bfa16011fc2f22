//! One span: scores, softmax and values of a tile of query vectors.
#![allow(unsafe_code, reason = "kernels work through pointers")]
#![allow(clippy::needless_range_loop, reason = "register tiles read best by their indices")]

use super::{SPAN, Softmax, TILE_VECTORS};
use crate::backend::cpu::kv::LayerKv;
use crate::backend::cpu::math;
use crate::backend::cpu::simd::Simd16;
use crate::ids::BlockId;

/// Element types of the cache.
pub(super) trait Cached {
    /// Reads 16 elements.
    unsafe fn load<S: Simd16>(base: *const u8, at: usize) -> S;
    /// Reads 8 elements at each of two places.
    unsafe fn load_halves<S: Simd16>(base: *const u8, low: usize, high: usize) -> S;
}

impl Cached for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd16>(base: *const u8, at: usize) -> S {
        // SAFETY: the caller vouches for the elements.
        unsafe { S::load(base.cast::<f32>().add(at)) }
    }

    #[inline(always)]
    unsafe fn load_halves<S: Simd16>(base: *const u8, low: usize, high: usize) -> S {
        let base = base.cast::<f32>();
        // SAFETY: the caller vouches for the elements.
        unsafe { S::load_halves(base.add(low), base.add(high)) }
    }
}

impl Cached for half::bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd16>(base: *const u8, at: usize) -> S {
        // SAFETY: the caller vouches for the elements.
        unsafe { S::load_bf16(base.cast::<u16>().add(at)) }
    }

    #[inline(always)]
    unsafe fn load_halves<S: Simd16>(base: *const u8, low: usize, high: usize) -> S {
        let base = base.cast::<u16>();
        // SAFETY: the caller vouches for the elements.
        unsafe { S::load_bf16_halves(base.add(low), base.add(high)) }
    }
}

/// What a tile's spans work on.
pub(super) struct Tile<'a> {
    pub(super) kv: &'a LayerKv,
    pub(super) kv_head: usize,
    /// The sequence's blocks.
    pub(super) blocks: &'a [BlockId],
    /// `[TILE_VECTORS][dim]`.
    pub(super) queries: *const f32,
    /// `[TILE_VECTORS][SPAN]`: scores, then probabilities.
    pub(super) scores: *mut f32,
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
    fn visible(&self, v: usize, start: usize) -> (usize, usize) {
        let low = self.low[v].saturating_sub(start).min(SPAN);
        (low, self.high[v].saturating_sub(start).min(SPAN).max(low))
    }
}

/// Computes span number `span` of every query vector.
#[inline(always)]
pub(super) unsafe fn run<S: Simd16, E: Cached, const N: usize>(
    t: &Tile<'_>,
    rows: &Rows,
    span: usize,
) -> [Softmax; TILE_VECTORS] {
    let start = span * SPAN;
    let from = rows.visible(0, start).0;
    let to = rows.visible(rows.count - 1, start).1;
    let mut results = [Softmax::EMPTY; TILE_VECTORS];
    // SAFETY: by `attend`'s contract.
    unsafe {
        let mut group = from / 16;
        while group * 16 < to {
            if group * 16 + N * 16 <= to.next_multiple_of(16) {
                scores_of::<S, E, N>(t, rows, start, group);
                group += N;
            } else {
                scores_of::<S, E, 1>(t, rows, start, group);
                group += 1;
            }
        }
        for v in 0..rows.count {
            let (low, high) = rows.visible(v, start);
            if low < high {
                results[v] = softmax::<S>(t.scores.add(v * SPAN), low, high);
            }
        }
        let mut v = 0;
        while v < rows.count {
            let step = if rows.count - v >= 4 { 4 } else { rows.count - v };
            match step {
                4 => values_of::<S, E, 4, N>(t, rows, start, v),
                3 => {
                    values_of::<S, E, 2, N>(t, rows, start, v);
                    values_of::<S, E, 1, N>(t, rows, start, v + 2);
                }
                2 => values_of::<S, E, 2, N>(t, rows, start, v),
                _ => values_of::<S, E, 1, N>(t, rows, start, v),
            }
            v += step;
        }
    }
    results
}

/// Scores of all vectors at `N` groups of sixteen positions.
#[inline(always)]
unsafe fn scores_of<S: Simd16, E: Cached, const N: usize>(
    t: &Tile<'_>,
    rows: &Rows,
    start: usize,
    group: usize,
) {
    let size = t.kv.block_size;
    let whole = size.is_multiple_of(16);
    let unit = if whole { 16 } else { 8 };
    // Lanes past the sequence's blocks read its last ones; they are masked later.
    let last = t.blocks.len() * size - unit;
    let place = |position: usize| {
        let position = position.min(last);
        t.kv.k_index(t.blocks[position / size].index(), t.kv_head, position % size)
    };
    let (mut low, mut high) = ([0; N], [0; N]);
    for n in 0..N {
        let position = start + (group + n) * 16;
        (low[n], high[n]) = (place(position), place(position + 8));
    }
    let mut v = 0;
    while v < rows.count {
        // SAFETY: the caller's contract; vectors stay below `rows.count`.
        unsafe {
            let left = rows.count - v;
            if left >= 4 {
                score_tile::<S, E, 4, N>(t, v, group, &low, &high, whole);
                v += 4;
            } else if left >= 2 {
                score_tile::<S, E, 2, N>(t, v, group, &low, &high, whole);
                v += 2;
            } else {
                score_tile::<S, E, 1, N>(t, v, group, &low, &high, whole);
                v += 1;
            }
        }
    }
}

/// `R` vectors by `N` groups of positions: each score one chain along the head's elements.
#[inline(always)]
unsafe fn score_tile<S: Simd16, E: Cached, const R: usize, const N: usize>(
    t: &Tile<'_>,
    vector: usize,
    group: usize,
    low: &[usize; N],
    high: &[usize; N],
    whole: bool,
) {
    let (dim, size) = (t.kv.dim, t.kv.block_size);
    let mut acc = [[S::splat(0.0); N]; R];
    // SAFETY: `low` and `high` are places of the cache at dimension 0, `size` apart from one
    // dimension to the next; vectors are in range.
    unsafe {
        let queries = t.queries.add(vector * dim);
        for i in 0..dim {
            let mut keys = [S::splat(0.0); N];
            for n in 0..N {
                keys[n] = if whole {
                    E::load(t.kv.k, low[n] + i * size)
                } else {
                    E::load_halves(t.kv.k, low[n] + i * size, high[n] + i * size)
                };
            }
            for r in 0..R {
                let q = S::splat(*queries.add(r * dim + i));
                for n in 0..N {
                    acc[r][n] = keys[n].mul_add(q, acc[r][n]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                let to = t.scores.add((vector + r) * SPAN + (group + n) * 16);
                acc.mul(S::splat(t.scale)).store(to);
            }
        }
    }
}

/// Turns the scores of one vector into probabilities, not yet divided by their sum.
#[inline(always)]
unsafe fn softmax<S: Simd16>(scores: *mut f32, low: usize, high: usize) -> Softmax {
    let hidden = S::splat(f32::NEG_INFINITY);
    let (first, end) = (low / 16 * 16, high.next_multiple_of(16));
    // SAFETY: the caller vouches for the groups that hold `low..high`.
    unsafe {
        let visible = |i: usize| {
            let (from, to) = (low.saturating_sub(i), high - i);
            S::load(scores.add(i)).keep(from, to, hidden)
        };
        let mut greatest = hidden;
        for i in (first..end).step_by(16) {
            greatest = greatest.max(visible(i));
        }
        let max = greatest.greatest();
        let mut sums = S::splat(0.0);
        for i in (first..end).step_by(16) {
            let p = math::exp(visible(i).sub(S::splat(max)));
            p.store(scores.add(i));
            sums = sums.add(p);
        }
        Softmax { max, sum: sums.sum() }
    }
}

/// Values of `R` vectors, each over its visible positions in ascending order: those that all `R`
/// see go together, those before and after one vector at a time.
#[inline(always)]
unsafe fn values_of<S: Simd16, E: Cached, const R: usize, const N: usize>(
    t: &Tile<'_>,
    rows: &Rows,
    start: usize,
    vector: usize,
) {
    let (common_low, _) = rows.visible(vector + R - 1, start);
    let (_, common_high) = rows.visible(vector, start);
    let common = (common_low, common_high.max(common_low));
    let width = t.kv.dim_padded;
    // SAFETY: the caller's contract; ranges stay within what each vector sees.
    unsafe {
        let values = t.values.add(vector * width);
        std::slice::from_raw_parts_mut(values, R * width).fill(0.0);
        if R > 1 {
            for r in 0..R {
                let (low, high) = rows.visible(vector + r, start);
                accumulate::<S, E, 1, N>(t, start, (low, high.min(common.0)), vector + r);
            }
        }
        accumulate::<S, E, R, N>(t, start, common, vector);
        if R > 1 {
            for r in 0..R {
                let (low, high) = rows.visible(vector + r, start);
                accumulate::<S, E, 1, N>(t, start, (low.max(common.1), high), vector + r);
            }
        }
    }
}

/// Adds positions `range` of the span to the values of `R` vectors.
#[inline(always)]
unsafe fn accumulate<S: Simd16, E: Cached, const R: usize, const N: usize>(
    t: &Tile<'_>,
    start: usize,
    range: (usize, usize),
    vector: usize,
) {
    if range.0 >= range.1 {
        return;
    }
    let mut column = 0;
    while column < t.kv.dim_padded {
        // SAFETY: the caller's contract; columns stay within the padded head.
        unsafe {
            if column + N * 16 <= t.kv.dim_padded {
                value_tile::<S, E, R, N>(t, start, range, vector, column);
                column += N * 16;
            } else {
                value_tile::<S, E, R, 1>(t, start, range, vector, column);
                column += 16;
            }
        }
    }
}

/// `R` vectors by `N` vectors of columns.
#[inline(always)]
unsafe fn value_tile<S: Simd16, E: Cached, const R: usize, const N: usize>(
    t: &Tile<'_>,
    start: usize,
    (from, to): (usize, usize),
    vector: usize,
    column: usize,
) {
    let (width, size) = (t.kv.dim_padded, t.kv.block_size);
    let mut acc = [[S::splat(0.0); N]; R];
    // SAFETY: the caller's contract: vectors, columns and positions are in range.
    unsafe {
        let values = t.values.add(vector * width + column);
        let scores = t.scores.add(vector * SPAN);
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = S::load(values.add(r * width + n * 16));
            }
        }
        let mut at = from;
        while at < to {
            let (block, slot) = ((start + at) / size, (start + at) % size);
            let end = to.min(at + size - slot);
            let mut place = t.kv.v_index(t.blocks[block].index(), t.kv_head, slot) + column;
            while at < end {
                let mut v = [S::splat(0.0); N];
                for n in 0..N {
                    v[n] = E::load(t.kv.v, place + n * 16);
                }
                for r in 0..R {
                    let p = S::splat(*scores.add(r * SPAN + at));
                    for n in 0..N {
                        acc[r][n] = v[n].mul_add(p, acc[r][n]);
                    }
                }
                place += width;
                at += 1;
            }
        }
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(values.add(r * width + n * 16));
            }
        }
    }
}
