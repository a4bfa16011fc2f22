//! Linear layers: `out = x W^T + b` over packed weights.
//!
//! One accumulation order per instruction path and weight type: each output is one chain along K,
//! from the first element to the last, in one accumulator. Tiles, threads and the number of rows
//! decide who computes an output and when, never how; so a row's result is the same bits alone
//! and in any batch.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::marker::PhantomData;
use std::ops::Range;

use super::math;
use super::simd::Simd16;
use crate::backend::Activation;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx_int8;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx_tiles;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512bf16;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_bf16;
pub(crate) mod quantized;
pub(crate) mod tiles;

/// What a linear kernel works on.
#[derive(Clone, Copy)]
pub(crate) struct LinearArgs {
    /// Inputs `[rows, ldx]`: f32, bf16 or quantized, as the kernel wants them.
    pub(crate) x: *const u8,
    /// Elements (of quantized inputs, bytes) from one input row to the next.
    pub(crate) ldx: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Packed weights, panel after panel.
    pub(crate) weights: *const u8,
    /// Bytes of one panel.
    pub(crate) panel_bytes: usize,
    /// Steps (of quantized weights, groups of inputs) along K in one panel.
    pub(crate) steps: usize,
    /// Scales of the outputs, padded to whole panels; null unless weights are quantized.
    pub(crate) scales: *const f32,
    /// Outputs.
    pub(crate) n: usize,
    /// Panels of them.
    pub(crate) panels: usize,
    /// Panels of gate and of up take turns; each has half the outputs.
    pub(crate) gated: bool,
    /// What makes one output, `gate(g) * u`, of both; only of gated panels.
    pub(crate) gate: Option<Activation>,
    /// Form of the outputs that `gate` makes; else they are f32.
    pub(crate) form: InputForm,
    /// Bias, padded to whole panels; null when there is none.
    pub(crate) bias: *const f32,
    /// Outputs `[rows, ldo]`, in `form`.
    pub(crate) out: *mut f32,
    /// Elements from one output row to the next.
    pub(crate) ldo: usize,
    /// Adds to what `out` holds.
    pub(crate) add: bool,
}

impl LinearArgs {
    /// What is shared between threads: panels, or pairs of them.
    pub(crate) fn units(&self) -> usize {
        if self.gated { self.panels / 2 } else { self.panels }
    }

    /// Whether threads take what others have not begun, where there are few rows: the panels are
    /// then multiplied one by one, and any part of them is as fast as all together.
    pub(crate) fn takes_leftover(&self) -> bool {
        self.rows <= tiles::STREAMED
    }

    /// The fewest units that are worth taking alone.
    pub(crate) fn least_units(&self) -> usize {
        (LEAST_BYTES * self.units() / (self.panels * self.panel_bytes).max(1)).max(1)
    }

    /// The first column of a panel's outputs, and how many there are.
    #[inline(always)]
    fn columns(&self, panel: usize) -> (usize, usize) {
        if !self.gated {
            return (panel * 16, (self.n - panel * 16).min(16));
        }
        let (half, first) = (self.n / 2, panel / 2 * 16);
        (panel % 2 * half + first, (half - first).min(16))
    }
}

/// Bytes of weights that are worth taking alone.
const LEAST_BYTES: usize = 32 << 10;

/// How one step of a panel (16 outputs) is read and multiplied.
pub(crate) trait Panel {
    /// Sixteen f32 accumulators.
    type Acc: Simd16;
    /// An element of the inputs.
    type X: Copy;
    /// The weights of one step.
    type W: Copy;
    /// The input elements of one step, in every lane.
    type B: Copy;
    /// Input elements of one step.
    const STEP: usize;
    /// Bytes of weights of one step.
    const STEP_BYTES: usize;
    /// Whether attention multiplies by tiles instead, step by step in none of its loops.
    const TILES: bool = false;
    /// Reads a step's weights.
    unsafe fn weights(p: *const u8) -> Self::W;
    /// Reads a step's inputs.
    unsafe fn broadcast(p: *const Self::X) -> Self::B;
    /// Adds a step's products to the chain.
    fn step(acc: Self::Acc, w: Self::W, b: Self::B) -> Self::Acc;
    /// Rounds sixteen inputs to what `broadcast` reads, and writes them.
    unsafe fn put(v: Self::Acc, p: *mut Self::X);
    /// A step's weights with 0 for all but the first of its elements.
    fn first(w: Self::W) -> Self::W;

