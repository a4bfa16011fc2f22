//! One span by AMX: the vectors are the rows of up to two A tiles, keys and values the B tiles.
//!
//! ```text
//!  scores  32 elements of 16 positions are a B tile, as they lie in blocks of 16; else staged
//!  values  32 positions of 16 elements are a B tile, staged: positions past the last are zeros
//! ```
//! Elements are cut by 32 from the first on, positions by 32 from the span's first on, whatever
//! the blocks, so that a vector's bits depend on nothing else.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::cached::Cached;
use super::softmax::softmax;
use super::span::{Rows, Tile};
use super::{SPAN, Softmax, TILE_VECTORS};
use crate::backend::cpu::linear::amx_tiles::{Config, Feed, SCORES, STRIP, SUMS, release};
use crate::backend::cpu::simd::Simd16;

const _: () = assert!(TILE_VECTORS == STRIP && SPAN == 256, "as `SCORES` has them");

/// Positions, and elements, of a B tile.
const DEPTH: usize = 32;
/// Bytes of a row of tiles.
const ROW: usize = 64;

/// Memory for B tiles, and for sums.
#[repr(C, align(64))]
struct Staged<const BYTES: usize>([u8; BYTES]);

/// Computes span number `span` of every query vector.
#[inline(always)]
pub(super) unsafe fn run<P: Cached>(
    t: &Tile<'_, P::X>,
    rows: &Rows,
    span: usize,
) -> [Softmax; TILE_VECTORS] {
    let start = span * SPAN;
    let mut results = [Softmax::EMPTY; TILE_VECTORS];
    // What any of the vectors sees.
    let seen = rows.visible(0, start).0..rows.visible(rows.count - 1, start).1;
    if seen.is_empty() {
        return results;
    }
    let whole = (seen.start / DEPTH * DEPTH, seen.end.next_multiple_of(DEPTH));
    // SAFETY: by `attend`'s contract.
    unsafe {
        scores::<P>(t, rows.count, start, &seen);
        softmax::<P>(t, rows, start, whole, &mut results);
        values::<P>(t, rows.count, start, &seen);
    }
    release();
    results
}

/// Where the keys of eight positions begin. Those past the sequence's blocks are masked later.
#[inline(always)]
fn keys<X>(t: &Tile<'_, X>, position: usize) -> *const u8 {
    let size = t.kv.block_size;
    let block = t.blocks[(position / size).min(t.blocks.len() - 1)];
    t.kv.k.wrapping_add(t.kv.k_at(block.index(), t.kv_head, position % size))
}

/// Scores of all vectors at the groups of sixteen positions that hold `seen`.
#[inline(always)]
unsafe fn scores<P: Cached>(t: &Tile<'_, P::X>, count: usize, start: usize, seen: &Range<usize>) {
    let steps = t.kv.dim.div_ceil(2);
    let (whole, rest) = (steps / 16, steps % 16);
    // SAFETY: the caller's contract. The last elements are a tile of fewer rows.
    unsafe {
        if whole > 0 {
            Config::new(count, ROW as u16).load();
            let steps_of = (0..whole).map(|tile| (tile * 16, 16));
            score_pairs::<P>(t, count, start, seen, steps_of);
        }
        if rest > 0 {
            Config::new(count, 4 * rest as u16).load();
            score_pairs::<P>(t, count, start, seen, std::iter::once((whole * 16, rest)));
        }
    }
}

/// Adds to all scores, group by group and two at a time, what tiles of (first step, steps) make.
#[inline(always)]
unsafe fn score_pairs<P: Cached>(
    t: &Tile<'_, P::X>,
    count: usize,
    start: usize,
    seen: &Range<usize>,
    tiles: impl ExactSizeIterator<Item = (usize, usize)> + Clone,
) {
    let mut staged = MaybeUninit::<Staged<{ 2 * 16 * ROW }>>::uninit();
    let staged = staged.as_mut_ptr().cast::<u8>();
    let contiguous = t.kv.block_size == 16;
    let mut group = seen.start / 16;
    while group * 16 < seen.end {
        let at = start + group * 16;
        let panels = if (group + 1) * 16 < seen.end { 2 } else { 1 };
        // SAFETY: the caller's contract; a staged tile has up to sixteen rows.
        unsafe {
            ask::<P>(t, at, panels);
            let mut feed = Feed {
                a: t.queries.cast(),
                a_stride: 2 * t.kv.dim_padded,
                b: staged,
                panel_bytes: 16 * ROW,
                depth: 1,
                c: t.scores.add(group * 16).cast(),
                anew: true,
                ahead: staged,
            };
            if contiguous {
                let (first, _) = tiles.clone().next().unwrap_or((0, 0));
                feed.a = feed.a.add(first * 4);
                feed.b = keys(t, at).add(first * ROW);
                let second = keys(t, at + 16).addr().wrapping_sub(keys(t, at).addr());
                (feed.panel_bytes, feed.depth) = (second, tiles.len());
                (feed.anew, feed.ahead) = (first == 0, feed.b);
                SCORES.multiply(&feed, count, panels);
            } else {
                for (first, steps) in tiles.clone() {
                    for n in 0..panels {
                        stage_keys(t, at + 16 * n, first..first + steps, staged.add(n * 16 * ROW));
                    }
                    (feed.a, feed.anew) = (t.queries.cast::<u8>().add(first * 4), first == 0);
                    SCORES.multiply(&feed, count, panels);
                }
            }
        }
        group += panels;
    }
}

