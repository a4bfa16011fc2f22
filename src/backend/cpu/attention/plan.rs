//! Who computes what: tiles of query rows, split over spans where there are too few of them.

use std::ops::Range;

use super::{SPAN, TILE_VECTORS};
use crate::backend::{Heads, SeqInput};

/// Some rows of one sequence over some spans, for every KV head.
pub(crate) struct Item {
    /// Index of the sequence in the step.
    pub(crate) seq: usize,
    /// First row, counted from the sequence's first.
    pub(crate) first_row: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Spans to compute.
    pub(crate) spans: Range<usize>,
    /// Start of the tile's partial results when its spans are split over items.
    pub(crate) partials: Option<usize>,
    /// The tile's first span.
    pub(crate) first_span: usize,
    /// The items of this one's sequence, this one among them: all of them read the same keys and
    /// values. An item of a split tile is alone.
    run: Range<usize>,
}

/// What one thread computes at a time.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// Index of the item.
    pub(crate) item: usize,
    /// The first of its KV heads.
    pub(crate) kv_head: usize,
    /// How many of them.
    pub(crate) kv_heads: usize,
}

/// A tile whose spans were split over items, to be merged.
pub(crate) struct SplitTile {
    pub(crate) seq: usize,
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) spans: Range<usize>,
    pub(crate) partials: usize,
}

/// One step's plan for attention of one kind.
pub(crate) struct Plan {
    heads: Heads,
    window: usize,
    /// Whether it is of the rows that were kept.
    pub(crate) kept: bool,
    /// The first items, of which each is computed for many KV heads at a time.
    together: usize,
    pub(crate) items: Vec<Item>,
    pub(crate) split: Vec<SplitTile>,
}

/// Floats of one partial: max, sum, padding to a vector, values.
pub(crate) fn partial_len(dim_padded: usize) -> usize {
    16 + dim_padded
}

impl Plan {
    /// An empty plan with room for steps of `max_tokens`.
    pub(crate) fn new(
        (heads, window, kept): (Heads, usize, bool),
        max_tokens: usize,
        threads: usize,
    ) -> crate::error::Result<Self> {
        let (items, split) = (Vec::new(), Vec::new());
        let mut plan = Self { heads, window, kept, together: 0, items, split };
        plan.items.try_reserve(max_tokens + SHARES * threads)?;
        plan.split.try_reserve(SHARES * threads)?;
        Ok(plan)
    }

    /// Whether this plan is for that kind of attention: over all rows, or those that were kept.
    pub(crate) fn serves(&self, (heads, window, kept): (Heads, usize, bool)) -> bool {
        (self.heads, self.window, self.kept) == (heads, window, kept)
    }

    /// Plans a step. `room` is how many floats of partials there are.
    pub(crate) fn make(
        &mut self,
        seqs: &[SeqInput],
        threads: usize,
        dim_padded: usize,
        room: usize,
    ) {
        let kv_heads = self.heads.num_kv_heads;
        let rows_of_tile = (TILE_VECTORS * kv_heads / self.heads.num_heads).max(1);
        self.items.clear();
        self.split.clear();
        let total =
            tiles(seqs, rows_of_tile, self.window).map(|t| t.3.len()).sum::<usize>() * kv_heads;
        // Spans of one KV head that an item may have, so that no thread is left with one long one.
        let share = total.div_ceil(SHARES * threads).max(1);
        let mut used = 0;
        for (seq, first_row, rows, spans) in tiles(seqs, rows_of_tile, self.window) {
            let floats = spans.len() * rows * self.heads.num_heads * partial_len(dim_padded);
            let fits = used + floats <= room && self.split.len() < self.split.capacity();
            let is_split = threads > 1 && spans.len() > share && fits;
            let step = if is_split { share } else { spans.len().max(1) };
            for start in spans.clone().step_by(step) {
                self.items.push(Item {
                    seq,
                    first_row,
                    rows,
                    spans: start..(start + step).min(spans.end),
                    partials: is_split.then_some(used),
                    first_span: spans.start,
                    run: self.items.len()..self.items.len() + 1,
                });
            }
            if is_split {
                self.split.push(SplitTile { seq, first_row, rows, spans, partials: used });
                used += floats;
            }
        }
        self.find_runs();
        // Of the last items each head is by itself, so that threads come to an end together.
        let all_decode = self.items.iter().all(|i| i.rows == 1 && i.partials.is_none());
        let rest = LAST * threads;
        self.together = if all_decode { self.items.len().saturating_sub(rest) } else { 0 };
    }

    /// Brings together the items of each sequence.
    fn find_runs(&mut self) {
        for run in self
            .items
            .chunk_by_mut(|a, b| a.seq == b.seq && a.partials.is_none() && b.partials.is_none())
        {
            let all = run[0].run.start..run[0].run.start + run.len();
            run.iter_mut().for_each(|item| item.run = all.clone());
        }
    }

    /// KV heads that are computed at a time for an item that decodes.
    fn heads_together(&self) -> usize {
        let Heads { num_heads, num_kv_heads, .. } = self.heads;
        (TILE_VECTORS * num_kv_heads / num_heads).clamp(1, num_kv_heads)
    }

    /// How many works there are.
    pub(crate) fn works(&self) -> usize {
        let kv_heads = self.heads.num_kv_heads;
        self.together * kv_heads.div_ceil(self.heads_together())
            + (self.items.len() - self.together) * kv_heads
    }

    /// The `index`-th work. Sequences that decode read their blocks as they lie in memory, all of a
    /// block's heads before the next. Else it is one KV head of a sequence after the other, so that
    /// all of its items find what they read in a cache.
    pub(crate) fn work(&self, index: usize) -> Work {
        let (kv_heads, most) = (self.heads.num_kv_heads, self.heads_together());
        let per_item = kv_heads.div_ceil(most);
        if index < self.together * per_item {
            let kv_head = index % per_item * most;
            let kv_heads = most.min(kv_heads - kv_head);
            return Work { item: index / per_item, kv_head, kv_heads };
        }
        let index = index - self.together * per_item + self.together * kv_heads;
        let run = &self.items[index / kv_heads].run;
        let within = index - run.start * kv_heads;
        Work { item: run.start + within % run.len(), kv_head: within / run.len(), kv_heads: 1 }
    }
}

/// Sequence, first row, rows, spans.
type Tile = (usize, usize, usize, Range<usize>);

/// The tiles of `seqs` in order.
fn tiles(seqs: &[SeqInput], rows_of_tile: usize, window: usize) -> impl Iterator<Item = Tile> + '_ {
    seqs.iter().enumerate().flat_map(move |(index, seq)| {
        (0..seq.query_len).step_by(rows_of_tile).map(move |first_row| {
            let rows = (seq.query_len - first_row).min(rows_of_tile);
            let first = seq.context_len + first_row;
            let low = (first + 1).saturating_sub(window) / SPAN;
            (index, first_row, rows, low..(first + rows).div_ceil(SPAN))
        })
    })
}

/// Work items that each thread gets, about, when a step has few long sequences.
const SHARES: usize = 4;
/// Items for each thread that are shared head by head, of many that decode.
const LAST: usize = 1;