    /// What `exp` wants its argument multiplied with.
    const EXP_FACTOR: f32 = 1.0;

    /// `e^(x / EXP_FACTOR)`, as precise as `put` keeps it; `exp(0)` is exactly 1, NaN stays NaN.
    #[inline(always)]
    fn exp(x: Self::Acc) -> Self::Acc {
        math::exp(x)
    }

    /// Reads a step of which eight outputs lie at `low` and eight at `high`.
    #[inline(always)]
    unsafe fn weights_halves(low: *const u8, high: *const u8) -> Self::W {
        let half = Self::STEP_BYTES / 2;
        let mut bytes = [0u8; 64];
        // SAFETY: the caller vouches for half a step at both; no step is longer than 64 bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(low, bytes.as_mut_ptr(), half);
            std::ptr::copy_nonoverlapping(high, bytes.as_mut_ptr().add(half), half);
            Self::weights(bytes.as_ptr())
        }
    }
}

/// f32 inputs, weights widened from `T`: `[N/16][K][16]`.
pub(crate) struct Wide<S, T>(PhantomData<(S, T)>);

/// Element types of weights that widen exactly to f32.
pub(crate) trait Widen {
    /// Reads 16 elements.
    unsafe fn load<S: Simd16>(p: *const u8) -> S;
}

impl Widen for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd16>(p: *const u8) -> S {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { S::load(p.cast()) }
    }
}

impl Widen for half::f16 {
    #[inline(always)]
    unsafe fn load<S: Simd16>(p: *const u8) -> S {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { S::load_f16(p.cast()) }
    }
}

impl Widen for half::bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd16>(p: *const u8) -> S {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { S::load_bf16(p.cast()) }
    }
}

impl<S: Simd16, T: Widen> Panel for Wide<S, T> {
    type Acc = S;
    type X = f32;
    type W = S;
    type B = S;
    const STEP: usize = 1;
    const STEP_BYTES: usize = 16 * size_of::<T>();

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> S {
        // SAFETY: the caller vouches for one step of weights.
        unsafe { T::load(p) }
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const f32) -> S {
        // SAFETY: the caller vouches for one element.
        S::splat(unsafe { *p })
    }

    #[inline(always)]
    fn step(acc: S, w: S, b: S) -> S {
        w.mul_add(b, acc)
    }

    #[inline(always)]
    unsafe fn put(v: S, p: *mut f32) {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { v.store(p) }
    }

    #[inline(always)]
    fn first(w: S) -> S {
        w
    }
}

/// bf16 weights in pairs, `[N/16][K/2][16][2]`, where the path has no bf16 dot product: the inputs
/// are f32 that hold bf16 values.
pub(crate) struct Pairs<S>(PhantomData<S>);

impl<S: Simd16> Panel for Pairs<S> {
    type Acc = S;
    type X = f32;
    type W = (S, S);
    type B = (S, S);
    const STEP: usize = 2;
    const STEP_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> (S, S) {
        // SAFETY: the caller vouches for one step of weights.
        unsafe { S::load_bf16_pairs(p.cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const f32) -> (S, S) {
        // SAFETY: the caller vouches for two elements.
        unsafe { (S::splat(*p), S::splat(*p.add(1))) }
    }

    #[inline(always)]
    fn step(acc: S, w: (S, S), b: (S, S)) -> S {
        w.1.mul_add(b.1, w.0.mul_add(b.0, acc))
    }

    #[inline(always)]
    unsafe fn put(v: S, p: *mut f32) {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { v.store(p) }
    }

    #[inline(always)]
    fn first(w: (S, S)) -> (S, S) {
        (w.0, S::splat(0.0))
    }
}

/// How inputs are brought to the form that the kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputForm {
    /// As they are.
    F32,
    /// Rounded to bf16, kept in f32.
    RoundedF32,
    /// bf16.
    Bf16,
    /// 8 bits, in groups of `group`, beside scales and corrections for weights whose 0 is `zero`:
    /// see [`quantized::row_bytes`].
    Int8 {
        /// Inputs that share a scale.
        group: usize,
        /// What 0 is in the weights.
        zero: i32,
    },
}

impl InputForm {
    /// Elements from one row of `width` inputs to the next, unless they are quantized. An odd
    /// number of cache lines: rows that are read together must not all fall on the same few places
    /// of a cache.
    pub(crate) fn row_len(self, width: usize) -> usize {
        match self {
            Self::Bf16 => (width.div_ceil(32) | 1) * 32,
            _ => width.next_multiple_of(32),
        }
    }

