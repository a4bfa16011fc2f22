//! The rows that a step goes on with behind its last keys and values: whose logits are wanted.
//!
//! ```text
//!  qkv ─► rope, write ─► keep_rows ─► attention ─► projection ─► mlp ─► norm ─► head
//!  every row ────────►   the rows that are wanted, from the first on  ────────►
//! ```
//! Of a prompt that is the last row, of a chunk of one perhaps none.
#![allow(unsafe_code, reason = "moves rows through pointers")]

use std::ops::Range;

use crate::backend::SeqInput;
use crate::error::Result;

/// What `keep_rows` works on.
#[derive(Clone, Copy)]
pub(crate) struct KeepRowsArgs {
    /// `[tokens, width]`, whose rows are brought together.
    pub(crate) x: *mut f32,
    /// Columns; a unit is 16 of them.
    pub(crate) width: usize,
    /// Which row becomes row `i`: no two the same, ascending.
    pub(crate) rows: *const u32,
    /// How many.
    pub(crate) count: usize,
}

/// Moves some columns of all rows that are kept. They ascend: no row is overwritten before it was
/// moved.
pub(crate) unsafe fn keep_rows(a: &KeepRowsArgs, units: Range<usize>) {
    let (start, end) = (units.start * 16, (units.end * 16).min(a.width));
    for i in 0..a.count {
        // SAFETY: the caller vouches for the rows; one of them is itself or lies before.
        unsafe {
            let from = a.x.add(*a.rows.add(i) as usize * a.width + start);
            let to = a.x.add(i * a.width + start);
            std::ptr::copy(from, to, end.saturating_sub(start));
        }
    }
}

/// A step's rows that are wanted, and whether those are all that it has by now.
#[derive(Default)]
pub(crate) struct Kept {
    wanted: Vec<u32>,
    /// Whether `wanted` says which.
    some: bool,
    /// Whether all others were left out.
    only: bool,
    /// The sequences of the rows that were kept, each run of rows as one.
    seqs: Vec<SeqInput>,
}

impl Kept {
    /// Makes room, so that steps do not allocate.
    pub(crate) fn reserve(&mut self, tokens: usize, seqs: usize) -> Result<()> {
        self.wanted.try_reserve(tokens)?;
        self.seqs.try_reserve(seqs)?;
        Ok(())
    }

    /// Takes what a step of so many `tokens` says.
    pub(crate) fn take(&mut self, wanted: Option<&[u32]>, tokens: usize) {
        self.wanted.clear();
        (self.some, self.only) = (false, false);
        let Some(wanted) = wanted else { return };
        assert!(wanted.is_sorted_by(|a, b| a < b), "rows that are wanted ascend");
        assert!(wanted.last().is_none_or(|row| (*row as usize) < tokens), "row out of range");
        self.wanted.extend_from_slice(wanted);
        self.some = wanted.len() < tokens;
    }

    /// The rows to go on with, where not all of them do.
    pub(crate) fn wanted(&self) -> Option<&[u32]> {
        self.some.then_some(&self.wanted)
    }

    /// Leaves all others out.
    pub(crate) fn keep(&mut self, seqs: &[SeqInput]) {
        self.only = true;
        self.seqs.clear();
        let mut next = 0;
        for seq in seqs {
            let end = seq.query_start + seq.query_len;
            let count = self.wanted[next..].partition_point(|row| (*row as usize) < end);
            for run in self.wanted[next..next + count].chunk_by(|a, b| a + 1 == *b) {
                self.seqs.push(SeqInput {
                    query_start: next,
                    query_len: run.len(),
                    context_len: seq.context_len + run[0] as usize - seq.query_start,
                    ..*seq
                });
                next += run.len();
            }
        }
    }

    /// The sequences of the rows that were kept; `None` while a step has all of its rows.
    pub(crate) fn seqs(&self) -> Option<&[SeqInput]> {
        self.only.then_some(&self.seqs)
    }

    /// How many rows are left of a step of `tokens`.
    pub(crate) fn rows_of(&self, tokens: usize) -> usize {
        if self.only { self.wanted.len() } else { tokens }
    }

    /// Where a row of the step is now.
    pub(crate) fn place(&self, row: u32) -> u32 {
        if !self.only {
            return row;
        }
        let place = self.wanted.binary_search(&row);
        place.expect("logits are asked for of rows that were wanted") as u32
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn seq(query_start: usize, query_len: usize, context_len: usize) -> SeqInput {
        SeqInput {
            query_start,
            query_len,
            context_len,
            block_table_start: query_start,
            num_blocks: 9,
        }
    }

    fn kept(wanted: &[u32], seqs: &[SeqInput], tokens: usize) -> Vec<(usize, usize, usize, usize)> {
        let mut kept = Kept::default();
        kept.take(Some(wanted), tokens);
        kept.keep(seqs);
        let seqs = kept.seqs().unwrap().iter();
        seqs.map(|s| (s.query_start, s.query_len, s.context_len, s.block_table_start)).collect()
    }

    #[test]
    fn each_run_of_rows_is_a_sequence() {
        let seqs = [seq(0, 1, 7), seq(1, 4, 10), seq(5, 3, 0)];
        assert_eq!(kept(&[0, 4, 7], &seqs, 8), [(0, 1, 7, 0), (1, 1, 13, 1), (2, 1, 2, 5)]);
        assert_eq!(kept(&[1, 2, 4, 5], &seqs, 8), [(0, 2, 10, 1), (2, 1, 13, 1), (3, 1, 0, 5)]);
        assert_eq!(kept(&[7], &seqs, 8), [(0, 1, 2, 5)]);
        assert_eq!(kept(&[], &seqs, 8), []);
    }

    #[test]
    fn rows_are_found_where_they_went() {
        let mut kept = Kept::default();
        kept.take(Some(&[2, 5]), 6);
        assert_eq!((kept.rows_of(6), kept.place(5)), (6, 5));
        kept.keep(&[seq(0, 6, 0)]);
        assert_eq!((kept.rows_of(6), kept.place(5)), (2, 1));
        kept.take(Some(&[0, 1]), 2);
        assert!(kept.wanted().is_none(), "all of them are nothing to leave out");
    }

    #[test]
    fn rows_move_to_the_front() {
        let mut x: Vec<f32> = (0..6 * 20).map(|i| i as f32).collect();
        let rows = [0, 3, 5];
        let args = KeepRowsArgs { x: x.as_mut_ptr(), width: 20, rows: rows.as_ptr(), count: 3 };
        // SAFETY: six rows of twenty; both units.
        unsafe {
            keep_rows(&args, 0..1);
            keep_rows(&args, 1..2);
        }
        let first = |row: usize| x[row * 20];
        assert_eq!((first(0), first(1), first(2), x[2 * 20 + 19]), (0.0, 60.0, 100.0, 119.0));
    }
}
