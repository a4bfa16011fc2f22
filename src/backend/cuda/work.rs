//! Attention on tensor cores: which block of the GPU attends to what, written anew for each step.
//!
//! Rows that stand alone in their sequences are laid end to end and cut into as many equal shares
//! as the device holds blocks, so that all blocks end at about the same time, whatever the rows'
//! lengths. A share is some pieces of rows; a further kernel puts the pieces of a row together.
//! Rows of prompts go in tiles.

use super::op::Op;
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
/// Positions that are worth a share of their own.
const SHORTEST: usize = 64;
/// Rows are cut at multiples of `STEP`, and not so that fewer positions than `SLIVER` are left on a
/// side.
const STEP: usize = 16;
const SLIVER: usize = 32;
/// What a piece costs beside its positions, in positions.
const START: usize = 32;
/// The piece is its row's only one.
const WHOLE: u32 = u32::MAX;
/// The piece is its share's last.
const LAST: u32 = u32::MAX;
/// The word of an entry that names the next piece of its share.
const NEXT: usize = 5;

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
            // A row has one piece, and one more for each cut between two shares.
            pieces: seqs + BLOCKS * multiprocessors,
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
    /// Every share's first piece, then the pieces that those name.
    pub(super) pieces: Vec<[u32; WORK_WORDS]>,
    /// How many shares there are.
    pub(super) shares: usize,
    pub(super) merges: Vec<[u32; WORK_WORDS]>,
    /// What becomes the end of `pieces`, while these are made.
    further: Vec<[u32; WORK_WORDS]>,
    /// The last share has one piece.
    is_alone: bool,
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