/// Brings some steps of sixteen positions together.
#[inline(always)]
unsafe fn stage_keys<X>(t: &Tile<'_, X>, position: usize, steps: Range<usize>, to: *mut u8) {
    let (low, high) = (keys(t, position), keys(t, position + 8));
    let apart = t.kv.k_apart();
    for (row, step) in steps.enumerate() {
        // SAFETY: eight positions of a step lie together; the caller has room for sixteen.
        unsafe {
            let to = to.add(row * ROW);
            low.add(step * apart).copy_to_nonoverlapping(to, ROW / 2);
            high.add(step * apart).copy_to_nonoverlapping(to.add(ROW / 2), ROW / 2);
        }
    }
}

/// Asks for the keys behind some groups, and for these groups' values.
#[inline(always)]
unsafe fn ask<P: Cached>(t: &Tile<'_, P::X>, position: usize, groups: usize) {
    let apart = t.kv.k_apart();
    for n in 0..groups {
        let position = position + 16 * n;
        let next = keys(t, position + 32);
        let values = t.kv.v.wrapping_add(value_at(t, position, 0));
        for step in 0..t.kv.dim.div_ceil(2) {
            P::Acc::prefetch(next.wrapping_add(step * apart));
            P::Acc::prefetch_l2(values.wrapping_add(step * ROW));
        }
    }
}

/// Byte of the cache where a position's step of sixteen elements lies.
#[inline(always)]
fn value_at<X>(t: &Tile<'_, X>, position: usize, group: usize) -> usize {
    let size = t.kv.block_size;
    let block = t.blocks[(position / size).min(t.blocks.len() - 1)];
    t.kv.v_at(block.index(), t.kv_head, group, position % size)
}

/// Values of all vectors, two groups of sixteen elements at a time.
#[inline(always)]
unsafe fn values<P: Cached>(t: &Tile<'_, P::X>, count: usize, start: usize, seen: &Range<usize>) {
    const PANEL: usize = SPAN / 2 * ROW;
    let mut staged = MaybeUninit::<Staged<{ 2 * PANEL }>>::uninit();
    let staged = staged.as_mut_ptr().cast::<u8>();
    let mut sums = MaybeUninit::<Staged<{ 2 * STRIP * ROW }>>::uninit();
    let sums = sums.as_mut_ptr().cast::<f32>();
    let (from, to) = (seen.start / DEPTH * DEPTH, seen.end.next_multiple_of(DEPTH));
    let (groups, width) = (t.kv.dim_padded / 16, t.kv.dim_padded);
    Config::new(count, ROW as u16).load();
    let mut group = 0;
    while group < groups {
        let panels = (groups - group).min(2);
        // SAFETY: the caller's contract; a panel has room for a span.
        unsafe {
            for n in 0..panels {
                for at in (from..to).step_by(8) {
                    let to = staged.add(n * PANEL + (at - from) / 2 * ROW);
                    stage_values(t, (start, at), group + n, seen, to);
                }
            }
            let feed = Feed {
                a: t.probabilities.cast::<u8>().add(2 * from),
                a_stride: 2 * SPAN,
                b: staged,
                panel_bytes: PANEL,
                depth: (to - from) / DEPTH,
                c: sums.cast(),
                anew: true,
                ahead: staged,
            };
            SUMS.multiply(&feed, count, panels);
            for n in 0..panels {
                for v in 0..count {
                    let to = t.values.add(v * width + (group + n) * 16);
                    P::Acc::load(sums.add((n * STRIP + v) * 16)).store(to);
                }
            }
        }
        group += panels;
    }
}

/// Brings eight positions of sixteen elements to `to`, zeros for those outside `seen`: what lies
/// there was perhaps never written.
#[inline(always)]
unsafe fn stage_values<X>(
    t: &Tile<'_, X>,
    (start, at): (usize, usize),
    group: usize,
    seen: &Range<usize>,
    to: *mut u8,
) {
    // SAFETY: the caller has room for four steps; in the cache eight positions lie together.
    unsafe {
        if at + 8 <= seen.start / 8 * 8 || at >= seen.end {
            return to.write_bytes(0, 4 * ROW);
        }
        let from = t.kv.v.add(value_at(t, start + at, group));
        from.copy_to_nonoverlapping(to, 4 * ROW);
        for past in seen.end - at..8 {
            // Position `past` is one half of every four bytes of its step.
            let step = to.add(past / 2 * ROW).cast::<u16>();
            for lane in 0..16 {
                *step.add(2 * lane + past % 2) = 0;
            }
        }
    }
}
