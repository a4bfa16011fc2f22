//! Paged attention, flash style, in fixed spans of positions.
//!
//! ```text
//!  positions  0 ......... 256 ......... 512 ....   spans, counted from 0 whatever the chunk
//!  each span  scores ─► max m ─► exp ─► sum l ─► values acc     one order, masked by selection
//!  a row      merge span after span, ascending: (m, l, acc)     by one thread or from partials
//! ```
//! A row's result depends on its query and the cached positions alone: tiles, work items, chunks
//! and threads only decide who computes it. So prefill, decode, any batch and any number of
//! threads give the same bits. Positions that a row may not see get a probability of 0, which
//! changes no bit; slots that hold no position of the sequence are never multiplied.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::ops::Range;

use super::kv::{KvType, LayerKv};
use super::linear::{InputForm, quantized};
use super::memory::Buffer;
use super::simd::Simd16;
use crate::backend::{Heads, SeqInput};
use crate::error::Result;
use crate::ids::BlockId;

pub(crate) mod cached;
mod few;
mod places;
pub(crate) mod plan;
mod softmax;
mod span;
#[cfg(target_arch = "x86_64")]
mod tiles;

use cached::Cached;
use places::Next;
use plan::{Plan, Work};
use span::Rows;

/// Positions of a span.
pub(crate) const SPAN: usize = 256;
/// Query vectors (rows times the group's heads) that share the loads of a tile.
pub(crate) const TILE_VECTORS: usize = 32;

/// What attention works on.
pub(crate) struct AttentionArgs<'a> {
    /// `[tokens, qkv_width]`.
    pub(crate) qkv: *const f32,
    /// Queries are bf16, each in the first half of its place.
    pub(crate) narrow: bool,
    /// `[tokens, ldo]`, in `form`.
    pub(crate) out: *mut u8,
    /// Elements (quantized: bytes) from one row of `out` to the next.
    pub(crate) ldo: usize,
    /// What the next layer reads.
    pub(crate) form: InputForm,
    /// Head counts.
    pub(crate) heads: Heads,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Positions that a row sees, its own included.
    pub(crate) window: usize,
    /// The layer's cache.
    pub(crate) kv: LayerKv,
    /// The step's sequences.
    pub(crate) seqs: &'a [SeqInput],
    /// The group's flat block table.
    pub(crate) table: &'a [BlockId],
    /// Who computes what.
    pub(crate) plan: &'a Plan,
    /// Results of split tiles' spans.
    pub(crate) partials: *mut f32,
}

impl AttentionArgs<'_> {
    /// Asks for the first queries of an item that is computed soon: they lie far apart.
    #[inline(always)]
    fn ask_for_queries<S: Simd16>(&self, work: Work) {
        let group = self.heads.num_heads / self.heads.num_kv_heads;
        let (item, kv_head, per_row) =
            (&self.plan.items[work.item], work.kv_head, work.kv_heads * group);
        let (dim, width) = (self.heads.head_dim, self.heads.qkv_width());
        let bytes = dim * if self.narrow { 2 } else { 4 };
        let row = self.seqs[item.seq].query_start + item.first_row;
        let first = self.qkv.wrapping_add(row * width + kv_head * group * dim);
        for vector in 0..(item.rows * per_row).min(TILE_VECTORS) {
            let query = first.wrapping_add(vector / per_row * width + vector % per_row * dim);
            for line in 0..bytes.div_ceil(64) {
                S::prefetch_l2(query.cast::<u8>().wrapping_add(64 * line));
            }
        }
    }

    /// The span that comes after `span` of an item: its own next one, or the next item's first.
    fn next(
        &self,
        (item, seq, kv_head): (&plan::Item, &SeqInput, usize),
        span: usize,
        next: Option<Work>,
    ) -> Option<Next<'_>> {
        let blocks = |seq: &SeqInput| &self.table[seq.block_table_start..][..seq.num_blocks];
        // What the scores before it ask for reaches over a short one at the end.
        let end = seq.context_len + item.first_row + item.rows;
        if span + 1 < item.spans.end && (span + 1) * SPAN + places::AHEAD * 8 < end {
            return Some(Next { blocks: blocks(seq), kv_head, span: span + 1 });
        }
        let Work { item, kv_head, .. } = next?;
        let item = &self.plan.items[item];
        Some(Next { blocks: blocks(&self.seqs[item.seq]), kv_head, span: item.spans.start })
    }
}

