//! `Simd16` as four NEON registers.
#![allow(unsafe_code, reason = "vector intrinsics")]
// One fact makes every intrinsic here sound: NEON belongs to every aarch64 target. Pointers are
// the caller's duty, element counts are in the trait's documentation.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::Simd16;

/// Four q registers. Not an array: the compiler would keep arrays of it in memory.
#[derive(Clone, Copy)]
pub(crate) struct Neon(
    pub(crate) float32x4_t,
    pub(crate) float32x4_t,
    pub(crate) float32x4_t,
    pub(crate) float32x4_t,
);

impl Neon {
    /// `2^self` of integral lanes from -126 to 127.
    #[inline(always)]
    fn pow2(self) -> Self {
        unsafe {
            self.each(|x| {
                let n = vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(n))
            })
        }
    }

    #[inline(always)]
    fn each(self, f: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Self(f(self.0), f(self.1), f(self.2), f(self.3))
    }

    #[inline(always)]
    fn with(self, x: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(f(self.0, x.0), f(self.1, x.1), f(self.2, x.2), f(self.3, x.3))
    }
}

/// bf16 bits, nearest even, in the upper half of each lane.
#[inline(always)]
fn rounded_bits(x: float32x4_t) -> uint32x4_t {
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        vbslq_u32(vceqq_f32(x, x), rounded, quiet)
    }
}

/// Eight bf16 as two registers: a zero half below each.
#[inline(always)]
fn widen_bf16(bits: uint16x8_t) -> (float32x4_t, float32x4_t) {
    unsafe {
        let zero = vdupq_n_u16(0);
        let (low, high) = (vzip1q_u16(zero, bits), vzip2q_u16(zero, bits));
        (vreinterpretq_f32_u16(low), vreinterpretq_f32_u16(high))
    }
}

#[inline(always)]
fn even_of_pairs(pairs: uint32x4_t) -> float32x4_t {
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)) }
}

#[inline(always)]
fn odd_of_pairs(pairs: uint32x4_t) -> float32x4_t {
    unsafe { vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff_0000))) }
}

