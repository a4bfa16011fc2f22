//! Rotary embeddings, and the step in which queries and keys are normalised and rotated and keys
//! and values written to the cache.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::ops::Range;

use super::kv::LayerKv;
use super::memory::Buffer;
use super::norm::rms_row;
use super::share;
use super::simd::Simd16;
use super::simd::hint::prefetch_lines;
use super::thread_pool::ThreadPool;
use crate::backend::{Heads, RopeSpec};
use crate::error::Result;

/// Cosines and sines, computed in f64 and rounded once.
pub(crate) struct RopeTable {
    /// `rotary_dim / 2`.
    pub(crate) half: usize,
    /// Positions covered.
    pub(crate) positions: usize,
    /// `[positions][2][half]`: cosines, sines.
    values: Buffer<f32>,
}

impl RopeTable {
    /// Computes the table on all threads.
    pub(crate) fn new(spec: &RopeSpec, pool: &mut ThreadPool) -> Result<Self> {
        let half = spec.inv_freq.len();
        let len = spec.max_positions.saturating_mul(2 * half);
        let values = Buffer::<f32>::zeroed(len, "rotary embedding")?;
        let threads = pool.threads();
        let magnitude = f64::from(spec.magnitude);
        // The angles of the first positions, to which those of a run's first position are added: in
        // f64, so that what is rounded to f32 is off by 1e-9 of a step at most.
        let turns =
            |position: usize| spec.inv_freq.iter().map(move |f| (position as f64 * f).sin_cos());
        let mut fine: Vec<(f64, f64)> = Vec::new();
        fine.try_reserve_exact(RUN * half)?;
        fine.extend((0..RUN).flat_map(turns));
        pool.run(&|thread| {
            let (mut coarse, mut run) = (vec![(0.0, 0.0); half], usize::MAX);
            for position in share(spec.max_positions, thread, threads) {
                if position / RUN != run {
                    run = position / RUN;
                    coarse.iter_mut().zip(turns(run * RUN)).for_each(|(to, turn)| *to = turn);
                }
                let fine = &fine[position % RUN * half..][..half];
                for (i, ((s, c), (fine_s, fine_c))) in coarse.iter().zip(fine).enumerate() {
                    let (sin, cos) = (s * fine_c + c * fine_s, c * fine_c - s * fine_s);
                    // SAFETY: within `[positions][2][half]`; each position has one thread.
                    unsafe {
                        let row = values.as_ptr().add(position * 2 * half);
                        *row.add(i) = (cos * magnitude) as f32;
                        *row.add(half + i) = (sin * magnitude) as f32;
                    }
                }
            }
        });
        Ok(Self { half, positions: spec.max_positions, values })
    }

    /// `[positions][2][half]`.
    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.values.as_ptr()
    }
}

/// Positions whose angles share a first part.
const RUN: usize = 256;

/// What `rope_write` works on; a unit is one head of one row, queries, keys, then values.
#[derive(Clone, Copy)]
pub(crate) struct RopeArgs {
    /// `[rows, qkv_width]`, changed in place.
    pub(crate) qkv: *mut f32,
    /// Head counts.
    pub(crate) heads: Heads,
    /// Weights of the query and key norms, `[head_dim]`; null when there are none.
    pub(crate) q_norm: *const f32,
    pub(crate) k_norm: *const f32,
    pub(crate) eps: f32,
    /// `[positions][2][half]`; null when the model has none.
    pub(crate) table: *const f32,
    /// Pairs that turn.
    pub(crate) half: usize,
    /// `[rows]`.
    pub(crate) positions: *const u32,
    /// `[rows]`, where each row's K and V go.
    pub(crate) slots: *const u64,
    /// The layer's cache.
    pub(crate) kv: LayerKv,
    /// Queries become bf16, each in the first half of its place: attention reads them so.
    pub(crate) narrow: bool,
}

impl RopeArgs {
    /// Heads of a row.
    #[inline(always)]
    pub(crate) fn per_row(&self) -> usize {
        self.heads.num_heads + 2 * self.heads.num_kv_heads
    }

    #[inline(always)]
    fn at(&self, row: usize, head: usize) -> *mut f32 {
        self.qkv.wrapping_add((row * self.per_row() + head) * self.heads.head_dim)
    }

    /// Asks for a head that comes soon. Another core may have made it: far, while the next ones are
    /// not guessed.
    #[inline(always)]
    fn ask(&self, row: usize, head: usize) {
        prefetch_lines(self.at(row, head).cast(), self.heads.head_dim * size_of::<f32>());
    }

    /// Whether `ROWS` rows from `row` on are written to slots side by side, the first of an even
    /// number.
    #[inline(always)]
    unsafe fn is_run(&self, row: usize) -> bool {
        // SAFETY: the caller vouches for the rows.
        unsafe {
            let first = *self.slots.add(row);
            let mut run = first.is_multiple_of(ROWS as u64);
            for i in 1..ROWS {
                run &= *self.slots.add(row + i) == first + i as u64;
            }
            run
        }
    }
}

