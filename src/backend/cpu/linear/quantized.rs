//! Linear layers over quantized weights: bytes times bytes summed in i32 within a group of inputs,
//! groups summed in f32, first to last.
//!
//! Weights are unsigned, `w = scale * (q - zero)`, because that is what `vpdpbusd` multiplies by
//! signed inputs; `zero` times the sum of a group's inputs is taken off before the group begins.
//! Each output has a scale, f32; with fewer than 8 bits each of its groups of 32 weights has an
//! integer, i8, by which that is multiplied. Inputs are rounded to 8 bits group by group:
//! `x = scale * q`, `scale = max|x| / 127`.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::marker::PhantomData;
use std::ops::Range;

use super::tiles::{Ahead, PREFETCH_BYTES, Tiles};
use super::{LinearArgs, Wide};
use crate::backend::cpu::simd::Simd16;
use crate::backend::cpu::simd::integer::Integer;

/// How weights of sixteen outputs (a panel) lie in memory: some groups, then their scales, if these
/// have any, and so on.
pub(crate) trait Format {
    /// Inputs that share a scale.
    const GROUP: usize;
    /// The byte that stands for 0.
    const ZERO: i32;
    /// Loads that make up a group: of 64 bytes, or of 192 with `UPPER`.
    const LOADS: usize;
    /// Whether a byte holds four bits of two weights (the lower half is of the earlier step of four
    /// inputs) and each group has scales beside those of the outputs, sixteen i8.
    const NIBBLES: bool = true;
    /// Whether 64 bytes follow two times 64 of nibbles that hold two more bits of their weights,
    /// those of the earliest step lowest.
    const UPPER: bool = false;

    /// Bytes of a load.
    const LOAD_BYTES: usize = if Self::UPPER { 192 } else { 64 };
    /// Bytes of a group's weights.
    const GROUP_BYTES: usize = Self::LOADS * Self::LOAD_BYTES;
    /// Groups whose scales lie together, a cache line.
    const TOGETHER: usize = if Self::NIBBLES { 4 } else { 1 };
    /// Bytes of them with their scales: whole cache lines, so that no load crosses one.
    const TOGETHER_BYTES: usize =
        Self::TOGETHER * Self::GROUP_BYTES + if Self::NIBBLES { 64 } else { 0 };

    /// Where a group's weights begin in its panel.
    #[inline(always)]
    fn weights_at(group: usize) -> usize {
        group / Self::TOGETHER * Self::TOGETHER_BYTES + group % Self::TOGETHER * Self::GROUP_BYTES
    }

    /// Where a group's scales begin, if it has them.
    #[inline(always)]
    fn scales_at(group: usize) -> usize {
        let within = Self::TOGETHER * Self::GROUP_BYTES + group % Self::TOGETHER * 16;
        group / Self::TOGETHER * Self::TOGETHER_BYTES + within
    }
}

/// `[N/16][K/4][16][4]` u8. The group is that of the inputs alone.
pub(crate) struct Int8;

impl Format for Int8 {
    const GROUP: usize = 128;
    const ZERO: i32 = 128;
    const LOADS: usize = 32;
    const NIBBLES: bool = false;
}

/// `[N/16][K/128]` of four groups: their weights, `[4][4][16][4]` u8, then their scales, `[4][16]`
/// i8.
pub(crate) struct Int4;

impl Format for Int4 {
    const GROUP: usize = 32;
    const ZERO: i32 = 8;
    const LOADS: usize = 4;
}

/// `[N/16][K/128]` of four groups: of each, twice, lower four bits, `[2][2][16][4]` u8, and upper
/// two, `[16][4]` u8; then their scales, `[4][16]` i8.
pub(crate) struct Int6;

impl Format for Int6 {
    const GROUP: usize = 32;
    const ZERO: i32 = 32;
    const LOADS: usize = 2;
    const UPPER: bool = true;
}

/// Inputs are padded to a multiple of this, with zeros: whole groups of every format, and four of
/// those that have scales of their own.
pub(crate) const WHOLE: usize = 128;

/// Bytes of one row of inputs: K of them, padded, then a scale (f32) and a correction (i32) for
/// each group.
pub(crate) fn row_bytes(k_padded: usize, group: usize) -> usize {
    (k_padded + k_padded / group * 8).next_multiple_of(64)
}

/// Layers of format `F`, computed in lanes `I`.
pub(crate) struct Quantized<I, F>(PhantomData<(I, F)>);

impl<I: Integer, F: Format> Tiles for Quantized<I, F> {
    type Out = Wide<I::Floats, f32>;
    const BLOCK: usize = 1;
    // Nibbles keep the arithmetic too busy to gain by it.
    const PAIRED_ROWS: usize = if F::NIBBLES { 0 } else { I::Floats::PAIRED_ROWS };