/// Blocks for each group of heads that the device holds at once, and so most shares of a step.
pub(super) fn most_shares(head_groups: usize, multiprocessors: usize) -> usize {
    (BLOCKS * multiprocessors / head_groups).max(1)
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

/// How much of the work is not given away yet. Costs are in positions.
struct Shares {
    /// Shares that may still begin, and the one that is being filled.
    left: usize,
    /// Of all pieces to come, but for those that come of further cuts.
    cost: usize,
    /// Room in the share that is being filled.
    room: usize,
    is_empty: bool,
}

impl Shares {
    /// For rows that see so many positions, multiples of `STEP`.
    fn new(rows: impl Iterator<Item = usize>, most: usize) -> Self {
        let (cost, worth) = rows.fold((0, 0), |(cost, worth), positions| {
            (cost + START + positions, worth + (positions / SHORTEST).max(1))
        });
        let mut shares = Self { left: most.min(worth), cost, room: 0, is_empty: true };
        shares.begin();
        shares
    }

    /// The next share. All that follow begin within a row, as most do.
    fn begin(&mut self) {
        let cost = self.cost + self.left.saturating_sub(1) * START;
        self.room = cost.div_ceil(self.left.max(1));
        self.is_empty = true;
    }

    /// How many of a row's last `rest` positions go to the share that is being filled. Where these
    /// are not all, a share has begun that takes more.
    fn take(&mut self, rest: usize) -> usize {
        let wanted = (self.room.saturating_sub(START) + STEP / 2) / STEP * STEP;
        let wanted = if self.is_empty { wanted.max(SLIVER) } else { wanted };
        let taken = match wanted {
            _ if self.left == 1 => rest,
            ..SLIVER => 0,
            _ if rest < wanted + SLIVER => rest,
            _ => wanted,
        };
        if taken > 0 {
            self.cost -= START + taken;
            self.room = self.room.saturating_sub(START + taken);
            self.is_empty = false;
        }
        if taken < rest {
            // A cut makes one piece more.
            self.cost += if taken > 0 { START } else { 0 };
            self.left -= 1;
            self.begin();
        }
        taken
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
        self.further.clear();
        self.merges.clear();
        let rows = || seqs.iter().zip(0..).filter(|(seq, _)| seq.query_len == 1);
        let positions = rows().map(|(seq, _)| {
            let (base, _, end) = self.seen(seq);
            (end - base).next_multiple_of(STEP)
        });
        let mut shares = Shares::new(positions, most_shares(head_groups, multiprocessors));
        let mut places = 0;
        for (seq, i) in rows() {
            let (mut from, begin, end) = self.seen(seq);
            let (row, first) = (seq.query_start as u32, places);
            while from < end {
                let is_first = shares.is_empty;
                let taken = shares.take((end - from).next_multiple_of(STEP));
                if taken == 0 {
                    continue;
                }
                let to = from + taken;
                let is_whole = places == first && to >= end;
                let partial = if is_whole { WHOLE } else { places };
                places += if is_whole { 0 } else { 1 };
                let range = [from.max(begin) as u32, to.min(end) as u32];
                self.push([i, row, range[0], range[1], partial, LAST, 0, 0], is_first);
                from = to;
            }
            if places > first {
                self.merges.push([i, row, first, places, 0, LAST, 0, 0]);
            }
        }
        self.shares = self.pieces.len();
        for piece in self.pieces.iter_mut().chain(&mut self.further) {
            if piece[NEXT] != LAST {
                piece[NEXT] += self.shares as u32;
            }
        }
        self.pieces.append(&mut self.further);
    }

    /// Adds a piece to a new share, or to the last one.
    fn push(&mut self, piece: [u32; WORK_WORDS], is_first: bool) {
        if is_first {
            self.pieces.push(piece);
            self.is_alone = true;
            return;
        }
        let at = self.further.len() as u32;
        let before = if self.is_alone { self.pieces.last_mut() } else { self.further.last_mut() };
        before.expect("a share has begun")[NEXT] = at;
        self.further.push(piece);
        self.is_alone = false;
    }

    /// What the one row of a sequence attends to, and the multiple of `STEP` where that is cut
    /// from.
    fn seen(&self, seq: &SeqInput) -> (usize, usize, usize) {
        let end = seq.context_len + 1;
        let begin = self.window.map_or(0, |window| end.saturating_sub(window));
        (begin / STEP * STEP, begin, end)
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

    /// The pieces of each share, in order.
    fn shares(lists: &WindowLists) -> Vec<Vec<[u32; WORK_WORDS]>> {
        let chain = |first: &[u32; WORK_WORDS]| {
            let next = |piece: &[u32; WORK_WORDS]| lists.pieces.get(piece[NEXT] as usize).copied();
            std::iter::successors(Some(*first), next).collect()
        };
        lists.pieces[..lists.shares].iter().map(chain).collect()
    }

    /// What a piece costs.
    fn cost(piece: &[u32; WORK_WORDS]) -> usize {
        START + (piece[3] as usize).next_multiple_of(STEP) - piece[2] as usize / STEP * STEP
    }

    /// Plans a step and looks at everything but how equal shares are; gives the shares.
    fn planned(
        lens: &[(usize, usize)],
        window: Option<usize>,
        multiprocessors: usize,
    ) -> Vec<Vec<[u32; WORK_WORDS]>> {
        let seqs = seqs(lens);
        let mut lists = WorkLists::default();
        lists.plan(&[attention(128, window)], &seqs, multiprocessors);
        let room = Room::new(8, seqs.len(), multiprocessors);
        let lists = &lists.windows()[0];
        assert!(lists.pieces.len() <= room.pieces && lists.merges.len() <= room.merges);
        let most = most_shares(2, multiprocessors);
        assert!(lists.shares <= most && most <= room.pieces);
        let shares = shares(lists);
        let all: Vec<_> = shares.iter().flatten().copied().collect();
        assert_eq!(all.len(), lists.pieces.len(), "each piece is in one share");
        let (mut pieces, mut places) = (all.iter(), 0);
        let mut merges = lists.merges.iter();
        for (seq, i) in seqs.iter().zip(0..).filter(|(seq, _)| seq.query_len == 1) {
            let end = seq.context_len + 1;
            let (mut at, first) = (window.map_or(0, |w| end.saturating_sub(w)), places);
            while at < end {
                let piece = pieces.next().expect("rows are covered");
                let [of, row, begin, to, place, _, _, _] = *piece;
                assert_eq!((of, row as usize, begin as usize), (i, seq.query_start, at));
                assert!(begin < to);
                at = to as usize;
                if place == WHOLE {
                    assert_eq!((at, first), (end, places), "the row's only one");
                } else {
                    assert_eq!(place, places);
                    places += 1;
                    assert!(at == end || at.is_multiple_of(STEP));
                    assert!(cost(piece) >= START + SLIVER);
                }
            }
            assert_eq!(at, end);
            if places > first {
                assert!(places > first + 1);
                let merge = [i, seq.query_start as u32, first, places, 0, LAST, 0, 0];
                assert_eq!(merges.next(), Some(&merge));
            }
        }
        assert!(pieces.next().is_none() && merges.next().is_none());
        shares
    }

    #[test]
    fn shares_cover_what_rows_see_once_and_are_about_equal() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % n
        };
        for _ in 0..3000 {
            let longest = [1, 20, 100, 300, 1024, 5000, 40000][below(7)];
            let shortest = [0, longest / 2, longest - 1][below(3)];
            let most_rows = [1, 3, 16, 64, 256][below(5)];
            let rows = 1 + below(most_rows);
            let query = [1, 1, 1, 1 + below(4)][below(4)];
            let mut len = |i| {
                let query = if i % 3 == 1 { query } else { 1 };
                (query, shortest + below(longest - shortest))
            };
            let lens: Vec<_> = (0..rows).map(&mut len).collect();
            let window = [None, None, Some(1 + below(2 * longest))][below(3)];
            let multiprocessors = [1, 4, 40, 132][below(4)];
            let shares = planned(&lens, window, multiprocessors);
            let costs: Vec<usize> =
                shares.iter().map(|pieces| pieces.iter().map(cost).sum()).collect();
            let all: usize = costs.iter().sum();
            let mean = all / costs.len().max(1);
            let ends = (costs.iter().min().unwrap_or(&0), costs.iter().max().unwrap_or(&0));
            let apart = (mean - ends.0).max(ends.1 - mean);
            assert!(apart <= SHORTEST + START, "{costs:?} of {lens:?}");
        }
    }

    #[test]
    fn few_rows_are_cut_into_equal_pieces_and_short_ones_stay_whole() {
        let lengths = |shares: &[Vec<[u32; WORK_WORDS]>]| -> Vec<u32> {
            shares.iter().flatten().map(|piece| piece[3] - piece[2]).collect()
        };
        let long = planned(&[(1, 32767)], None, 33);
        assert_eq!(long.len(), 49);
        assert!(lengths(&long).iter().all(|length| (656..=688).contains(length)));
        assert_eq!(lengths(&planned(&[(1, 639)], None, 132)), [64; 10]);
        let short = planned(&[(1, 0); 40], None, 132);
        assert_eq!(lengths(&short), [1; 40]);
        assert_eq!(short.len(), 40);
        // As many equal rows as shares, or twice as many, are not cut.
        for rows in [48, 96] {
            let whole = planned(&vec![(1, 1000); rows], None, 32);
            assert_eq!((whole.len(), lengths(&whole)), (48, vec![1001; rows]));
        }
        assert!(planned(&[(3, 5), (2, 0)], None, 4).is_empty());
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
