//! Register tiles and cache blocks of linear layers, for every path and weight type alike.
//!
//! ```text
//!  a thread's panels ─► groups that stay in L2 ─► strips of ROWS rows ─► tiles ROWS x PANELS
//! ```
//! Weights come from memory once; all strips of rows go over a group while it is in L2. The last of
//! them ask for the next group, so that reading and multiplying go on side by side.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::{InputForm, LinearArgs, Panel};
use crate::backend::Activation;
use crate::backend::cpu::elementwise::apply;
use crate::backend::cpu::simd::Simd16;

/// What computes the sums of a tile: `R` rows by `N` panels, all of K, in registers.
pub(crate) trait Tiles {
    /// What the sums are in, and what rounds outputs that the next layer reads.
    type Out: Panel;
    /// Steps along K between two calls of `Ahead::ask`.
    const BLOCK: usize;
    /// Rows up to which panels are streamed in pairs.
    const PAIRED_ROWS: usize;
    /// Sums of rows from `row` on and of the outputs from `panel` on. With `STREAM` these are all
    /// rows, and memory has to bring the panels in their order: nothing else is asked for.
    unsafe fn sums<const R: usize, const N: usize, const STREAM: bool>(
        a: &LinearArgs,
        row: usize,
        panel: usize,
        ahead: &mut Ahead,
    ) -> [[Sum<Self>; N]; R];
}

/// Sixteen sums.
pub(crate) type Sum<T> = <<T as Tiles>::Out as Panel>::Acc;

/// Weights that are asked for while others are multiplied.
pub(crate) struct Ahead {
    at: *const u8,
    /// Cache lines for each block of steps.
    lines: usize,
}

impl Ahead {
    pub(super) fn nothing() -> Self {
        Self { at: std::ptr::null(), lines: 0 }
    }

    /// Asks for the next lines.
    #[inline(always)]
    pub(super) fn ask<S: Simd16>(&mut self) {
        for _ in 0..self.lines {
            S::prefetch_l2(self.at);
            self.at = self.at.wrapping_add(64);
        }
    }
}

/// One chain of multiplications and additions along K.
pub(crate) struct Chain<P>(PhantomData<P>);

/// Computes all rows of the outputs of `units`: panels, in tiles of `ROWS x PANELS`, or pairs of
/// gated panels, in tiles of `GATED_ROWS x GATED_PANELS`. These are an even number of panels, or 1:
/// then the panels of a pair go one after the other, where registers hold no more.
#[inline(always)]
pub(crate) unsafe fn run<
    T: Tiles,
    const ROWS: usize,
    const PANELS: usize,
    const GATED_ROWS: usize,
    const GATED_PANELS: usize,
>(
    a: &LinearArgs,
    units: Range<usize>,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let range = match a.gated {
            true => 2 * units.start..2 * units.end,
            false => units,
        };
        if a.rows <= STREAMED {
            match a.rows {
                1 => stream::<T, 1>(a, range),
                2 => stream::<T, 2>(a, range),
                3 => stream::<T, 3>(a, range),
                _ => stream::<T, 4>(a, range),
            }
        } else if const { ROWS == GATED_ROWS && pairs(PANELS) == GATED_PANELS } {
            // The same tiles, written out once.
            panels::<T, ROWS, PANELS>(a, range);
        } else if a.gated {
            panels::<T, GATED_ROWS, GATED_PANELS>(a, range);
        } else {
            panels::<T, ROWS, PANELS>(a, range);
        }
    }
}

/// All `R` rows, all that there are, over some panels in the order in which these lie in memory,
/// which brings no other as fast.
#[inline(always)]
unsafe fn stream<T: Tiles, const R: usize>(a: &LinearArgs, panels: Range<usize>) {
    let (mut ahead, mut first, count) = (Ahead::nothing(), panels.start, side_by_side(a));
    if const { R <= T::PAIRED_ROWS } {
        while first + 2 <= panels.end {
            // SAFETY: the caller's contract; gated panels are whole pairs.
            unsafe { tile::<T, R, 2, true>(a, 0, first, &mut ahead) };
            first += 2;
        }
    }
    for panel in (first..panels.end).step_by(count) {
        // SAFETY: as above.
        unsafe { one_by_one::<T, R, true>(a, 0, panel, count, &mut ahead) };
    }
}