    #[allow(clippy::needless_range_loop, reason = "walked by index, as below")]
    #[inline(always)]
    unsafe fn sums<const R: usize, const N: usize, const STREAM: bool>(
        a: &LinearArgs,
        row: usize,
        panel: usize,
        ahead: &mut Ahead,
    ) -> [[I::Floats; N]; R] {
        let mut sums = [[I::Floats::splat(0.0); N]; R];
        // SAFETY: rows and panels are in range; each panel and each row of inputs hold `steps`
        // groups in the layouts above.
        unsafe {
            let x = a.x.add(row * a.ldx);
            let w = a.weights.add(panel * a.panel_bytes);
            for group in 0..a.steps {
                if !STREAM {
                    ahead.ask::<I::Floats>();
                }
                let acc = integers::<I, F, R, N, STREAM>(a, x, w, group);
                let scales = x.add(a.steps * F::GROUP + 4 * group).cast::<f32>();
                for n in 0..N {
                    let own = w.add(n * a.panel_bytes + F::scales_at(group)).cast();
                    let own = F::NIBBLES.then(|| I::scales(own));
                    for r in 0..R {
                        let products = match own {
                            Some(own) => acc[r][n].scaled(own),
                            None => acc[r][n].floats(),
                        };
                        let x_scale = I::Floats::splat(*scales.byte_add(r * a.ldx));
                        sums[r][n] = products.mul_add(x_scale, sums[r][n]);
                    }
                }
            }
            for n in 0..N {
                let mut scale = I::Floats::load(a.scales.add((panel + n) * 16));
                if F::NIBBLES {
                    scale = scale.mul(I::Floats::splat(1.0 / I::SCALES_UNIT));
                }
                for sums in &mut sums {
                    sums[n] = sums[n].mul(scale);
                }
            }
        }
        sums
    }
}

/// One group's sums, in integers.
#[allow(clippy::needless_range_loop, reason = "walked by index, as below")]
#[inline(always)]
unsafe fn integers<I: Integer, F: Format, const R: usize, const N: usize, const STREAM: bool>(
    a: &LinearArgs,
    x: *const u8,
    w: *const u8,
    group: usize,
) -> [[I; N]; R] {
    let mut acc = [[I::splat(0); N]; R];
    // Whole bytes less 128 are less their zero already: the correction is in the products.
    let signed = I::SIGNED && !F::NIBBLES;
    const { assert!(F::NIBBLES || F::ZERO == 128) };
    // SAFETY: as in `tile`.
    unsafe {
        let corrections = x.add(a.steps * (F::GROUP + 4) + 4 * group).cast::<i32>();
        for (r, acc) in acc.iter_mut().enumerate() {
            let first = if signed { 0 } else { *corrections.byte_add(r * a.ldx) };
            *acc = [I::splat(first); N];
        }
        let x = x.add(group * F::GROUP).cast::<i32>();
        let w = w.add(F::weights_at(group));
        let far = const { if STREAM { I::Floats::STREAM_AHEAD / N } else { PREFETCH_BYTES } };
        // Scales lie behind the last group of theirs.
        if STREAM && F::NIBBLES && group % F::TOGETHER == F::TOGETHER - 1 {
            I::Floats::prefetch(w.wrapping_add(F::GROUP_BYTES + far));
        }
        if F::UPPER {
            for load in 0..F::LOADS {
                let (w, x) = (w.add(load * F::LOAD_BYTES), x.add(4 * load));
                for n in 0..N {
                    let ahead = w.wrapping_add(n * a.panel_bytes + far);
                    I::Floats::prefetch(ahead);
                    I::Floats::prefetch(ahead.wrapping_add(64));
                    I::Floats::prefetch(ahead.wrapping_add(128));
                }
                two_steps::<I, R, N, 0>(&mut acc, w, x, a);
                two_steps::<I, R, N, 2>(&mut acc, w, x.add(2), a);
            }
            return acc;
        }
        for load in 0..F::LOADS {
            let mut bytes = [I::bytes(w.add(load * 64)); N];
            I::Floats::prefetch(w.wrapping_add(load * 64 + far));
            for (n, bytes) in bytes.iter_mut().enumerate().skip(1) {
                let p = w.add(n * a.panel_bytes + load * 64);
                *bytes = I::bytes(p);
                I::Floats::prefetch(p.wrapping_add(far));
            }
            if I::SIGNED {
                row_by_row::<I, F, R, N>(&mut acc, &bytes, x.add(load << F::NIBBLES as usize), a);
            } else if F::NIBBLES {
                // Not `bytes.map`: what it calls may be compiled without the path's features.
                let (mut low, mut high) = (bytes, bytes);
                for n in 0..N {
                    (low[n], high[n]) = (I::low(bytes[n]), I::high(bytes[n]));
                }
                step::<I, R, N>(&mut acc, low, x.add(2 * load), a.ldx);
                step::<I, R, N>(&mut acc, high, x.add(2 * load + 1), a.ldx);
            } else {
                step::<I, R, N>(&mut acc, bytes, x.add(load), a.ldx);
            }
        }
    }
    acc
}

