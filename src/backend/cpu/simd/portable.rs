//! `Simd16` in plain Rust, for every machine; the compiler makes of it what it can.
#![allow(unsafe_code, reason = "loads and stores through pointers")]

use super::{Simd16, bf16_bits, bf16_value};

/// Sixteen lanes in an array.
#[derive(Clone, Copy)]
pub(crate) struct Portable(pub(super) [f32; 16]);

impl Portable {
    #[inline(always)]
    fn map(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Simd16 for Portable {
    const L2_BYTES: usize = 512 << 10;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 16])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 elements.
        Self(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 elements.
        let bits = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        Self(bits.map(bf16_value))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 elements.
        let bits = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        Self(bits.map(f16_value))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self) {
        // SAFETY: the caller vouches for 32 elements.
        let bits = unsafe { p.cast::<[u16; 32]>().read_unaligned() };
        let even = std::array::from_fn(|i| bf16_value(bits[2 * i]));
        let odd = std::array::from_fn(|i| bf16_value(bits[2 * i + 1]));
        (Self(even), Self(odd))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(self.0.map(bf16_bits)) }
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, odd: Self, p: *mut u16) {
        let pair = |i: usize| [bf16_bits(self.0[i]), bf16_bits(odd.0[i])];
        // SAFETY: the caller vouches for 32 elements.
        unsafe { p.cast::<[[u16; 2]; 16]>().write_unaligned(std::array::from_fn(pair)) }
    }

    #[inline(always)]
    fn round_bf16(self) -> Self {
        Self(self.0.map(|x| bf16_value(bf16_bits(x))))
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { p.cast::<[i8; 16]>().write_unaligned(self.0.map(|x| x as i8)) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.map(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.map(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.map(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.map(other, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        // Not `f32::mul_add`: without the instruction that is a call of a slow function.
        Self(std::array::from_fn(|i| self.0[i] * a.0[i] + b.0[i]))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.map(other, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.map(other, |a, b| if b < a { b } else { a })
    }

    #[inline(always)]
    fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no bits for a fraction; `f32::round` is a call on old x86-64.
        const MAGIC: f32 = 12_582_912.0;
        Self(self.0.map(|x| (x + MAGIC) - MAGIC))
    }

    #[inline(always)]
    fn mul_pow2(self, n: Self) -> Self {
        // The clamp is for NaN, of which the cast makes 0, and for strangers.
        let power = |x: f32| f32::from_bits((((x as i32).clamp(-126, 127) + 127) as u32) << 23);
        self.mul(Self(n.0.map(power)))
    }

    #[inline(always)]
    fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if a.0[i] < b.0[i] { self.0[i] } else { other.0[i] }))
    }
}

/// Widens an IEEE half exactly, by integer steps.
#[inline(always)]
fn f16_value(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    let value = if magnitude >= 0x0f80_0000 {
        // Infinity and NaN: the exponent is all ones in f32, too.
        f32::from_bits(magnitude | 0x7f80_0000)
    } else {
        // Rebiasing by a multiplication is exact, for subnormal halves as well.
        f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)
    };
    f32::from_bits(value.to_bits() | sign)
}