/// `R` rows by `N` panels, at once.
#[inline(always)]
unsafe fn tile<T: Tiles, const R: usize, const N: usize, const STREAM: bool>(
    a: &LinearArgs,
    row: usize,
    panel: usize,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's contract.
    unsafe {
        if const { R > 4 } {
            ask_for_outputs::<Sum<T>, R>(a, row, panel, N);
        }
        let sums = T::sums::<R, N, STREAM>(a, row, panel, ahead);
        finish::<T::Out, R, N>(a, row, panel, sums);
    }
}

/// `R` rows by a panel or by two that gate each other, whose sums wait in memory.
#[inline(always)]
unsafe fn one_by_one<T: Tiles, const R: usize, const STREAM: bool>(
    a: &LinearArgs,
    row: usize,
    panel: usize,
    count: usize,
    ahead: &mut Ahead,
) {
    let mut kept = MaybeUninit::<Kept<R, 2>>::uninit();
    let kept = kept.as_mut_ptr().cast::<f32>();
    // SAFETY: the caller's contract; `count` is 2 wherever there is a gate.
    unsafe {
        if const { R > 4 } {
            ask_for_outputs::<Sum<T>, R>(a, row, panel, count);
        }
        // Not a loop for each count: this is most of the code.
        for n in 0..count {
            let sums = T::sums::<R, 1, STREAM>(a, row, panel + n, ahead);
            match a.gate {
                None => finish::<T::Out, R, 1>(a, row, panel + n, sums),
                Some(_) => keep::<Sum<T>, R, 1>(sums, kept.add(n * R * 16)),
            }
        }
        if a.gate.is_some() {
            gate::<T::Out, R, 2>(a, (row, panel), kept);
        }
    }
}

/// Panels whose outputs stand side by side: both of a pair, or one.
#[inline(always)]
fn side_by_side(a: &LinearArgs) -> usize {
    if a.gated { 2 } else { 1 }
}

/// Gated panels of a tile: whole pairs, or one after the other.
const fn pairs(panels: usize) -> usize {
    if panels == 1 { 1 } else { panels / 2 * 2 }
}

/// Panels that are computed before others.
#[inline(always)]
fn at_once<const PANELS: usize>(a: &LinearArgs) -> usize {
    match const { PANELS } {
        1 => side_by_side(a),
        _ if a.gated => pairs(PANELS),
        _ => PANELS,
    }
}

#[inline(always)]
unsafe fn panels<T: Tiles, const ROWS: usize, const PANELS: usize>(
    a: &LinearArgs,
    panels: Range<usize>,
) {
    let strips = a.rows.div_ceil(ROWS);
    // One strip alone streams its weights by itself.
    let asks = strips > 1;
    // Half of the L2 that all strips go over before the next; less with more of the next in it.
    let group = <Sum<T> as Simd16>::L2_BYTES / 2;
    let bytes = match strips {
        ..=1 => group,
        2..=FEW_STRIPS => group / 2,
        _ => group / 4 * 3,
    };
    let at_once = at_once::<PANELS>(a);
    let per_group = (bytes / a.panel_bytes.max(1)).max(at_once) / at_once * at_once;
    let mut start = panels.start;
    while start < panels.end {
        // Not so that one panel is left alone: its chains are too few to keep the units busy.
        let shorter = const { PANELS > 2 } && panels.end - start == per_group + 1;
        let count = if shorter { per_group - 1 } else { per_group };
        let group = start..(start + count).min(panels.end);
        let next = group.end..(group.end + if asks { per_group } else { 0 }).min(panels.end);
        // SAFETY: the caller's contract; the group is a part of its panels.
        unsafe { self::group::<T, ROWS, PANELS>(a, &group, &next) };
        start = group.end;
    }
}

