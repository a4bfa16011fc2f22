//! Attention on tensor cores: which block of the GPU attends to what, written anew for each step.
//!
//! A row that stands alone in its sequence is cut by position into pieces, so that few sequences
//! fill the device too; a further kernel puts the pieces together. Rows of prompts go in tiles.

use super::op::Op;
use super::step::Layout;
use crate::backend::{Attention, SeqInput};

/// Words of an entry: `Work` of kernels/README.md.
pub(super) const WORK_WORDS: usize = 8;
/// Different windows that layers of one model may have and still be planned.
pub(super) const MAX_WINDOWS: usize = 2;
/// Head sizes that the kernels exist for.
pub(super) const HEAD_DIMS: [usize; 6] = [64, 80, 96, 128, 192, 256];
/// Rows of a tile of the kernels for Hopper, whatever the head size.
const HOPPER_ROWS: usize = 128;
/// Blocks of `decode_attention` that a multiprocessor holds at once.
const BLOCKS: usize = 3;
/// Shortest piece, in positions; lengths are multiples of `STEP`.
const SHORTEST: usize = 64;
const STEP: usize = 16;
/// What a piece costs beside its positions, and what it costs to put pieces together, in positions.
const START: usize = 32;
const MERGE: usize = 48;
/// Most pieces of the longest row that are tried, and most rounds in which the device holds all
/// pieces.
const TRIES: usize = 4;
/// From so many rounds on whole rows leave the device idle for a short while only.
const MANY_ROUNDS: usize = 4;
/// The piece is its row's only one.
const WHOLE: u32 = u32::MAX;

/// Most entries of each list.
#[derive(Clone, Copy, Default)]
pub(super) struct Room {
    pub(super) pieces: usize,
    pub(super) merges: usize,
    pub(super) tiles: usize,
}

impl Room {
    /// For steps of `rows` rows and `seqs` sequences on `multiprocessors`.
    pub(super) fn new(rows: usize, seqs: usize, multiprocessors: usize) -> Self {
        Self {
            pieces: 3 * seqs + BLOCKS * multiprocessors,
            merges: seqs,
            tiles: rows.div_ceil(SHORTEST) + seqs,
        }
    }
}

/// The lists of a step.
#[derive(Default)]
pub(super) struct WorkLists {
    /// Tiles are for the kernels of Hopper.
    is_hopper: bool,
    windows: [WindowLists; MAX_WINDOWS],
    num_windows: usize,
    /// Tiles of prompts.
    pub(super) tiles: Vec<[u32; WORK_WORDS]>,
    /// Rows of a tile; 0: no layer wants tiles.
    tile_rows: usize,
}

/// The lists of layers with one window.
#[derive(Default)]
pub(super) struct WindowLists {
    window: Option<usize>,
    pub(super) pieces: Vec<[u32; WORK_WORDS]>,
    pub(super) merges: Vec<[u32; WORK_WORDS]>,
}

/// Which of `HEAD_DIMS` this is.
pub(super) fn head_dim_index(head_dim: usize) -> Option<usize> {
    HEAD_DIMS.iter().position(|&known| known == head_dim)
}

/// Rows of a tile of the kernels that run on any device.
pub(super) fn tile_rows(head_dim: usize) -> usize {
    if head_dim <= 128 { 128 } else { 64 }
}

/// Blocks that share a piece, one for each of these groups of heads.
pub(super) fn head_groups(spec: &Attention) -> usize {
    let heads = spec.heads;
    heads.num_kv_heads * (heads.num_heads / heads.num_kv_heads).div_ceil(16)
}

/// Blocks along the pieces of a graph, for any step that it may serve: a block takes further
/// pieces where there are more.
pub(super) fn piece_blocks(spec: &Attention, layout: &Layout, multiprocessors: usize) -> usize {
    let held = (BLOCKS * multiprocessors).div_ceil(head_groups(spec));
    // A block looks at the place of its first piece before it knows that there is one.
    let room = Room::new(layout.rows, layout.rows, multiprocessors).pieces;
    layout.rows.max(2 * held).min(room)
}

impl WorkLists {
    pub(super) fn new(is_hopper: bool) -> Self {
        Self { is_hopper, ..Self::default() }
    }

    /// Rows of a tile.
    fn tile_rows_of(&self, head_dim: usize) -> usize {
        if self.is_hopper { HOPPER_ROWS } else { tile_rows(head_dim) }
    }