/// Steps `STEP` and `STEP + 1` of the four whose upper bits lie together.
#[allow(clippy::needless_range_loop, reason = "as in `row_by_row`")]
#[inline(always)]
unsafe fn two_steps<I: Integer, const R: usize, const N: usize, const STEP: usize>(
    acc: &mut [[I; N]; R],
    w: *const u8,
    x: *const i32,
    a: &LinearArgs,
) {
    // SAFETY: the caller vouches for a load of each panel and for eight bytes in each row.
    unsafe {
        let mut low = [I::bytes(w); N];
        let mut high = low;
        for n in 0..N {
            let w = w.add(n * a.panel_bytes);
            let (nibbles, upper) = (I::bytes(w.add(STEP * 32)), I::bytes(w.add(128)));
            (low[n], high[n]) = match const { STEP } {
                0 => (
                    I::with_upper::<0>(I::low(nibbles), upper),
                    I::with_upper::<1>(I::high(nibbles), upper),
                ),
                _ => (
                    I::with_upper::<2>(I::low(nibbles), upper),
                    I::with_upper::<3>(I::high(nibbles), upper),
                ),
            };
        }
        for r in 0..R {
            let x = x.byte_add(r * a.ldx);
            let x = (x.read_unaligned(), x.add(1).read_unaligned());
            for n in 0..N {
                acc[r][n] = acc[r][n].dot_two((low[n], high[n]), x);
            }
        }
    }
}

/// The same of lanes that are several registers: arrays of them are passed by reference and walked
/// by index, or the compiler keeps them in memory.
#[allow(clippy::needless_range_loop, reason = "as said")]
#[inline(always)]
unsafe fn row_by_row<I: Integer, F: Format, const R: usize, const N: usize>(
    acc: &mut [[I; N]; R],
    bytes: &[I::Bytes; N],
    x: *const i32,
    a: &LinearArgs,
) {
    for r in 0..R {
        // SAFETY: the caller vouches for four bytes in each row, for eight with nibbles.
        let x = unsafe { x.byte_add(r * a.ldx) };
        for n in 0..N {
            // SAFETY: as above.
            acc[r][n] = unsafe {
                if F::NIBBLES {
                    let sum = acc[r][n].dot(I::low(bytes[n]), x.read_unaligned());
                    sum.dot(I::high(bytes[n]), x.add(1).read_unaligned())
                } else {
                    acc[r][n].dot(I::less(bytes[n]), x.read_unaligned())
                }
            };
        }
    }
}

/// Four inputs of each row.
#[inline(always)]
unsafe fn step<I: Integer, const R: usize, const N: usize>(
    acc: &mut [[I; N]; R],
    weights: [I::Bytes; N],
    x: *const i32,
    ldx: usize,
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller vouches for four bytes in each row.
        let x = unsafe { x.byte_add(r * ldx).read_unaligned() };
        for (acc, weights) in acc.iter_mut().zip(weights) {
            *acc = acc.dot(weights, x);
        }
    }
}

/// Rounds some groups of a row, `width` inputs from `x` on, to 8 bits, into the layout of
/// `row_bytes`. A group with a NaN or an infinity gets a scale of NaN: such a row must not look
/// sound.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Simd16>(
    (x, width): (*const f32, usize),
    out: *mut u8,
    (group, zero): (usize, i32),
    some: Range<usize>,
) {
    let padded = width.next_multiple_of(WHOLE);
    let groups = padded / group;
    for g in some {
        let read = |i: usize| {
            let at = g * group + i;
            let x = x.wrapping_add(at.min(width));
            // SAFETY: `load_first` reads what the row has; the caller vouches for these groups.
            unsafe { S::load_first(x, width.saturating_sub(at).min(16)) }
        };
        let (mut greatest, mut poison) = (S::splat(0.0), S::splat(0.0));
        for i in (0..group).step_by(16) {
            let v = read(i);
            greatest = greatest.max(v).max(S::splat(0.0).sub(v));
            poison = poison.add(v.sub(v));
        }
        let greatest = greatest.greatest();
        let finite = poison.sum() == 0.0;
        // Below this its reciprocal overflows; such inputs are nothing beside a norm's epsilon.
        let used = finite && greatest > 1e-30;
        let scale = if used { S::splat(127.0 / greatest) } else { S::splat(0.0) };
        let mut sum = S::splat(0.0);
        // SAFETY: `out` has `row_bytes` bytes.
        unsafe {
            for i in (0..group).step_by(16) {
                let v = if used { read(i).mul(scale).round() } else { S::splat(0.0) };
                sum = sum.add(v);
                v.store_i8(out.add(g * group + i).cast());
            }
            let scale = match (finite, used) {
                (false, _) => f32::NAN,
                (_, true) => greatest / 127.0,
                (_, false) => 0.0,
            };
            *out.add(padded + 4 * g).cast::<f32>() = scale;
            *out.add(padded + 4 * (groups + g)).cast::<i32>() = -zero * sum.sum() as i32;
        }
    }
}