/// All rows over a group of panels, while `next` is asked for.
#[inline(always)]
unsafe fn group<T: Tiles, const ROWS: usize, const PANELS: usize>(
    a: &LinearArgs,
    group: &Range<usize>,
    next: &Range<usize>,
) {
    let strips = a.rows.div_ceil(ROWS);
    let asking = strips.min(ASKING_STRIPS);
    let passes = if const { PANELS == 1 } { 1 } else { at_once::<PANELS>(a) };
    let passes = group.len().div_ceil(passes);
    let blocks = passes * a.steps.div_ceil(T::BLOCK) * asking;
    let lines = (next.len() * a.panel_bytes / 64).div_ceil(blocks.max(1));
    let mut ahead = Ahead { at: a.weights.wrapping_add(next.start * a.panel_bytes), lines: 0 };
    let (mut row, mut strip) = (0, 0);
    while row < a.rows {
        let left = a.rows - row;
        strip += 1;
        ahead.lines = if strip + asking > strips { lines } else { 0 };
        // SAFETY: the caller's contract; rows stay below `a.rows`.
        row += unsafe {
            // Two times four go faster than five, two and one, or six and two.
            if left >= ROWS && !(const { ROWS == 5 || ROWS == 6 } && left == 8) {
                self::strip::<T, ROWS, PANELS>(a, row, group, &mut ahead)
            } else if const { ROWS > 4 } && left >= 4 {
                self::strip::<T, 4, PANELS>(a, row, group, &mut ahead)
            } else if const { ROWS > 2 } && left >= 2 {
                self::strip::<T, 2, PANELS>(a, row, group, &mut ahead)
            } else {
                self::strip::<T, 1, PANELS>(a, row, group, &mut ahead)
            }
        };
    }
}

/// `R` rows over a group of panels.
#[inline(always)]
unsafe fn strip<T: Tiles, const R: usize, const PANELS: usize>(
    a: &LinearArgs,
    row: usize,
    group: &Range<usize>,
    ahead: &mut Ahead,
) -> usize {
    let (mut panel, at_once) = (group.start, at_once::<PANELS>(a));
    while panel < group.end {
        let left = group.end - panel;
        // SAFETY: the caller's contract; panels stay within the group.
        unsafe {
            if const { PANELS == 1 } {
                one_by_one::<T, R, false>(a, row, panel, at_once, ahead);
                panel += at_once;
            // Two pairs go faster than three and one alone.
            } else if left >= PANELS && at_once == PANELS && !(PANELS == 3 && left == 4) {
                tile::<T, R, PANELS, false>(a, row, panel, ahead);
                panel += PANELS;
            } else if const { PANELS > 2 } && left >= 2 {
                tile::<T, R, 2, false>(a, row, panel, ahead);
                panel += 2;
            } else {
                tile::<T, R, 1, false>(a, row, panel, ahead);
                panel += 1;
            }
        }
    }
    R
}

impl<P: Panel> Tiles for Chain<P> {
    type Out = P;
    const BLOCK: usize = 16;
    const PAIRED_ROWS: usize = P::Acc::PAIRED_ROWS;