    /// Plans the attention layers of `ops`. Layers that find no lists run on the simple kernel.
    pub(super) fn plan(&mut self, ops: &[Op], seqs: &[SeqInput], multiprocessors: usize) {
        self.num_windows = 0;
        self.tile_rows = 0;
        for op in ops {
            let Op::Attention { spec, .. } = op else { continue };
            if head_dim_index(spec.heads.head_dim).is_none() {
                continue;
            }
            if self.tile_rows == 0 {
                self.tile_rows = self.tile_rows_of(spec.heads.head_dim);
                self.plan_tiles(seqs);
            }
            if self.index(spec).is_none() && self.num_windows < MAX_WINDOWS {
                let lists = &mut self.windows[self.num_windows];
                lists.plan(spec.sliding_window, seqs, head_groups(spec), multiprocessors);
                self.num_windows += 1;
            }
        }
    }

    /// Which lists serve this layer.
    pub(super) fn index(&self, spec: &Attention) -> Option<usize> {
        head_dim_index(spec.heads.head_dim)?;
        if self.tile_rows_of(spec.heads.head_dim) != self.tile_rows {
            return None;
        }
        self.windows().iter().position(|lists| lists.window == spec.sliding_window)
    }

    /// The lists by window.
    pub(super) fn windows(&self) -> &[WindowLists] {
        &self.windows[..self.num_windows]
    }

    /// Tiles of the sequences with more than one row, those that see most first.
    fn plan_tiles(&mut self, seqs: &[SeqInput]) {
        self.tiles.clear();
        for (seq, i) in seqs.iter().zip(0..).filter(|(seq, _)| seq.query_len > 1) {
            for first in (0..seq.query_len).step_by(self.tile_rows) {
                let sees = seq.context_len + seq.query_len.min(first + self.tile_rows);
                let row = (seq.query_start + first) as u32;
                self.tiles.push([i, row, 0, sees as u32, 0, 0, 0, 0]);
            }
        }
        self.tiles.sort_unstable_by_key(|tile| (u32::MAX - tile[3], tile[1]));
    }
}

/// Where a row is cut: from `base` on, every `part` positions.
struct Cut {
    base: usize,
    part: usize,
    count: usize,
}

impl Cut {
    /// Of positions `begin .. end` into equal pieces of at most `length`, a multiple of `STEP`.
    fn new((begin, end): (usize, usize), length: usize) -> Self {
        let base = begin / STEP * STEP;
        let seen = end - base;
        let part = seen.div_ceil(seen.div_ceil(length)).next_multiple_of(STEP);
        Self { base, part, count: seen.div_ceil(part) }
    }
}

impl WindowLists {
    fn plan(
        &mut self,
        window: Option<usize>,
        seqs: &[SeqInput],
        head_groups: usize,
        multiprocessors: usize,
    ) {
        self.window = window;
        self.pieces.clear();
        self.merges.clear();
        let length = self.best_length(seqs, head_groups, multiprocessors);
        let mut places = 0;
        for (seq, i) in seqs.iter().zip(0_u32..).filter(|(seq, _)| seq.query_len == 1) {
            let (begin, end) = self.seen(seq);
            let row = seq.query_start as u32;
            let cut = Cut::new((begin, end), length);
            if cut.count == 1 {
                self.pieces.push([i, row, begin as u32, end as u32, WHOLE, 0, 0, 0]);
                continue;
            }
            let first = places;
            for piece in 0..cut.count {
                let from = (cut.base + piece * cut.part).max(begin) as u32;
                let to = (cut.base + (piece + 1) * cut.part).min(end) as u32;
                self.pieces.push([i, row, from, to, places, 0, 0, 0]);
                places += 1;
            }
            self.merges.push([i, row, first, places, 0, 0, 0, 0]);
        }
    }

    /// What the one row of a sequence attends to.
    fn seen(&self, seq: &SeqInput) -> (usize, usize) {
        let end = seq.context_len + 1;
        (self.window.map_or(0, |window| end.saturating_sub(window)), end)
    }

