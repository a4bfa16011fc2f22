//! Sums of products of bytes on aarch64: by `sdot`, or by multiplications that widen.
#![allow(unsafe_code, reason = "vector intrinsics, and an instruction without one")]
// NEON belongs to every aarch64 target; DotProd is the duty of whoever names `NeonDot`, as the
// room's contract says. Loads are the caller's duty.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::Integer;
use crate::backend::cpu::simd::Simd16;
use crate::backend::cpu::simd::neon::Neon;

/// Four q registers, where DotProd is missing.
#[derive(Clone, Copy)]
pub(crate) struct NeonInteger(int32x4_t, int32x4_t, int32x4_t, int32x4_t);

/// Four q registers and `sdot`.
#[derive(Clone, Copy)]
pub(crate) struct NeonDot(int32x4_t, int32x4_t, int32x4_t, int32x4_t);

/// 64 bytes.
type Bytes = (int8x16_t, int8x16_t, int8x16_t, int8x16_t);

#[inline(always)]
fn each(b: Bytes, f: impl Fn(int8x16_t) -> int8x16_t) -> Bytes {
    (f(b.0), f(b.1), f(b.2), f(b.3))
}

/// Products of bytes add in 16 bits by twos: 2 * 128 * 127 fits, and no byte of `x` is -128.
#[inline(always)]
fn widening(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    unsafe {
        let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(w, x)))
    }
}

/// The intrinsic is not in stable Rust.
#[inline(always)]
fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers alone; the machine has the instruction by the contract above.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// The two bits of number `STEP` of each byte as bits 4 and 5, above a nibble.
#[inline(always)]
fn with_upper<const STEP: usize>(nibbles: int8x16_t, upper: int8x16_t) -> int8x16_t {
    unsafe {
        let upper = vreinterpretq_u8_s8(upper);
        let moved = match const { STEP } {
            0 => vshlq_n_u8::<4>(upper),
            1 => vshlq_n_u8::<2>(upper),
            2 => upper,
            _ => vshrq_n_u8::<2>(upper),
        };
        let two = vandq_u8(moved, vdupq_n_u8(0x30));
        vorrq_s8(nibbles, vreinterpretq_s8_u8(two))
    }
}

macro_rules! lanes {
    ($name:ident, $dot:ident) => {
        impl Integer for $name {
            type Floats = Neon;
            type Bytes = Bytes;
            const SIGNED: bool = true;

            #[inline(always)]
            fn splat(x: i32) -> Self {
                let x = unsafe { vdupq_n_s32(x) };
                Self(x, x, x, x)
            }

            #[inline(always)]
            unsafe fn bytes(p: *const u8) -> Bytes {
                unsafe {
                    let p = p.cast::<i8>();
                    (vld1q_s8(p), vld1q_s8(p.add(16)), vld1q_s8(p.add(32)), vld1q_s8(p.add(48)))
                }
            }

            #[inline(always)]
            fn low(bytes: Bytes) -> Bytes {
                unsafe { each(bytes, |b| vandq_s8(b, vdupq_n_s8(15))) }
            }

            #[inline(always)]
            fn high(bytes: Bytes) -> Bytes {
                unsafe {
                    each(bytes, |b| vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(b))))
                }
            }

            #[inline(always)]
            fn with_upper<const STEP: usize>(nibbles: Bytes, upper: Bytes) -> Bytes {
                (
                    with_upper::<STEP>(nibbles.0, upper.0),
                    with_upper::<STEP>(nibbles.1, upper.1),
                    with_upper::<STEP>(nibbles.2, upper.2),
                    with_upper::<STEP>(nibbles.3, upper.3),
                )
            }

            #[inline(always)]
            fn less(bytes: Bytes) -> Bytes {
                unsafe { each(bytes, |b| veorq_s8(b, vdupq_n_s8(-128))) }
            }

            #[inline(always)]
            fn dot(self, bytes: Bytes, x: i32) -> Self {
                let x = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x)) };
                Self(
                    $dot(self.0, bytes.0, x),
                    $dot(self.1, bytes.1, x),
                    $dot(self.2, bytes.2, x),
                    $dot(self.3, bytes.3, x),
                )
            }

            #[inline(always)]
            fn floats(self) -> Neon {
                unsafe {
                    Neon(
                        vcvtq_f32_s32(self.0),
                        vcvtq_f32_s32(self.1),
                        vcvtq_f32_s32(self.2),
                        vcvtq_f32_s32(self.3),
                    )
                }
            }

            float_scales!();
        }
    };
}

lanes!(NeonInteger, widening);
lanes!(NeonDot, sdot);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::Simd16;

    /// Sums of eight steps of four inputs, of whole bytes less 128 or of both nibbles.
    #[inline(always)]
    unsafe fn sums<I: Integer>(weights: &[u8; 512], x: &[i32; 16], nibbles: bool) -> [f32; 16] {
        let mut acc = I::splat(-7);
        for step in 0..8 {
            let bytes = unsafe { I::bytes(weights.as_ptr().add(step * 64)) };
            if nibbles {
                acc = acc.dot(I::low(bytes), x[2 * step]).dot(I::high(bytes), x[2 * step + 1]);
            } else {
                acc = acc.dot(if I::SIGNED { I::less(bytes) } else { bytes }, x[step]);
            }
        }
        acc.floats().lanes()
    }

    #[target_feature(enable = "dotprod")]
    unsafe fn by_sdot(weights: &[u8; 512], x: &[i32; 16], nibbles: bool) -> [f32; 16] {
        unsafe { sums::<NeonDot>(weights, x, nibbles) }
    }

    /// The extremes, and every difference of signs between neighbours.
    fn inputs(kind: usize) -> ([u8; 512], [i32; 16]) {
        let weight = |i: usize| match kind {
            0 => 0,
            1 => 255,
            _ => (i * 89 + i / 7 * 31 + kind) as u8,
        };
        let x = |i: usize| match kind {
            0 => -127,
            1 => 127,
            _ => ((i * 57 + kind * 11) % 255) as i32 - 127,
        };
        let four = |i: usize| i32::from_le_bytes([0, 1, 2, 3].map(|j| x(4 * i + j) as i8 as u8));
        (std::array::from_fn(weight), std::array::from_fn(four))
    }

    #[test]
    fn sums_are_those_of_plain_rust() {
        let dotprod = std::arch::is_aarch64_feature_detected!("dotprod");
        for kind in 0..40 {
            let (weights, x) = inputs(kind);
            // Plain Rust takes bytes unsigned: what 128 times the inputs adds is taken off.
            let shift = |v: &i32| v.to_le_bytes().map(|b| i32::from(b as i8)).iter().sum::<i32>();
            let shift = 128 * x[..8].iter().map(shift).sum::<i32>();
            for nibbles in [false, true] {
                let want = unsafe { sums::<[i32; 16]>(&weights, &x, nibbles) };
                let want = want.map(|v| if nibbles { v } else { v - shift as f32 });
                assert_eq!(unsafe { sums::<NeonInteger>(&weights, &x, nibbles) }, want);
                if dotprod {
                    assert_eq!(unsafe { by_sdot(&weights, &x, nibbles) }, want);
                }
            }
        }
    }
}