    #[inline(always)]
    unsafe fn sums<const R: usize, const N: usize, const STREAM: bool>(
        a: &LinearArgs,
        row: usize,
        panel: usize,
        ahead: &mut Ahead,
    ) -> [[P::Acc; N]; R] {
        let mut acc = [[P::Acc::splat(0.0); N]; R];
        // SAFETY: rows and panels are in range, and each panel and each input row hold `steps`
        // steps (rows are zero-padded where K is not a multiple of a step).
        unsafe {
            let x = a.x.cast::<P::X>().add(row * a.ldx);
            let w = a.weights.add(panel * a.panel_bytes);
            // One loop, not two: a loop around it would drive the accumulators out of registers.
            for step in 0..a.steps {
                if !STREAM && step % Self::BLOCK == 0 {
                    ahead.ask::<P::Acc>();
                    if const { R > 4 } {
                        ask_for_inputs::<P, R>(a, x, step);
                    }
                }
                let at = step * P::STEP_BYTES;
                let far = match (STREAM, R <= 4) {
                    (true, _) => at + ahead_of::<N>(a, at, P::Acc::STREAM_AHEAD / N),
                    (false, true) => at + ahead_of::<N>(a, at, PREFETCH_BYTES),
                    (false, false) => at + PREFETCH_BYTES,
                };
                let mut weights = [P::weights(w.add(at)); N];
                P::Acc::prefetch(w.wrapping_add(far));
                for (n, slot) in weights.iter_mut().enumerate().skip(1) {
                    *slot = P::weights(w.add(n * a.panel_bytes + at));
                    P::Acc::prefetch(w.wrapping_add(n * a.panel_bytes + far));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let b = P::broadcast(x.add(r * a.ldx + step * P::STEP));
                    for (n, acc) in acc.iter_mut().enumerate() {
                        *acc = P::step(*acc, weights[n], b);
                    }
                }
            }
        }
        acc
    }
}

/// Asks for the inputs of a block of steps that comes soon, of these rows or of the next strip's:
/// where there are many rows they lie in a far cache.
#[inline(always)]
fn ask_for_inputs<P: Panel, const R: usize>(a: &LinearArgs, x: *const P::X, step: usize) {
    let far = step + INPUTS_AHEAD;
    let far = match far < a.steps {
        true => far * P::STEP,
        false => R * a.ldx + (far - a.steps) * P::STEP,
    };
    for r in 0..R {
        P::Acc::prefetch(x.wrapping_add(r * a.ldx + far).cast());
    }
}

/// Asks for what `finish` writes or adds to: another thread may have had it last.
#[inline(always)]
fn ask_for_outputs<S: Simd16, const R: usize>(
    a: &LinearArgs,
    row: usize,
    panel: usize,
    count: usize,
) {
    let step = if a.gate.is_some() { 2 } else { 1 };
    for n in (0..count).step_by(step) {
        let (column, _) = a.columns(panel + n);
        for r in 0..R {
            let at = ((row + r) * a.ldo + column) * a.form.bytes();
            S::prefetch(a.out.cast::<u8>().wrapping_add(at));
        }
    }
}

/// How far behind byte `at` of a panel lies what is asked for `bytes` ahead of it: near a panel's
/// end it is the beginning of a panel of the next tile, as the one behind it belongs to this tile.
#[inline(always)]
fn ahead_of<const N: usize>(a: &LinearArgs, at: usize, bytes: usize) -> usize {
    let jump = if at + bytes >= a.panel_bytes { (N - 1) * a.panel_bytes } else { 0 };
    bytes + jump
}

/// Bias, then gate or residual, and store of a tile. `P` rounds what is wanted as it reads it.
#[allow(clippy::needless_range_loop, reason = "as said below")]
#[inline(always)]
pub(super) unsafe fn finish<P: Panel, const R: usize, const N: usize>(
    a: &LinearArgs,
    row: usize,
    panel: usize,
    sums: [[P::Acc; N]; R],
) {
    // SAFETY: rows and panels are in range, `width` keeps within a row; biases are padded to whole
    // panels.
    unsafe {
        // By index, each of a constant number: slices of them would keep the sums in memory, and
        // the loop that makes them would write each back.
        if a.gate.is_some() && N.is_multiple_of(2) {
            let mut kept = MaybeUninit::<Kept<R, N>>::uninit();
            let kept = kept.as_mut_ptr().cast::<f32>();
            keep::<P::Acc, R, N>(sums, kept);
            return gate::<P, R, N>(a, (row, panel), kept);
        }
        for r in 0..R {
            for n in 0..N {
                let (column, width) = a.columns(panel + n);
                let out = a.out.add((row + r) * a.ldo + column);
                let mut y = biased::<P>(a, sums[r][n], panel + n);
                if a.add {
                    y = P::Acc::load_first(out, width).add(y);
                }
                y.store_first(out, width);
            }
        }
    }
}