    /// The length of pieces with which all of them are done soonest: the device holds so many at
    /// once, and every round of them takes as long as its longest piece.
    fn best_length(&self, seqs: &[SeqInput], head_groups: usize, multiprocessors: usize) -> usize {
        let held = BLOCKS * multiprocessors;
        let rows = || seqs.iter().filter(|seq| seq.query_len == 1).map(|seq| self.seen(seq));
        let (count, total, longest) =
            rows().fold((0, 0, 0), |(count, total, longest), (begin, end)| {
                (count + 1, total + end - begin, longest.max(end - begin))
            });
        if total * head_groups >= MANY_ROUNDS * held * longest {
            // Whole, wherever in a step the row begins.
            return longest.next_multiple_of(STEP) + STEP;
        }
        let room = Room::new(0, seqs.len(), multiprocessors).pieces;
        let by_row = (1..=TRIES).map(|pieces| longest.div_ceil(pieces));
        let by_round = (1..=TRIES).map(|rounds| (total * head_groups).div_ceil(rounds * held));
        let lengths = by_round.chain(by_row);
        let lengths = lengths.map(|length| length.next_multiple_of(STEP).max(SHORTEST));
        let cost = |&length: &usize| {
            let cuts = rows().map(|row| Cut::new(row, length));
            let (pieces, longest) = cuts
                .fold((0, 0), |(pieces, longest), cut| (pieces + cut.count, cut.part.max(longest)));
            let rounds = (pieces * head_groups).div_ceil(held);
            let merge = if pieces > count { MERGE } else { 0 };
            (pieces > room, rounds * (longest + START) + merge)
        };
        lengths.min_by_key(cost).unwrap_or(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{ActId, Heads};

    fn attention(head_dim: usize, sliding_window: Option<usize>) -> Op {
        let heads = Heads { num_heads: 8, num_kv_heads: 2, head_dim };
        let spec = Attention { heads, scale: 1.0, sliding_window };
        Op::Attention { layer: 0, qkv: ActId(0), spec, out: ActId(1) }
    }

    fn seqs(lens: &[(usize, usize)]) -> Vec<SeqInput> {
        let mut query_start = 0;
        let seq = |&(query_len, context_len): &(usize, usize)| {
            query_start += query_len;
            SeqInput {
                query_start: query_start - query_len,
                query_len,
                context_len,
                block_table_start: 0,
                num_blocks: 0,
            }
        };
        lens.iter().map(seq).collect()
    }

    #[test]
    fn pieces_cover_what_a_row_sees_once_and_fit_the_room() {
        for window in [None, Some(1), Some(100), Some(1000)] {
            for multiprocessors in [1, 4, 132] {
                let seqs = seqs(&[(1, 0), (1, 4000), (3, 9), (1, 63), (1, 64), (1, 12345)]);
                let mut lists = WorkLists::default();
                lists.plan(&[attention(128, window)], &seqs, multiprocessors);
                let room = Room::new(8, seqs.len(), multiprocessors);
                let window_lists = &lists.windows()[0];
                assert!(window_lists.pieces.len() <= room.pieces);
                assert!(window_lists.merges.len() <= room.merges);
                for (i, seq) in seqs.iter().enumerate().filter(|(_, seq)| seq.query_len == 1) {
                    let pieces: Vec<_> =
                        window_lists.pieces.iter().filter(|p| p[0] == i as u32).collect();
                    let end = seq.context_len + 1;
                    let begin = window.map_or(0, |w| end.saturating_sub(w));
                    assert_eq!((pieces[0][2] as usize, pieces[0][1]), (begin, pieces[0][1]));
                    assert_eq!(pieces[pieces.len() - 1][3] as usize, end);
                    assert!(pieces.windows(2).all(|pair| pair[0][3] == pair[1][2]));
                    assert!(pieces.iter().all(|p| p[2] < p[3]));
                    let merge = window_lists.merges.iter().find(|m| m[0] == i as u32);
                    match merge {
                        None => assert_eq!((pieces.len(), pieces[0][4]), (1, WHOLE)),
                        Some(merge) => {
                            assert_eq!((merge[3] - merge[2]) as usize, pieces.len());
                            assert!(pieces.iter().zip(merge[2]..).all(|(p, at)| p[4] == at));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_cover_the_rows_of_prompts() {
        let seqs = seqs(&[(1, 7), (300, 5), (2, 1000)]);
        let mut lists = WorkLists::default();
        lists.plan(&[attention(192, None), attention(192, Some(9))], &seqs, 4);
        let mut rows: Vec<_> = lists.tiles.iter().map(|tile| (tile[0], tile[1])).collect();
        assert_eq!(rows[0], (2, 301), "the one that sees most comes first");
        rows.sort_unstable();
        assert_eq!(rows, [(1, 1), (1, 65), (1, 129), (1, 193), (1, 257), (2, 301)]);
        assert!(lists.tiles.len() <= Room::new(303, 3, 4).tiles);
        let mut lists = WorkLists::new(true);
        lists.plan(&[attention(192, None), attention(64, Some(9))], &seqs, 4);
        let mut rows: Vec<_> = lists.tiles.iter().map(|tile| (tile[0], tile[1])).collect();
        rows.sort_unstable();
        assert_eq!(rows, [(1, 1), (1, 129), (1, 257), (2, 301)], "Hopper's are of 128 rows");
        assert_eq!(lists.windows().len(), 2);
    }

    #[test]
    fn what_is_not_planned_is_left_to_the_simple_kernel() {
        let mut lists = WorkLists::default();
        let windows = [attention(64, None), attention(64, Some(1)), attention(64, Some(2))];
        lists.plan(&windows, &seqs(&[(1, 3)]), 4);
        let index = |op: &Op| match op {
            Op::Attention { spec, .. } => lists.index(spec),
            _ => None,
        };
        assert_eq!(windows.each_ref().map(index), [Some(0), Some(1), None]);
        assert_eq!(index(&attention(48, None)), None);
        assert_eq!(index(&attention(192, None)), None);
    }
}