/// One thread's working memory.
pub(crate) struct Scratch {
    /// `[TILE_VECTORS][SPAN]`.
    scores: Buffer<f32>,
    /// `[TILE_VECTORS][SPAN]`, f32 or narrower.
    probabilities: Buffer<f32>,
    /// `[TILE_VECTORS][dim_padded]`, a span's values.
    span: Buffer<f32>,
    /// `[TILE_VECTORS][dim_padded]`, merged so far.
    merged: Buffer<f32>,
    /// `[TILE_VECTORS][dim_padded]`, f32 or narrower.
    queries: Buffer<f32>,
    /// `[2][SPAN]`.
    scales: Buffer<f32>,
    /// Keys or values of int8, converted.
    widened: Buffer<u8>,
    /// What this thread computes after the work at hand, where that is known.
    pub(crate) next: Option<Work>,
}

impl Scratch {
    /// For heads of up to `dim_padded` elements.
    pub(crate) fn new(dim_padded: usize) -> Result<Self> {
        const NAME: &str = "attention scratch";
        let buffer = |len: usize| Buffer::zeroed(TILE_VECTORS * len, NAME);
        Ok(Self {
            scores: buffer(SPAN)?,
            probabilities: buffer(SPAN)?,
            span: buffer(dim_padded)?,
            merged: buffer(dim_padded)?,
            queries: buffer(dim_padded)?,
            scales: Buffer::zeroed(2 * SPAN, NAME)?,
            widened: Buffer::zeroed(span::WIDENED.max(dim_padded * span::WIDEST_STEP), NAME)?,
            next: None,
        })
    }
}

impl Scratch {
    /// What the spans of one KV head of a sequence work on.
    fn tile<'a, X>(
        &self,
        a: &'a AttentionArgs<'_>,
        seq: &SeqInput,
        (kv_head, kv_heads): (usize, usize),
    ) -> span::Tile<'a, X> {
        span::Tile {
            kv: &a.kv,
            kv_head,
            kv_heads,
            blocks: &a.table[seq.block_table_start..][..seq.num_blocks],
            queries: self.queries.as_ptr().cast(),
            scores: self.scores.as_ptr(),
            probabilities: self.probabilities.as_ptr().cast(),
            values: self.span.as_ptr(),
            scales: self.scales.as_ptr(),
            widened: self.widened.as_ptr(),
            scale: a.scale,
        }
    }
}

/// The running result of one query vector over the spans so far.
#[derive(Clone, Copy)]
struct Softmax {
    /// Greatest score.
    max: f32,
    /// Sum of `exp(score - max)`; 0 when no position was seen.
    sum: f32,
}

impl Softmax {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// No position seen: a NaN sum is not that.
    #[inline(always)]
    fn is_empty(self) -> bool {
        self.sum == 0.0
    }

    /// Merges a later span into this one; both have values of `dim_padded` elements.
    #[inline(always)]
    unsafe fn merge<S: Simd16>(
        &mut self,
        acc: *mut f32,
        later: Self,
        values: *const f32,
        dim_padded: usize,
    ) {
        if later.is_empty() {
            return;
        }
        // `exp(0)` is exactly 1, so one of the two is never computed.
        let first = self.is_empty();
        let (max, mine, theirs) = if first {
            (later.max, 0.0, 1.0)
        } else if self.max > later.max {
            (self.max, 1.0, super::math::exp_scalar::<S>(later.max - self.max))
        } else {
            (later.max, super::math::exp_scalar::<S>(self.max - later.max), 1.0)
        };
        *self = if first { later } else { Self { max, sum: self.sum * mine + later.sum * theirs } };
        let (mine, theirs) = (S::splat(mine), S::splat(theirs));
        for i in (0..dim_padded).step_by(16) {
            // SAFETY: the caller vouches for `dim_padded` elements of both.
            unsafe {
                let v = S::load(values.add(i));
                if first {
                    v.store(acc.add(i));
                } else {
                    S::load(acc.add(i)).mul(mine).add(v.mul(theirs)).store(acc.add(i));
                }
            }
        }
    }

