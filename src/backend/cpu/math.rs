//! Elementary functions on sixteen lanes: one polynomial each, so that a value's result depends
//! on the value alone, never on its lane or on what stands beside it.

use super::simd::Simd16;

/// `e^x`, to about 1e-7 relative. 0 below -87.3; NaN stays NaN; `exp(0)` is exactly 1.
#[inline(always)]
pub(crate) fn exp<S: Simd16>(x: S) -> S {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first with few bits.
    let bounded = x.min(S::splat(88.37)).max(S::splat(-87.33));
    let n = bounded.mul(S::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(S::splat(-0.693_359_4), bounded);
    let r = n.mul_add(S::splat(2.121_944_4e-4), r);
    // Taylor to r^7: the remainder is below 6e-9.
    let mut p = S::splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, S::splat(c));
    }
    S::splat(0.0).where_less(x, S::splat(-87.33), p.mul_pow2(n))
}

/// `exp` of one value, the same bits as in any lane.
#[inline(always)]
pub(crate) fn exp_scalar<S: Simd16>(x: f32) -> f32 {
    exp(S::splat(x)).lanes()[0]
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd16>(x: S) -> S {
    x.div(exp(S::splat(0.0).sub(x)).add(S::splat(1.0)))
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd16>(x: S) -> S {
    // 0.5 (1 + tanh u) = 1 / (1 + exp(-2u)).
    const TWICE: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    let cube = x.mul(x).mul(x);
    let inner = cube.mul_add(S::splat(0.044715), x).mul(S::splat(-TWICE));
    x.div(exp(inner).add(S::splat(1.0)))
}

/// `0.5 x (1 + erf(x / sqrt 2))`.
#[inline(always)]
pub(crate) fn gelu<S: Simd16>(x: S) -> S {
    // 1 + erf(z) = erfc(-z); erfc by a Chebyshev fit in t = 1 / (1 + |z| / 2), good to 1.2e-7
    // relative for z >= 0, and erfc(-z) = 2 - erfc(z).
    const FIT: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let (zero, one) = (S::splat(0.0), S::splat(1.0));
    let z = x.mul(S::splat(std::f32::consts::FRAC_1_SQRT_2));
    let magnitude = zero.sub(z).where_less(z, zero, z);
    let t = one.div(magnitude.mul_add(S::splat(0.5), one));
    let mut p = S::splat(FIT[0]);
    for c in &FIT[1..] {
        p = p.mul_add(t, S::splat(*c));
    }
    let tail = t.mul(exp(zero.sub(magnitude.mul(magnitude)).add(p)));
    let one_plus_erf = tail.where_less(z, zero, S::splat(2.0).sub(tail));
    x.mul(S::splat(0.5)).mul(one_plus_erf)
}

/// `max(x, 0)`.
#[inline(always)]
pub(crate) fn relu<S: Simd16>(x: S) -> S {
    x.max(S::splat(0.0))
}
