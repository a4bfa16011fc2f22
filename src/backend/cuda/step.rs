//! A step's input on its way to the device: written to page-locked memory, copied in one piece.
//!
//! ```text
//!  logits_rows | fed | token_ids | positions | row_seq | slots by group | seqs
//!  | counts, pieces and merges by window | tiles | block tables by group
//! ```
//!
//! Where each part lies follows from the numbers of rows and sequences alone, so that a graph
//! captured for these numbers finds every later step's input.

use super::driver::{DevicePtr, Pinned, Stream};
use super::work::{MAX_WINDOWS, Room, WORK_WORDS, WorkLists};
use crate::backend::{StepInput, StepLimits};
use crate::error::Result;

/// A row that no sequence has, and a slot that is not written: rows that fill up a graph's batch.
pub(super) const NOBODY: u32 = u32::MAX;
/// Words of a sequence's entry.
const SEQ_WORDS: usize = 8;

/// Where the parts lie, in words of 32 bits.
#[derive(Clone, Copy, Default)]
pub(super) struct Layout {
    /// Rows that are launched: the step's, or a graph's.
    pub(super) rows: usize,
    seqs: usize,
    groups: usize,
    max_logits_rows: usize,
    max_seqs: usize,
    max_block_table: usize,
    /// For lists of work; none where nobody plans attention.
    room: Room,
}

impl Layout {
    /// Of a step with `rows` rows and `seqs` sequences; `multiprocessors` is 0 where nobody plans
    /// attention.
    pub(super) fn new(
        limits: &StepLimits,
        groups: usize,
        (rows, seqs): (usize, usize),
        multiprocessors: usize,
    ) -> Self {
        let StepLimits { max_logits_rows, max_seqs, max_block_table, .. } = *limits;
        let room = match multiprocessors {
            0 => Room::default(),
            _ => Room::new(rows, seqs, multiprocessors),
        };
        Self { rows, seqs, groups, max_logits_rows, max_seqs, max_block_table, room }
    }

    /// Pairs: a row, and which token drawn before is its own.
    pub(super) fn fed(&self) -> usize {
        aligned(self.max_logits_rows)
    }

    pub(super) fn token_ids(&self) -> usize {
        self.fed() + aligned(2 * self.max_seqs)
    }

    pub(super) fn positions(&self) -> usize {
        self.token_ids() + aligned(self.rows)
    }

    pub(super) fn row_seq(&self) -> usize {
        self.positions() + aligned(self.rows)
    }

    pub(super) fn slots(&self, group: usize) -> usize {
        self.row_seq() + aligned(self.rows) * (1 + group)
    }

    pub(super) fn seqs(&self) -> usize {
        self.slots(self.groups)
    }

    /// The numbers of shares and of merges, four words apart.
    pub(super) fn counts(&self, window: usize) -> usize {
        let lists = WORK_WORDS * (1 + self.room.pieces + self.room.merges);
        self.seqs() + SEQ_WORDS * self.seqs + lists * window
    }

    pub(super) fn pieces(&self, window: usize) -> usize {
        self.counts(window) + WORK_WORDS
    }

    pub(super) fn merges(&self, window: usize) -> usize {
        self.pieces(window) + WORK_WORDS * self.room.pieces
    }

    pub(super) fn tiles(&self) -> usize {
        self.counts(MAX_WINDOWS)
    }

    pub(super) fn block_table(&self, group: usize) -> usize {
        self.tiles() + WORK_WORDS * self.room.tiles + aligned(self.max_block_table) * group
    }

    /// Words in all.
    pub(super) fn end(&self) -> usize {
        self.block_table(self.groups)
    }
}

/// Parts begin at multiples of 16 bytes.
pub(super) fn aligned(words: usize) -> usize {
    words.next_multiple_of(4)
}

/// The memory that steps' inputs go through. Steps write to the host's two sides in turn: the
/// copy of one may not have run when the next is written.
pub(super) struct Staging {
    host: [Pinned; 2],
    turn: usize,
    device: DevicePtr,
}

impl Staging {
    /// `device` is memory of `words` words, as many as `host` gets.
    pub(super) fn new(device: DevicePtr, words: usize) -> Result<Self> {
        let host = [Pinned::new(4 * words)?, Pinned::new(4 * words)?];
        Ok(Self { host, turn: 0, device })
    }

    /// The device's address of a word.
    pub(super) fn address(&self, word: usize) -> DevicePtr {
        self.device + 4 * word as u64
    }

    /// Writes a step's input. The copy of the step before the last has been waited for.
    pub(super) fn write(&mut self, layout: &Layout, input: &StepInput<'_>) {
        self.turn ^= 1;
        let words = self.host[self.turn].words_mut();
        let tokens = input.token_ids.iter().map(|token| token.0);
        fill(&mut words[layout.token_ids()..][..layout.rows], tokens, 0);
        let positions = input.positions.iter().copied();
        fill(&mut words[layout.positions()..][..layout.rows], positions, 0);
        for (group, slots) in input.slot_mapping.iter().enumerate() {
            let slots = slots.iter().map(|&slot| slot as u32);
            fill(&mut words[layout.slots(group)..][..layout.rows], slots, NOBODY);
        }
        let of_row = input.seqs.iter().zip(0..);
        let of_row = of_row.flat_map(|(seq, i)| std::iter::repeat_n(i, seq.query_len));
        fill(&mut words[layout.row_seq()..][..layout.rows], of_row, NOBODY);
        let entries = input.seqs.iter().flat_map(|seq| {
            let start = [seq.query_start, seq.query_len, seq.context_len];
            let table = [seq.block_table_start, seq.num_blocks, 0, 0, 0];
            start.into_iter().chain(table).map(|x| x as u32)
        });
        fill(&mut words[layout.seqs()..][..SEQ_WORDS * layout.seqs], entries, 0);
        for (group, table) in input.block_tables.iter().enumerate() {
            let to = &mut words[layout.block_table(group)..][..table.len()];
            fill(to, table.iter().map(|block| block.0), 0);
        }
    }