    /// Writes `acc / sum` as the result of a row's head; what is in `acc` is lost.
    #[inline(always)]
    unsafe fn finish<S: Simd16>(
        self,
        acc: *mut f32,
        a: &AttentionArgs<'_>,
        (row, head): (usize, usize),
    ) {
        let inverse = S::splat(1.0 / self.sum);
        let (dim, first) = (a.heads.head_dim, head * a.heads.head_dim);
        // SAFETY: the caller vouches for a head in `acc` and for the row. Forms other than f32 are
        // asked for where heads are whole vectors (`ConvertArgs::fits_heads`), or whole groups.
        unsafe {
            let out = a.out.add(row * a.ldo * a.form.bytes());
            for i in (0..dim).step_by(16) {
                let n = (dim - i).min(16);
                let v = S::load_first(acc.add(i), n).mul(inverse);
                match a.form {
                    InputForm::F32 => v.store_first(out.cast::<f32>().add(first + i), n),
                    InputForm::Int8 { .. } => v.store(acc.add(i)),
                    form => form.put(v, out, first + i),
                }
            }
            if let InputForm::Int8 { group, zero } = a.form {
                let (x, groups) = (acc.wrapping_sub(first), first / group..(first + dim) / group);
                quantized::quantize::<S>((x, a.heads.q_width()), out, (group, zero), groups);
            }
        }
    }
}

/// Computes a work item for some KV heads, with panels `P` over a cache of what they read.
#[inline(always)]
pub(crate) unsafe fn attend<P: Cached, const R: usize, const N: usize>(
    a: &AttentionArgs<'_>,
    work: Work,
    scratch: &mut Scratch,
) {
    let item = &a.plan.items[work.item];
    let group = a.heads.num_heads / a.heads.num_kv_heads;
    debug_assert_eq!(P::SCALED, a.kv.kind == KvType::Int8, "the cache's panels");
    let at_once = match few::takes_heads::<P, R, N>(&a.kv, item.rows * group) {
        true => work.kv_heads,
        false => 1,
    };
    let (next, end) = (scratch.next, work.kv_head + work.kv_heads);
    for kv_head in (work.kv_head..end).step_by(at_once) {
        // Of heads that go one by one each asks for the next.
        scratch.next = match kv_head + at_once < end {
            true => Some(Work { kv_head: kv_head + at_once, kv_heads: at_once, ..work }),
            false => next,
        };
        let (heads, vectors) = ((kv_head, at_once), item.rows * group * at_once);
        for first in (0..vectors).step_by(TILE_VECTORS) {
            // SAFETY: by `Kernel`'s contract; the chunk lies within the item's vectors.
            unsafe {
                let vectors = first..(first + TILE_VECTORS).min(vectors);
                chunk::<P, R, N>(a, item, heads, vectors, scratch);
            }
        }
    }
}

