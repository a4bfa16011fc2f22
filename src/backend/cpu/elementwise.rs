//! Activations, gated and in place.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::ops::Range;

use super::math;
use super::simd::Simd16;
use crate::backend::Activation;

/// What `gated` works on.
#[derive(Clone, Copy)]
pub(crate) struct GatedArgs {
    /// `[rows, 2 * width]`: gate, then up.
    pub(crate) gate_up: *const f32,
    /// `[rows, width]`.
    pub(crate) out: *mut f32,
    /// Columns of the output.
    pub(crate) width: usize,
    /// Which function.
    pub(crate) kind: Activation,
}

/// What `activate` works on.
#[derive(Clone, Copy)]
pub(crate) struct ActivateArgs {
    /// Elements, changed in place.
    pub(crate) x: *mut f32,
    /// How many; a unit is 16 of them.
    pub(crate) len: usize,
    /// Elements of a row.
    pub(crate) width: usize,
    /// Which function.
    pub(crate) kind: Activation,
}

/// `out = act(gate) * up`; a unit is 16 columns of a row, counted row by row.
#[inline(always)]
pub(crate) unsafe fn gated<S: Simd16>(a: &GatedArgs, units: Range<usize>) {
    let per_row = a.width.div_ceil(16);
    for unit in units {
        let (row, i) = (unit / per_row, unit % per_row * 16);
        let n = (a.width - i).min(16);
        // SAFETY: the unit is in range, by `Kernel`'s contract; accesses are cut to `width`.
        unsafe {
            let gate = a.gate_up.add(row * 2 * a.width + i);
            let up = S::load_first(gate.add(a.width), n);
            let v = apply(S::load_first(gate, n), a.kind).mul(up);
            v.store_first(a.out.add(row * a.width + i), n);
        }
    }
}

/// `x = act(x)`; a unit is 16 elements.
#[inline(always)]
pub(crate) unsafe fn activate<S: Simd16>(a: &ActivateArgs, units: Range<usize>) {
    for unit in units {
        let i = unit * 16;
        let n = (a.len - i).min(16);
        // SAFETY: the unit is in range, by `Kernel`'s contract; accesses are cut to `len`.
        unsafe { apply(S::load_first(a.x.add(i), n), a.kind).store_first(a.x.add(i), n) }
    }
}

/// One activation of sixteen lanes.
#[inline(always)]
pub(crate) fn apply<S: Simd16>(x: S, kind: Activation) -> S {
    match kind {
        Activation::Silu => math::silu(x),
        Activation::GeluTanh => math::gelu_tanh(x),
        Activation::Gelu => math::gelu(x),
        Activation::Relu => math::relu(x),
    }
}