    /// Bytes of what `ConvertArgs::ldo` counts.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::RoundedF32 => 4,
            Self::Bf16 => 2,
            Self::Int8 { .. } => 1,
        }
    }

    /// Writes sixteen elements from the `at`-th of `out` on; not for quantized inputs.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Simd16>(self, v: S, out: *mut u8, at: usize) {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe {
            match self {
                Self::F32 => v.store(out.cast::<f32>().add(at)),
                Self::RoundedF32 => v.round_bf16().store(out.cast::<f32>().add(at)),
                Self::Bf16 => v.store_bf16(out.cast::<u16>().add(at)),
                Self::Int8 { .. } => unreachable!("a scale needs the whole group"),
            }
        }
    }
}

/// What `convert` works on.
#[derive(Clone, Copy)]
pub(crate) struct ConvertArgs {
    /// Inputs `[.., width]`.
    pub(crate) x: *const f32,
    /// Columns.
    pub(crate) width: usize,
    /// Which input row becomes row `i`; row `i` itself when null.
    pub(crate) rows: *const u32,
    /// Output `[rows, ldo]`.
    pub(crate) out: *mut u8,
    /// Elements (quantized: bytes) from one output row to the next; columns from `width` on
    /// become 0.
    pub(crate) ldo: usize,
    /// Form of the output.
    pub(crate) form: InputForm,
}

impl ConvertArgs {
    /// Whether what makes the inputs may write them in the form at once, in their own place: no
    /// scale is wanted, nothing is padded, and rows do not grow.
    pub(crate) fn fits_in_place(&self) -> bool {
        !matches!(self.form, InputForm::Int8 { .. })
            && self.width.is_multiple_of(32)
            && self.ldo * self.form.bytes() <= self.width * size_of::<f32>()
    }

    /// The same where the inputs are made in heads of `dim` elements, of which each may be rounded
    /// by itself if it is whole groups.
    pub(crate) fn fits_heads(&self, dim: usize) -> bool {
        match self.form {
            InputForm::Int8 { group, .. } => {
                dim.is_multiple_of(group)
                    && self.width.is_multiple_of(quantized::WHOLE)
                    && self.ldo <= self.width * size_of::<f32>()
            }
            _ => dim.is_multiple_of(16) && self.fits_in_place(),
        }
    }
}

/// Gathers and rounds input rows.
#[inline(always)]
pub(crate) unsafe fn convert<S: Simd16>(a: &ConvertArgs, rows: Range<usize>) {
    for row in rows {
        // SAFETY: by `Kernel`'s contract the pointers hold what their docs say; `ldo` is a
        // multiple of 16 not below `width`.
        unsafe {
            let source = if a.rows.is_null() { row } else { *a.rows.add(row) as usize };
            let x = a.x.add(source * a.width);
            if let InputForm::Int8 { group, zero } = a.form {
                let groups = 0..a.width.next_multiple_of(quantized::WHOLE) / group;
                let out = a.out.add(row * a.ldo);
                quantized::quantize::<S>((x, a.width), out, (group, zero), groups);
                continue;
            }
            for i in (0..a.ldo).step_by(16) {
                let v = S::load_first(x.add(i.min(a.width)), a.width.saturating_sub(i).min(16));
                let at = row * a.ldo + i;
                a.form.put(v, a.out, at);
            }
        }
    }
}