/// The sums of a tile, panel after panel.
#[repr(C, align(64))]
struct Kept<const R: usize, const N: usize>([[[f32; 16]; R]; N]);

/// Writes sums to where they wait.
#[allow(clippy::needless_range_loop, reason = "as in `finish`")]
#[inline(always)]
unsafe fn keep<S: Simd16, const R: usize, const N: usize>(sums: [[S; N]; R], kept: *mut f32) {
    for r in 0..R {
        for n in 0..N {
            // SAFETY: the caller vouches for room.
            unsafe { sums[r][n].store(kept.add((n * R + r) * 16)) };
        }
    }
}

/// A sum and the bias of its panel.
#[inline(always)]
unsafe fn biased<P: Panel>(a: &LinearArgs, sum: P::Acc, panel: usize) -> P::Acc {
    match a.bias.is_null() {
        true => sum,
        // SAFETY: biases are padded to whole panels.
        false => sum.add(unsafe { P::Acc::load(a.bias.add(panel * 16)) }),
    }
}

/// `finish` of gated panels. A loop over sums in memory: written out for each of the tile's places
/// the functions would be most of the code.
#[inline(always)]
unsafe fn gate<P: Panel, const R: usize, const N: usize>(
    a: &LinearArgs,
    (row, panel): (usize, usize),
    sums: *const f32,
) {
    let Some(kind) = a.gate else { return };
    let short = const { narrow::<P>() } && kind == Activation::Silu && a.form == InputForm::Bf16;
    for pair in 0..R * N / 2 {
        let (r, first) = (pair % R, panel + pair / R * 2);
        let sums = sums.wrapping_add((pair / R * 2 * R + r) * 16);
        let (column, width) = a.columns(first);
        let at = (row + r) * a.ldo + column;
        // SAFETY: as in `finish`; the rows of a form that is not f32 are whole panels.
        unsafe {
            let gate = biased::<P>(a, P::Acc::load(sums), first);
            let up = biased::<P>(a, P::Acc::load(sums.add(R * 16)), first + 1);
            if short {
                P::put(silu::<P>(gate).mul(up), a.out.cast::<P::X>().add(at));
                continue;
            }
            let y = apply(gate, kind).mul(up);
            match a.form {
                InputForm::F32 => y.store_first(a.out.add(at), width),
                form => form.put(y, a.out.cast(), at),
            }
        }
    }
}

/// Whether `put` rounds to bf16.
const fn narrow<P: Panel>() -> bool {
    size_of::<P::X>() == 2
}

/// `x * sigmoid(x)`, as precise as `put` keeps it.
#[inline(always)]
fn silu<P: Panel>(x: P::Acc) -> P::Acc {
    let power = P::exp(x.mul(P::Acc::splat(-P::EXP_FACTOR)));
    x.div(power.add(P::Acc::splat(1.0)))
}

/// Strips up to which the next group is asked for as long as this one is multiplied, about.
const FEW_STRIPS: usize = 22;
/// The last strips of a group, which ask for the next.
const ASKING_STRIPS: usize = 4;
/// How many steps ahead the inputs of many rows are asked for.
const INPUTS_AHEAD: usize = 64;
/// Rows up to which memory takes longer to bring the weights than they to multiply.
pub(super) const STREAMED: usize = 4;
/// How far ahead weights are asked for. The hardware stops at page ends; this does not.
pub(super) const PREFETCH_BYTES: usize = 3072;