    /// Writes which rows' tokens were drawn on the device.
    pub(super) fn write_fed(&mut self, layout: &Layout, places: &[(u32, u32)]) {
        let words = self.host[self.turn].words_mut();
        let to = &mut words[layout.fed()..][..2 * places.len()];
        fill(to, places.iter().flat_map(|&(row, drawn)| [row, drawn]), 0);
    }

    /// Writes the lists of a step's work, for which the layout has room.
    pub(super) fn write_work(&mut self, layout: &Layout, work: &WorkLists) {
        let words = self.host[self.turn].words_mut();
        for (window, lists) in work.windows().iter().enumerate() {
            let counts = [lists.shares as u32, 0, 0, 0, lists.merges.len() as u32, 0, 0, 0];
            words[layout.counts(window)..][..WORK_WORDS].copy_from_slice(&counts);
            let room = [
                (layout.pieces(window), &lists.pieces, layout.room.pieces),
                (layout.merges(window), &lists.merges, layout.room.merges),
            ];
            for (at, list, most) in room {
                assert!(list.len() <= most, "lists are within their room");
                fill(
                    &mut words[at..][..WORK_WORDS * list.len()],
                    list.iter().flatten().copied(),
                    0,
                );
            }
        }
        assert!(work.tiles.len() <= layout.room.tiles, "tiles are within their room");
        let to = &mut words[layout.tiles()..][..WORK_WORDS * work.tiles.len()];
        fill(to, work.tiles.iter().flatten().copied(), 0);
    }

    /// Adds the copy of a step's input to the stream; `tables` are the lengths of the block tables.
    pub(super) fn copy(&self, stream: &Stream, layout: &Layout, tables: &[usize]) -> Result<()> {
        let (host, first) = (&self.host[self.turn], layout.fed());
        let end = layout.block_table(0) + tables.first().copied().unwrap_or(0);
        // SAFETY: both sides have as many words as the layout of the largest step; the host's side
        // is written again only after a later step was waited for.
        unsafe {
            stream.copy_to_device(self.address(first), host, 4 * first, 4 * (end - first))?;
            for (group, &words) in tables.iter().enumerate().skip(1) {
                let at = layout.block_table(group);
                stream.copy_to_device(self.address(at), host, 4 * at, 4 * words)?;
            }
        }
        Ok(())
    }

    /// Adds the copy of a list to the stream, to the place of `logits_rows`, which is its address.
    pub(super) fn copy_list(
        &mut self,
        stream: &Stream,
        list: impl ExactSizeIterator<Item = u32>,
    ) -> Result<DevicePtr> {
        let (len, host) = (list.len(), &mut self.host[self.turn]);
        fill(&mut host.words_mut()[..len], list, 0);
        // SAFETY: `len` words were found on the host's side, and the device's is as long; the
        // stream is waited for before the next list.
        unsafe { stream.copy_to_device(self.device, host, 0, 4 * len)? };
        Ok(self.device)
    }
}

/// Values, then `rest` to the end.
pub(super) fn fill(words: &mut [u32], values: impl Iterator<Item = u32>, rest: u32) {
    let mut words = words.iter_mut();
    for value in values {
        *words.next().expect("a step is within its limits") = value;
    }
    words.for_each(|word| *word = rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_lie_at_multiples_of_16_bytes() {
        let limits =
            StepLimits { max_tokens: 33, max_seqs: 5, max_logits_rows: 7, max_block_table: 21 };
        let layout = Layout::new(&limits, 2, (33, 5), 4);
        let room = layout.room;
        let parts = [
            (0, 7),
            (layout.fed(), 10),
            (layout.token_ids(), 33),
            (layout.positions(), 33),
            (layout.row_seq(), 33),
            (layout.slots(0), 33),
            (layout.slots(1), 33),
            (layout.seqs(), 5 * SEQ_WORDS),
            (layout.counts(0), WORK_WORDS),
            (layout.pieces(0), room.pieces * WORK_WORDS),
            (layout.merges(0), room.merges * WORK_WORDS),
            (layout.counts(1), WORK_WORDS),
            (layout.pieces(1), room.pieces * WORK_WORDS),
            (layout.merges(1), room.merges * WORK_WORDS),
            (layout.tiles(), room.tiles * WORK_WORDS),
            (layout.block_table(0), 21),
            (layout.block_table(1), 21),
            (layout.end(), 0),
        ];
        for pair in parts.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            assert_eq!(pair[1].0 % 4, 0);
        }
    }

    #[test]
    fn what_is_left_is_filled_up() {
        let mut words = [7; 4];
        fill(&mut words, [1, 2].into_iter(), NOBODY);
        assert_eq!(words, [1, 2, NOBODY, NOBODY]);
    }
}
