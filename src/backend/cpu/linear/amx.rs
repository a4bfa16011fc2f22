//! Linear layers by AMX: tiles of sixteen rows by sixteen outputs.
//!
//! ```text
//!  a thread's panels ─► groups that stay in L2 ─► strips of 32 rows ─► blocks along K, whose
//!  inputs stay in L1 ─► one or two tiles of rows by up to four panels ─► sums ─► outputs
//! ```
//! A panel's sixteen steps are a B tile as they lie in memory, and rows of inputs are A tiles, so
//! nothing is packed anew. `tdpbf16ps` adds to an output what 32 inputs make, whatever its tile's
//! rows: sums may wait in memory between blocks, one row is computed as many are, and a row's
//! result is the same bits in any batch. Fewer rows than sixteen are fewer rows of the tile: none
//! past the last is read.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::amx_tiles::{Config, Feed, STRIP, SUMS, TILE, release};
use super::avx512bf16::Dot;
use super::tiles::finish;
use super::{LinearArgs, Panel};
use crate::backend::cpu::simd::Simd16;
use crate::backend::cpu::simd::avx512::Avx512;

/// What multiplies a strip of rows by some panels.
pub(crate) trait Product {
    /// Steps, as `LinearArgs` counts them, that all panels of a group go through before the next:
    /// some 32 KiB of inputs.
    const BLOCK: usize;
    /// Panels that one tile of rows and that two are multiplied by at a time.
    const PANELS: [usize; 2];
    /// Inputs in bytes of an A tile's row; B tiles have a quarter as many rows.
    const DEPTH: u16;
    /// Adds what some steps make to `sums`, `[panels][STRIP][16]`.
    unsafe fn add(part: &Part<'_>, sums: *mut f32);
    /// What rounds outputs that the next layer reads in bf16.
    type Rounding: Panel<Acc = Avx512>;
    /// What a sum of sixteen outputs of a panel stands for.
    unsafe fn scale(a: &LinearArgs, panel: usize, sum: Avx512) -> Avx512;
}

/// Some steps of a strip of rows and some panels.
pub(crate) struct Part<'a> {
    pub(crate) a: &'a LinearArgs,
    /// First row and rows, up to `STRIP`.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// First panel and panels.
    pub(crate) panel: usize,
    pub(crate) panels: usize,
    /// The first of them makes the sums anew.
    pub(crate) steps: Range<usize>,
    /// Weights to ask for meanwhile, `AHEAD` bytes for each tile of inputs; null: these very
    /// weights are asked for, shortly before they are used.
    pub(crate) ahead: *const u8,
}

/// bf16 by bf16.
pub(crate) struct Bf16;

impl Product for Bf16 {
    const BLOCK: usize = 256;
    const PANELS: [usize; 2] = [4, 2];
    const DEPTH: u16 = 64;
    type Rounding = Dot<true>;

    #[inline(always)]
    unsafe fn add(p: &Part<'_>, sums: *mut f32) {
        // SAFETY: rows, panels and steps are in range. Steps are pairs of inputs, sixteen to a
        // tile: K is padded to whole tiles.
        unsafe {
            let x = p.a.x.cast::<u16>().add(p.row * p.a.ldx + 2 * p.steps.start).cast::<u8>();
            SUMS.multiply(
                &Feed {
                    a: x,
                    a_stride: 2 * p.a.ldx,
                    b: p.a.weights.add(p.panel * p.a.panel_bytes + 64 * p.steps.start),
                    panel_bytes: p.a.panel_bytes,
                    depth: p.steps.len() / 16,
                    c: sums.cast(),
                    anew: p.steps.start == 0,
                    ahead: p.ahead,
                },
                p.rows,
                p.panels,
            );
        }
    }

    #[inline(always)]
    unsafe fn scale(_a: &LinearArgs, _panel: usize, sum: Avx512) -> Avx512 {
        sum
    }
}

/// Sums of a strip: `[panels of a group][STRIP][16]`.
#[repr(C, align(64))]
struct Sums([f32; GROUP_PANELS * STRIP * 16]);

