//! Register tiles and cache blocks of linear layers, for every path and weight type alike.
//!
//! ```text
//!  a thread's panels ─► groups that stay in L2 ─► strips of ROWS rows ─► tiles ROWS x PANELS
//! ```
//! Weights come from memory once; all strips of rows go over a group while it is in L2.

use std::marker::PhantomData;
use std::ops::Range;

use super::{LinearArgs, Panel};
use crate::backend::cpu::simd::Simd16;

/// What computes a tile: `R` rows by `N` panels, all of K, in registers.
pub(crate) trait Tiles {
    /// Computes rows from `row` on of the outputs from `panel` on.
    unsafe fn tile<const R: usize, const N: usize>(a: &LinearArgs, row: usize, panel: usize);
}

/// One chain of multiplications and additions along K.
pub(crate) struct Chain<P>(PhantomData<P>);

/// Computes all rows of the outputs of `panels`.
#[inline(always)]
pub(crate) unsafe fn run<T: Tiles, const ROWS: usize, const PANELS: usize>(
    a: &LinearArgs,
    panels: Range<usize>,
) {
    let per_group = (GROUP_BYTES / a.panel_bytes.max(1)).max(PANELS) / PANELS * PANELS;
    let mut start = panels.start;
    while start < panels.end {
        let group = start..(start + per_group).min(panels.end);
        let mut row = 0;
        while row < a.rows {
            let left = a.rows - row;
            // SAFETY: the caller's contract; rows stay below `a.rows`.
            unsafe {
                if left >= ROWS {
                    strip::<T, ROWS, PANELS>(a, row, &group);
                    row += ROWS;
                } else if left >= 4 {
                    strip::<T, 4, PANELS>(a, row, &group);
                    row += 4;
                } else if left >= 2 {
                    strip::<T, 2, PANELS>(a, row, &group);
                    row += 2;
                } else {
                    strip::<T, 1, PANELS>(a, row, &group);
                    row += 1;
                }
            }
        }
        start = group.end;
    }
}

/// `R` rows over a group of panels.
#[inline(always)]
unsafe fn strip<T: Tiles, const R: usize, const PANELS: usize>(
    a: &LinearArgs,
    row: usize,
    group: &Range<usize>,
) {
    let mut panel = group.start;
    // SAFETY: the caller's contract; panels stay within the group.
    unsafe {
        while panel + PANELS <= group.end {
            T::tile::<R, PANELS>(a, row, panel);
            panel += PANELS;
        }
        while panel < group.end {
            T::tile::<R, 1>(a, row, panel);
            panel += 1;
        }
    }
}

impl<P: Panel> Tiles for Chain<P> {
    #[inline(always)]
    unsafe fn tile<const R: usize, const N: usize>(a: &LinearArgs, row: usize, panel: usize) {
        let mut acc = [[P::Acc::splat(0.0); N]; R];
        // SAFETY: rows and panels are in range, and each panel and each input row hold `steps`
        // steps (rows are zero-padded where K is not a multiple of a step).
        unsafe {
            let x = a.x.cast::<P::X>().add(row * a.ldx);
            let w = a.weights.add(panel * a.panel_bytes);
            for step in 0..a.steps {
                let mut weights = [P::weights(w.add(step * P::STEP_BYTES)); N];
                P::Acc::prefetch(w.wrapping_add(step * P::STEP_BYTES + PREFETCH_BYTES));
                for (n, slot) in weights.iter_mut().enumerate().skip(1) {
                    let p = w.add(n * a.panel_bytes + step * P::STEP_BYTES);
                    *slot = P::weights(p);
                    P::Acc::prefetch(p.wrapping_add(PREFETCH_BYTES));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let b = P::broadcast(x.add(r * a.ldx + step * P::STEP));
                    for (n, acc) in acc.iter_mut().enumerate() {
                        *acc = P::step(*acc, weights[n], b);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (n, acc) in acc.iter().enumerate() {
                    finish(a, row + r, panel + n, *acc);
                }
            }
        }
    }
}

/// Bias, residual and store of one row's sixteen outputs.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd16>(a: &LinearArgs, row: usize, panel: usize, acc: S) {
    let column = panel * 16;
    let width = (a.n - column).min(16);
    // SAFETY: the row is in range, `width` keeps within it; the bias is padded to whole panels.
    unsafe {
        let out = a.out.add(row * a.ldo + column);
        let mut y = acc;
        if !a.bias.is_null() {
            y = y.add(S::load(a.bias.add(column)));
        }
        if a.add {
            y = S::load_first(out, width).add(y);
        }
        y.store_first(out, width);
    }
}

/// Weights that all strips of rows go over before the next: half of a usual L2.
const GROUP_BYTES: usize = 512 << 10;
/// How far ahead weights are asked for. The hardware stops at page ends; this does not.
const PREFETCH_BYTES: usize = 1536;