impl Simd16 for Neon {
    const L2_BYTES: usize = 512 << 10;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        let x = unsafe { vdupq_n_f32(x) };
        Self(x, x, x, x)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe {
            Self(vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            vst1q_f32(p, self.0);
            vst1q_f32(p.add(4), self.1);
            vst1q_f32(p.add(8), self.2);
            vst1q_f32(p.add(12), self.3);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        unsafe {
            let ((a, b), (c, d)) = (widen_bf16(vld1q_u16(p)), widen_bf16(vld1q_u16(p.add(8))));
            Self(a, b, c, d)
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe {
            // IEEE halves, because the float environment asks for no others.
            let widen = |i: usize| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(i))));
            Self(widen(0), widen(4), widen(8), widen(12))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe {
            let (low, high) = (vmovl_s8(vld1_s8(p)), vmovl_s8(vld1_s8(p.add(8))));
            let four = |words| vcvtq_f32_s32(vmovl_s16(words));
            Self(
                four(vget_low_s16(low)),
                four(vget_high_s16(low)),
                four(vget_low_s16(high)),
                four(vget_high_s16(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self) {
        unsafe {
            let p = p.cast::<u32>();
            let (a, b) = (vld1q_u32(p), vld1q_u32(p.add(4)));
            let (c, d) = (vld1q_u32(p.add(8)), vld1q_u32(p.add(12)));
            let (even, odd) = (even_of_pairs, odd_of_pairs);
            (Self(even(a), even(b), even(c), even(d)), Self(odd(a), odd(b), odd(c), odd(d)))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        unsafe {
            let upper = |x| vreinterpretq_u16_u32(rounded_bits(x));
            vst1q_u16(p, vuzp2q_u16(upper(self.0), upper(self.1)));
            vst1q_u16(p.add(8), vuzp2q_u16(upper(self.2), upper(self.3)));
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, odd: Self, p: *mut u16) {
        unsafe {
            // The upper halves of `odd` stay, those of `even` go below them.
            let pair = |even, odd| vsriq_n_u32::<16>(rounded_bits(odd), rounded_bits(even));
            let p = p.cast::<u32>();
            vst1q_u32(p, pair(self.0, odd.0));
            vst1q_u32(p.add(4), pair(self.1, odd.1));
            vst1q_u32(p.add(8), pair(self.2, odd.2));
            vst1q_u32(p.add(12), pair(self.3, odd.3));
        }
    }

    #[inline(always)]
    fn round_bf16(self) -> Self {
        self.each(|x| odd_of_pairs(rounded_bits(x)))
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        unsafe {
            let words =
                |x, y| vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x)), vmovn_s32(vcvtnq_s32_f32(y)));
            let (low, high) = (words(self.0, self.1), words(self.2, self.3));
            vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)))
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { self.with(other, |a, b| vaddq_f32(a, b)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { self.with(other, |a, b| vsubq_f32(a, b)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { self.with(other, |a, b| vmulq_f32(a, b)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { self.with(other, |a, b| vdivq_f32(a, b)) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe {
            Self(
                vfmaq_f32(b.0, self.0, a.0),
                vfmaq_f32(b.1, self.1, a.1),
                vfmaq_f32(b.2, self.2, a.2),
                vfmaq_f32(b.3, self.3, a.3),
            )
        }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe {
            // Not `fmax`: a NaN in `other` would stay, too.
            self.with(other, |a, b| vbslq_f32(vcgtq_f32(b, a), b, a))
        }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { self.with(other, |a, b| vbslq_f32(vcltq_f32(b, a), b, a)) }
    }

    #[inline(always)]
    fn round(self) -> Self {
        unsafe { self.each(|x| vrndnq_f32(x)) }
    }

    #[inline(always)]
    fn mul_pow2(self, n: Self) -> Self {
        self.mul(n.pow2())
    }

    #[inline(always)]
    fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        unsafe {
            Self(
                vbslq_f32(vcltq_f32(a.0, b.0), self.0, other.0),
                vbslq_f32(vcltq_f32(a.1, b.1), self.1, other.1),
                vbslq_f32(vcltq_f32(a.2, b.2), self.2, other.2),
                vbslq_f32(vcltq_f32(a.3, b.3), self.3, other.3),
            )
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let four = vaddq_f32(vaddq_f32(self.0, self.2), vaddq_f32(self.1, self.3));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn greatest(self) -> f32 {
        unsafe {
            let (low, high) = (vmaxnmq_f32(self.0, self.1), vmaxnmq_f32(self.2, self.3));
            vmaxnmvq_f32(vmaxnmq_f32(low, high))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::portable::Portable;
    use super::*;

    const ODD: [f32; 16] = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
        -3e38,
        f32::MAX,
        f32::MIN_POSITIVE,
        2.5,
        3.5,
        -126.0,
        127.0,
        0.333,
    ];

    fn bits<S: Simd16>(x: S) -> [u32; 16] {
        x.lanes().map(f32::to_bits)
    }

    fn load<S: Simd16>(x: &[f32; 16]) -> S {
        // SAFETY: sixteen elements.
        unsafe { S::load(x.as_ptr()) }
    }

    /// What every operation makes of two arrays, in bits; all but `mul_add`, which is not fused
    /// on every path, and `prefetch`. Rounding may keep the sign of a 0 or not.
    fn all<S: Simd16>(x: &[f32; 16], y: &[f32; 16]) -> Vec<[u32; 16]> {
        let (a, b) = (load::<S>(x), load::<S>(y));
        let small = load::<S>(&x.map(|v| if v.abs() < 1e6 { v } else { 1.0 }));
        let whole = load::<S>(&y.map(|v| if v.abs() < 126.0 { v.round() } else { 7.0 }));
        let mut out = vec![bits(a.add(b)), bits(a.sub(b)), bits(a.mul(b)), bits(a.div(b))];
        out.extend([
            bits(a.max(b)),
            bits(a.min(b)),
            bits(small.round().add(S::splat(0.0))),
            bits(S::splat(1.5).mul_pow2(whole)),
        ]);
        out.extend([bits(a.where_less(b, a, b)), bits(a.round_bf16()), bits(S::splat(x[3]))]);
        out.extend([bits(a.keep(3, 11, b)), [whole.sum().to_bits(); 16]]);
        out.push([whole.greatest().to_bits(); 16]);
        let (mut halves, mut bytes) = ([0u16; 32], [0i8; 16]);
        // SAFETY: sixteen, thirty-two and sixteen elements.
        unsafe {
            a.store_bf16(halves.as_mut_ptr());
            b.store_bf16(halves.as_mut_ptr().add(16));
            out.push(bits(S::load_bf16(halves.as_ptr())));
            let (even, odd) = S::load_bf16_pairs(halves.as_ptr());
            out.extend([bits(even), bits(odd)]);
            a.store_bf16_pairs(b, halves.as_mut_ptr());
            let (even, odd) = S::load_bf16_pairs(halves.as_ptr());
            out.extend([bits(even), bits(odd)]);
            whole.store_i8(bytes.as_mut_ptr());
            out.push(bytes.map(|b| b as u32));
            out.push(bits(S::load_i8(bytes.as_ptr())));
            out.push(bits(S::load_first(x.as_ptr(), 5)));
        }
        out
    }

    /// NaNs are NaNs, whichever.
    fn same(a: u32, b: u32) -> bool {
        let nan = |x: u32| f32::from_bits(x).is_nan();
        a == b || (nan(a) && nan(b))
    }

    #[test]
    fn every_operation_is_that_of_plain_rust() {
        for turn in 0..16 {
            let mut other = ODD;
            other.rotate_left(turn);
            let (got, want) = (all::<Neon>(&ODD, &other), all::<Portable>(&ODD, &other));
            assert_eq!(got.len(), want.len());
            for (op, (got, want)) in got.iter().zip(&want).enumerate() {
                for (lane, (a, b)) in got.iter().zip(want).enumerate() {
                    assert!(same(*a, *b), "operation {op}, turn {turn}, lane {lane}: {a:x} {b:x}");
                }
            }
        }
    }

    #[test]
    fn multiplying_and_adding_rounds_once() {
        let (a, b, c) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON, -1.0);
        let got = Neon::splat(a).mul_add(Neon::splat(b), Neon::splat(c)).lanes();
        assert_eq!(got, [a.mul_add(b, c); 16]);
        assert_ne!(got[0], a * b + c);
    }

    #[test]
    fn every_half_widens_as_in_plain_rust() {
        for start in (0..=u16::MAX).step_by(16) {
            let halves: [u16; 16] = std::array::from_fn(|i| start + i as u16);
            // SAFETY: sixteen elements.
            let got = unsafe { bits(Neon::load_f16(halves.as_ptr())) };
            for (got, half) in got.iter().zip(halves) {
                let want = half::f16::from_bits(half).to_f32().to_bits();
                assert!(same(*got, want), "{half:x}: {got:x}, not {want:x}");
            }
        }
    }
}