/// Computes all rows of the outputs of `units`: panels, or pairs of gated panels.
#[inline(always)]
pub(crate) unsafe fn run<P: Product>(a: &LinearArgs, units: Range<usize>) {
    let panels = if a.gated { 2 * units.start..2 * units.end } else { units };
    if a.rows == 0 || panels.is_empty() {
        return;
    }
    let mut sums = MaybeUninit::<Sums>::uninit();
    let sums = sums.as_mut_ptr().cast::<f32>();
    // One strip streams its weights from memory; more of them find them in L2, and the last ones
    // ask for the next group.
    let strips = a.rows.div_ceil(STRIP);
    let (per_group, block) = match strips {
        1 => (panels.len(), a.steps),
        _ => ((GROUP_BYTES / a.panel_bytes).clamp(2, GROUP_PANELS) / 2 * 2, P::BLOCK),
    };
    let mut configured = 0;
    for start in panels.clone().step_by(per_group) {
        let group = start..(start + per_group).min(panels.end);
        let mut ahead = a.weights.wrapping_add(group.end * a.panel_bytes);
        for row in (0..a.rows).step_by(STRIP) {
            let rows = (a.rows - row).min(STRIP);
            if rows != configured {
                Config::new(rows, P::DEPTH).load();
                configured = rows;
            }
            let asks = group.end < panels.end && row + ASKING_STRIPS * STRIP >= a.rows;
            let mut strip = Strip { a, row, rows, strips, block, asks, ahead, sums };
            // SAFETY: the caller's contract; rows and panels are in range, the tiles have the
            // strip's shape, and the sums have room for a group.
            unsafe { strip.run::<P>(&group) };
            ahead = strip.ahead;
        }
    }
    release();
}

/// One strip of rows over a group of panels.
struct Strip<'a> {
    a: &'a LinearArgs,
    row: usize,
    rows: usize,
    /// Of all rows.
    strips: usize,
    /// Steps of a block.
    block: usize,
    /// Whether it asks for what lies at `ahead`.
    asks: bool,
    ahead: *const u8,
    sums: *mut f32,
}

impl Strip<'_> {
    #[inline(always)]
    unsafe fn run<P: Product>(&mut self, group: &Range<usize>) {
        let widest = P::PANELS[usize::from(self.rows > TILE)];
        for first in (0..self.a.steps).step_by(self.block) {
            let steps = first..(first + self.block).min(self.a.steps);
            let mut panel = group.start;
            while panel < group.end {
                let left = group.end - panel;
                let panels = [4, 2, 1].into_iter().find(|n| *n <= left.min(widest)).unwrap_or(1);
                // With one block they are finished at once, and the room is used again.
                let kept = if self.block < self.a.steps { panel - group.start } else { 0 };
                // SAFETY: the caller's contract; a group that needs several blocks has no more
                // than `GROUP_PANELS`, and at most four panels are computed at a time.
                unsafe {
                    let sums = self.sums.add(kept * STRIP * 16);
                    P::add(&self.part(panel, panels, steps.clone()), sums);
                    if steps.end == self.a.steps {
                        self.finish::<P>(panel, panels, sums);
                    }
                }
                panel += panels;
            }
        }
    }

    #[inline(always)]
    fn part(&mut self, panel: usize, panels: usize, steps: Range<usize>) -> Part<'_> {
        let a = self.a;
        let mut ahead = std::ptr::null();
        if self.asks {
            ahead = self.ahead;
            // As far as the tiles of these steps ask.
            self.ahead = ahead.wrapping_add(steps.len() * (a.panel_bytes / a.steps) / 2);
        } else if self.strips > 1 && self.row > 0 {
            // They are in L2 already.
            ahead = a.weights.wrapping_add(panel * a.panel_bytes);
        }
        Part { a, row: self.row, rows: self.rows, panel, panels, steps, ahead }
    }

    #[inline(always)]
    unsafe fn finish<P: Product>(&self, panel: usize, panels: usize, sums: *const f32) {
        // SAFETY: the caller's contract; gated panels come in pairs.
        unsafe {
            let sum = |n: usize, r: usize| {
                let sum = Avx512::load(sums.add((n * STRIP + r) * 16));
                P::scale(self.a, panel + n, sum)
            };
            for n in (0..panels).step_by(if self.a.gated { 2 } else { 1 }) {
                for r in 0..self.rows {
                    let row = self.row + r;
                    if self.a.gated {
                        finish::<P::Rounding, 1, 2>(
                            self.a,
                            row,
                            panel + n,
                            [[sum(n, r), sum(n + 1, r)]],
                        );
                    } else {
                        finish::<P::Rounding, 1, 1>(self.a, row, panel + n, [[sum(n, r)]]);
                    }
                }
            }
        }
    }
}

/// Weights that all strips of rows go over before the next: a quarter of an L2 of 2 MiB.
const GROUP_BYTES: usize = 512 << 10;
/// Panels of a group whose sums wait between blocks.
const GROUP_PANELS: usize = 16;
/// The last strips of a group, which ask for the next.
const ASKING_STRIPS: usize = 4;
