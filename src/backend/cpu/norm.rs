//! RMS norm and layer norm, a row at a time, in one order of summation.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::ops::Range;

use super::simd::Simd16;

/// What the norms work on.
#[derive(Clone, Copy)]
pub(crate) struct NormArgs {
    /// Inputs `[rows, width]`.
    pub(crate) x: *const f32,
    /// Outputs `[rows, width]`; may be `x`.
    pub(crate) out: *mut f32,
    /// Columns.
    pub(crate) width: usize,
    /// `[width]`.
    pub(crate) weight: *const f32,
    /// `[width]`; layer norm only.
    pub(crate) bias: *const f32,
    /// Added to the mean square or variance.
    pub(crate) eps: f32,
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Simd16>(a: &NormArgs, rows: Range<usize>) {
    for row in rows {
        let at = row * a.width;
        // SAFETY: the row is in range, by `Kernel`'s contract.
        unsafe { rms_row::<S>(a.x.add(at), a.out.add(at), a.weight, a.width, a.eps) }
    }
}

/// One row of RMS norm, `[width]`.
#[inline(always)]
pub(crate) unsafe fn rms_row<S: Simd16>(
    x: *const f32,
    out: *mut f32,
    weight: *const f32,
    width: usize,
    eps: f32,
) {
    let mut squares = S::splat(0.0);
    // SAFETY: the caller vouches for `width` elements of each; every access is cut to that.
    unsafe {
        for i in (0..width).step_by(16) {
            let v = S::load_first(x.add(i), (width - i).min(16));
            squares = v.mul_add(v, squares);
        }
        let scale = S::splat(1.0 / (squares.sum() / width as f32 + eps).sqrt());
        for i in (0..width).step_by(16) {
            let n = (width - i).min(16);
            let v = S::load_first(x.add(i), n).mul(scale);
            v.mul(S::load_first(weight.add(i), n)).store_first(out.add(i), n);
        }
    }
}

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
#[inline(always)]
pub(crate) unsafe fn layer_norm<S: Simd16>(a: &NormArgs, rows: Range<usize>) {
    let zero = S::splat(0.0);
    for row in rows {
        // SAFETY: the row is in range, by `Kernel`'s contract; every access is cut to `width`.
        unsafe {
            let (x, out) = (a.x.add(row * a.width), a.out.add(row * a.width));
            let mut sum = zero;
            for i in (0..a.width).step_by(16) {
                sum = sum.add(S::load_first(x.add(i), (a.width - i).min(16)));
            }
            let mean = S::splat(sum.sum() / a.width as f32);
            let mut squares = zero;
            for i in (0..a.width).step_by(16) {
                let n = (a.width - i).min(16);
                let v = S::load_first(x.add(i), n).sub(mean).keep(0, n, zero);
                squares = v.mul_add(v, squares);
            }
            let scale = S::splat(1.0 / (squares.sum() / a.width as f32 + a.eps).sqrt());
            for i in (0..a.width).step_by(16) {
                let n = (a.width - i).min(16);
                let v = S::load_first(x.add(i), n).sub(mean).mul(scale);
                let bias = S::load_first(a.bias.add(i), n);
                v.mul_add(S::load_first(a.weight.add(i), n), bias).store_first(out.add(i), n);
            }
        }
    }
}