/// Up to `TILE_VECTORS` query vectors over the item's spans.
#[inline(always)]
unsafe fn chunk<P: Cached, const R: usize, const N: usize>(
    a: &AttentionArgs<'_>,
    item: &plan::Item,
    (kv_head, kv_heads): (usize, usize),
    vectors: Range<usize>,
    scratch: &mut Scratch,
) {
    let group = a.heads.num_heads / a.heads.num_kv_heads;
    let per_row = kv_heads * group;
    let (dim, dim_padded) = (a.heads.head_dim, a.kv.dim_padded);
    let (seq, count) = (&a.seqs[item.seq], vectors.len());
    let mut rows = Rows { count, low: [0; TILE_VECTORS], high: [0; TILE_VECTORS] };
    let mut merged = [Softmax::EMPTY; TILE_VECTORS];
    let queries = scratch.queries.as_ptr().cast::<P::X>();
    let place = |v: usize| {
        let vector = vectors.start + v;
        (seq.query_start + item.first_row + vector / per_row, kv_head * group + vector % per_row)
    };
    for v in 0..count {
        let (row, head) = place(v);
        rows.high[v] = seq.context_len + (row - seq.query_start) + 1;
        rows.low[v] = rows.high[v].saturating_sub(a.window);
        // SAFETY: row and head are in range; the scratch holds `TILE_VECTORS` heads.
        unsafe {
            let query = a.qkv.add(row * a.heads.qkv_width() + head * dim);
            put_query::<P>((query, a.narrow), queries.add(v * dim_padded), dim);
        }
    }
    if let Some(work) = scratch.next {
        a.ask_for_queries::<P::Acc>(work);
    }
    let tile = scratch.tile(a, seq, (kv_head, kv_heads));
    for span in item.spans.clone() {
        let next = a.next((item, seq, kv_head), span, scratch.next);
        // SAFETY: the scratch has the sizes that `Tile` wants, and the block table covers every
        // position that these rows see.
        let results = unsafe { span::run::<P, R, N>(&tile, &rows, span, next) };
        for v in 0..count {
            // SAFETY: the scratch holds `TILE_VECTORS` heads, and the plan reserved the partials.
            unsafe {
                let values = tile.values.add(v * dim_padded);
                if let Some(start) = item.partials {
                    let (row, head) = place(v);
                    let first = seq.query_start + item.first_row;
                    let vector = (row - first) * a.heads.num_heads + head;
                    let index = (span - item.first_span) * item.rows * a.heads.num_heads + vector;
                    let slot = a.partials.add(start + index * plan::partial_len(dim_padded));
                    store_partial(slot, results[v], values, dim_padded);
                } else {
                    let acc = scratch.merged.as_ptr().add(v * dim_padded);
                    merged[v].merge::<P::Acc>(acc, results[v], values, dim_padded);
                }
            }
        }
    }
    if item.partials.is_none() {
        for (v, merged) in merged.iter().enumerate().take(count) {
            let (row, head) = place(v);
            // SAFETY: row and head are in range.
            unsafe {
                let acc = scratch.merged.as_ptr().add(v * dim_padded);
                merged.finish::<P::Acc>(acc, a, (row, head));
            }
        }
    }
}

/// Brings a query to the form that scores read, with zeros to a whole vector.
#[inline(always)]
unsafe fn put_query<P: Cached>((query, narrow): (*const f32, bool), to: *mut P::X, dim: usize) {
    if narrow {
        debug_assert_eq!(size_of::<P::X>(), 2, "queries are bf16");
        // SAFETY: the caller vouches for `dim` elements, whole vectors.
        return unsafe { query.cast::<P::X>().copy_to_nonoverlapping(to, dim) };
    }
    for i in (0..dim).step_by(16) {
        // SAFETY: the caller vouches for `dim` elements, and for room for whole vectors.
        unsafe { P::put(P::Acc::load_first(query.add(i), (dim - i).min(16)), to.add(i)) }
    }
}

/// Keeps one span's softmax for the merge behind the barrier.
#[inline(always)]
unsafe fn store_partial(slot: *mut f32, softmax: Softmax, values: *const f32, dim: usize) {
    // SAFETY: the caller's slot has room for `partial_len(dim)` elements, `values` holds `dim`.
    unsafe {
        *slot = softmax.max;
        *slot.add(1) = softmax.sum;
        std::ptr::copy_nonoverlapping(values, slot.add(16), dim);
    }
}

/// Merges the partials of one split tile, ascending, for the given (row, head) vectors.
#[inline(always)]
pub(crate) unsafe fn merge<S: Simd16>(a: &AttentionArgs<'_>, tile: usize, vectors: Range<usize>) {
    let tile = &a.plan.split[tile];
    let dim_padded = a.kv.dim_padded;
    let per_span = tile.rows * a.heads.num_heads;
    for vector in vectors {
        let mut merged = Softmax::EMPTY;
        // SAFETY: the plan reserved the partials' room, all of which `attend` wrote before the
        // barrier; the first partial that is not empty serves as the accumulator.
        unsafe {
            let slot = |i: usize| {
                let index = i * per_span + vector;
                a.partials.add(tile.partials + index * plan::partial_len(dim_padded))
            };
            let acc = slot(0).add(16);
            for i in 0..tile.spans.len() {
                let later = Softmax { max: *slot(i), sum: *slot(i).add(1) };
                merged.merge::<S>(acc, later, slot(i).add(16), dim_padded);
            }
            let row = a.seqs[tile.seq].query_start + tile.first_row + vector / a.heads.num_heads;
            let head = vector % a.heads.num_heads;
            merged.finish::<S>(acc, a, (row, head));
        }
    }
}