/// Heads that are asked for before they are needed.
const AHEAD: usize = 12;
/// Rows of which one head after the other is written: that of one block stays in the first cache.
const ROWS: usize = 8;

/// Normalises, rotates, and writes to the cache.
#[inline(always)]
pub(crate) unsafe fn rope_write<S: Simd16>(a: &RopeArgs, units: Range<usize>) {
    let per_row = a.per_row();
    let mut unit = units.start;
    while unit < units.end {
        let (row, head) = (unit / per_row, unit % per_row);
        // SAFETY: the unit is in range, by `Kernel`'s contract; positions and slots were checked
        // against the table and the cache when the step began.
        unsafe {
            if head == 0 && unit + ROWS * per_row <= units.end && a.is_run(row) {
                rows::<S>(a, row);
                unit += ROWS * per_row;
            } else {
                a.ask(row, head + AHEAD);
                turn::<S>(a, row, head);
                write::<S>(a, row, head);
                unit += 1;
            }
        }
    }
}

/// A run of `ROWS` rows, head by head.
#[inline(always)]
unsafe fn rows<S: Simd16>(a: &RopeArgs, first: usize) {
    let (values, per_row) = (a.heads.num_heads + a.heads.num_kv_heads, a.per_row());
    let by_pairs = a.kv.takes_pairs();
    for head in 0..per_row {
        for row in first..first + ROWS {
            // The same rows of the next head; behind the last one, those of the next run.
            match head + 1 < per_row {
                true => a.ask(row, head + 1),
                false => a.ask(row + ROWS, 0),
            }
            // SAFETY: as in `rope_write`; a run starts at an even slot.
            unsafe {
                turn::<S>(a, row, head);
                if head < values || !by_pairs {
                    write::<S>(a, row, head);
                } else if row % 2 != first % 2 {
                    let (slot, even) = (*a.slots.add(row - 1) as usize, a.at(row - 1, head));
                    a.kv.write_v_pair::<S>(slot, head - values, even, a.at(row, head));
                }
            }
        }
    }
}

/// Normalises and rotates queries and keys.
#[inline(always)]
unsafe fn turn<S: Simd16>(a: &RopeArgs, row: usize, head: usize) {
    let (queries, keys) = (a.heads.num_heads, a.heads.num_kv_heads);
    let (x, dim) = (a.at(row, head), a.heads.head_dim);
    if head >= queries + keys {
        return;
    }
    // SAFETY: as in `rope_write`.
    unsafe {
        let norm = if head < queries { a.q_norm } else { a.k_norm };
        if !norm.is_null() {
            rms_row::<S>(x, x, norm, dim, a.eps);
        }
        if !a.table.is_null() {
            let position = *a.positions.add(row) as usize;
            rotate::<S>(x, a.table.add(position * 2 * a.half), a.half);
        }
        if head < queries && a.narrow {
            narrow::<S>(x, dim);
        }
    }
}

/// Writes a key or a value to the cache.
#[inline(always)]
unsafe fn write<S: Simd16>(a: &RopeArgs, row: usize, head: usize) {
    let (queries, keys) = (a.heads.num_heads, a.heads.num_kv_heads);
    // SAFETY: as in `rope_write`.
    unsafe {
        let (slot, x) = (*a.slots.add(row) as usize, a.at(row, head));
        if head >= queries + keys {
            a.kv.write_v::<S>(slot, head - queries - keys, x);
        } else if head >= queries {
            a.kv.write_k::<S>(slot, head - queries, x);
        }
    }
}

/// Rounds `dim` elements, whole vectors, to bf16 in place.
#[inline(always)]
unsafe fn narrow<S: Simd16>(x: *mut f32, dim: usize) {
    for i in (0..dim).step_by(16) {
        // SAFETY: the caller vouches for them. What is written lies before what is yet to be read.
        unsafe { S::load(x.add(i)).store_bf16(x.cast::<u16>().add(i)) }
    }
}

/// Turns the pairs `(i, i + half)`; `row` is `[2][half]`, cosines then sines.
#[inline(always)]
unsafe fn rotate<S: Simd16>(x: *mut f32, row: *const f32, half: usize) {
    for i in (0..half).step_by(16) {
        let n = (half - i).min(16);
        // SAFETY: the caller vouches for `2 * half` elements of both; accesses are cut to that.
        unsafe {
            let (low, high) = (x.add(i), x.add(half + i));
            let (a, b) = (S::load_first(low, n), S::load_first(high, n));
            let (cos, sin) = (S::load_first(row.add(i), n), S::load_first(row.add(half + i), n));
            a.mul(cos).sub(b.mul(sin)).store_first(low, n);
            b.mul(cos).add(a.mul(sin)).store_first(high, n);
        }
    }
}
