//! Sixteen i32 lanes that sum products of bytes: what quantized layers are made of. Integer sums
//! are exact, so every path gives the same bits, whichever instruction it has.
#![allow(unsafe_code, reason = "vector intrinsics and loads through pointers")]
// One fact makes every intrinsic here sound, and it is not local: by the room's contract a type is
// used only in functions compiled with, and called after CPUID showed, the features of its path:
// AVX2, or AVX-512 F and BW, or these and VNNI.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use super::Simd16;
use super::portable::Portable;

/// Sixteen i32 lanes.
pub(crate) trait Integer: Copy {
    /// The same lanes in f32.
    type Floats: Simd16;
    /// 64 unsigned bytes: four for each lane.
    type Bytes: Copy;
    /// A group's scales, one for each lane.
    type Scales: Copy;
    /// Whether its products want both sides signed: whole bytes come less 128 then (see `less`),
    /// nibbles fit as they are. Such lanes are several registers, too.
    const SIGNED: bool = false;
    /// By how much `scaled` is too large: a power of two.
    const SCALES_UNIT: f32 = 1.0;
    /// All lanes `x`.
    fn splat(x: i32) -> Self;
    /// Reads 64 bytes.
    unsafe fn bytes(p: *const u8) -> Self::Bytes;
    /// The lower four bits of each byte.
    fn low(bytes: Self::Bytes) -> Self::Bytes;
    /// The upper four bits of each byte.
    fn high(bytes: Self::Bytes) -> Self::Bytes;
    /// Nibbles, each with the two bits of number `STEP` of a byte of `upper` above it.
    fn with_upper<const STEP: usize>(nibbles: Self::Bytes, upper: Self::Bytes) -> Self::Bytes;
    /// Each byte less 128, as a signed one; for `SIGNED` lanes alone.
    #[inline(always)]
    fn less(bytes: Self::Bytes) -> Self::Bytes {
        bytes
    }
    /// Adds to each lane the products of its four bytes and the four signed bytes of `x`, none of
    /// which is -128.
    fn dot(self, bytes: Self::Bytes, x: i32) -> Self;
    /// `dot` of both; no byte is beyond 63.
    #[inline(always)]
    fn dot_two(self, bytes: (Self::Bytes, Self::Bytes), x: (i32, i32)) -> Self {
        self.dot(bytes.0, x.0).dot(bytes.1, x.1)
    }
    /// The lanes, rounded to nearest even beyond 2^24.
    fn floats(self) -> Self::Floats;
    /// Reads sixteen scales.
    unsafe fn scales(p: *const i8) -> Self::Scales;
    /// The lanes times their scales and `SCALES_UNIT`, rounded as `floats` is.
    fn scaled(self, scales: Self::Scales) -> Self::Floats;
}

/// Scales that are floats, as are the lanes then: their product is rounded alone, once.
macro_rules! float_scales {
    () => {
        type Scales = Self::Floats;

        #[inline(always)]
        unsafe fn scales(p: *const i8) -> Self::Scales {
            // SAFETY: the caller's contract.
            unsafe { Self::Floats::load_i8(p) }
        }

        #[inline(always)]
        fn scaled(self, scales: Self::Scales) -> Self::Floats {
            self.floats().mul(scales)
        }
    };
}

impl Integer for [i32; 16] {
    type Floats = Portable;
    type Bytes = [[u8; 4]; 16];

    #[inline(always)]
    fn splat(x: i32) -> Self {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::Bytes {
        unsafe { p.cast::<Self::Bytes>().read_unaligned() }
    }

    #[inline(always)]
    fn low(bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|four| four.map(|b| b & 15))
    }

    #[inline(always)]
    fn high(bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|four| four.map(|b| b >> 4))
    }

    #[inline(always)]
    fn with_upper<const STEP: usize>(nibbles: Self::Bytes, upper: Self::Bytes) -> Self::Bytes {
        let both = |n: u8, u: u8| n | (u >> (2 * STEP) & 3) << 4;
        std::array::from_fn(|i| std::array::from_fn(|j| both(nibbles[i][j], upper[i][j])))
    }

    #[inline(always)]
    fn dot(self, bytes: Self::Bytes, x: i32) -> Self {
        let x = x.to_le_bytes().map(|b| i32::from(b as i8));
        std::array::from_fn(|i| {
            let w = bytes[i].map(i32::from);
            self[i] + w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]
        })
    }

    #[inline(always)]
    fn floats(self) -> Portable {
        Portable(self.map(|x| x as f32))
    }

    float_scales!();
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::{NeonDot, NeonInteger};

#[cfg(target_arch = "aarch64")]
mod arm;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2Integer, Avx2Nibbles, Avx512Integer, Vnni, with_upper512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Integer;
    use crate::backend::cpu::simd::Simd16;
    use crate::backend::cpu::simd::avx2::Avx2;
    use crate::backend::cpu::simd::avx512::Avx512;

    /// Two ymm registers, for whole bytes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Integer(__m256i, __m256i);

    /// Two ymm registers of sixteen sums of 16 bits each, for a group of nibbles: none of its sums
    /// of sixteen products, less 8 times all 32 inputs, is beyond 2^15.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Nibbles(__m256i, __m256i);

    /// One zmm register, where VNNI is missing.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Integer(__m512i);

    /// One zmm register and `vpdpbusd`.
    #[derive(Clone, Copy)]
    pub(crate) struct Vnni(__m512i);

    /// Products of bytes, both signed: the sign of a weight goes to its input, for one side has to
    /// be unsigned. Two of them are at most 2 * 127 * 127, within 16 bits.
    #[inline(always)]
    unsafe fn dot256(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe {
            let twos = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)))
        }
    }

    /// Products of bytes up to 63: four of them are at most 4 * 63 * 127, within 16 bits.
    #[inline(always)]
    unsafe fn two256(acc: __m256i, w: (__m256i, __m256i), x: (__m256i, __m256i)) -> __m256i {
        unsafe {
            let low = _mm256_maddubs_epi16(w.0, x.0);
            let twos = _mm256_add_epi16(low, _mm256_maddubs_epi16(w.1, x.1));
            _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)))
        }
    }

    /// The two bits of number `STEP` of each byte as bits 4 and 5, above a nibble.
    #[inline(always)]
    unsafe fn with_upper256<const STEP: usize>(nibbles: __m256i, upper: __m256i) -> __m256i {
        unsafe {
            let moved = match const { STEP } {
                0 => _mm256_slli_epi16::<4>(upper),
                1 => _mm256_slli_epi16::<2>(upper),
                2 => upper,
                _ => _mm256_srli_epi16::<2>(upper),
            };
            _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)))
        }
    }

    /// What both kinds of ymm lanes share.
    macro_rules! ymm {
        ($name:ident, |$x:ident| $first:expr, |$acc:ident, $w:ident, $in:ident| $dot:expr,
         |$sum:ident| $sums:expr, { $($own:tt)* }) => {
            impl Integer for $name {
                type Floats = Avx2;
                type Bytes = (__m256i, __m256i);
                const SIGNED: bool = true;

                #[inline(always)]
                fn splat($x: i32) -> Self {
                    unsafe {
                        let first = _mm256_set1_epi32($first);
                        Self(first, first)
                    }
                }

                #[inline(always)]
                unsafe fn bytes(p: *const u8) -> Self::Bytes {
                    unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
                }

                #[inline(always)]
                fn low(bytes: Self::Bytes) -> Self::Bytes {
                    unsafe {
                        let mask = _mm256_set1_epi8(15);
                        (_mm256_and_si256(bytes.0, mask), _mm256_and_si256(bytes.1, mask))
                    }
                }

                #[inline(always)]
                fn high(bytes: Self::Bytes) -> Self::Bytes {
                    unsafe {
                        Self::low((
                            _mm256_srli_epi16::<4>(bytes.0),
                            _mm256_srli_epi16::<4>(bytes.1),
                        ))
                    }
                }

                #[inline(always)]
                fn with_upper<const STEP: usize>(
                    nibbles: Self::Bytes,
                    upper: Self::Bytes,
                ) -> Self::Bytes {
                    unsafe {
                        (
                            with_upper256::<STEP>(nibbles.0, upper.0),
                            with_upper256::<STEP>(nibbles.1, upper.1),
                        )
                    }
                }

                #[inline(always)]
                fn less(bytes: Self::Bytes) -> Self::Bytes {
                    unsafe {
                        let half = _mm256_set1_epi8(-128);
                        (_mm256_xor_si256(bytes.0, half), _mm256_xor_si256(bytes.1, half))
                    }
                }

                #[inline(always)]
                fn dot(self, bytes: Self::Bytes, x: i32) -> Self {
                    unsafe {
                        let $in = _mm256_set1_epi32(x);
                        let ($acc, $w) = (self.0, bytes.0);
                        let low = $dot;
                        let ($acc, $w) = (self.1, bytes.1);
                        Self(low, $dot)
                    }
                }

                $($own)*

                #[inline(always)]
                fn floats(self) -> Avx2 {
                    unsafe {
                        let $sum = self.0;
                        let low = _mm256_cvtepi32_ps($sums);
                        let $sum = self.1;
                        Avx2(low, _mm256_cvtepi32_ps($sums))
                    }
                }
            }
        };
    }

    ymm!(Avx2Integer, |x| x, |acc, w, x| dot256(acc, w, x), |sum| sum, {
        #[inline(always)]
        fn dot_two(self, bytes: (Self::Bytes, Self::Bytes), x: (i32, i32)) -> Self {
            unsafe {
                let x = (_mm256_set1_epi32(x.0), _mm256_set1_epi32(x.1));
                let low = two256(self.0, (bytes.0.0, bytes.1.0), x);
                Self(low, two256(self.1, (bytes.0.1, bytes.1.1), x))
            }
        }

        float_scales!();
    });
    // None of these sums saturates. Additions that could keep the compiler from changing their
    // order, for which it has no registers.
    ymm!(
        Avx2Nibbles,
        |x| x & 0xffff,
        |acc, w, x| _mm256_adds_epi16(acc, _mm256_maddubs_epi16(w, x)),
        |sum| _mm256_madd_epi16(sum, _mm256_set1_epi16(1)),
        {
            // Both halves of a lane's sum times its scale, within 32 bits. A scale is the upper
            // byte of its 16 bits, where one instruction puts it: 256 times too large, for powers
            // of two cost nothing.
            type Scales = (__m256i, __m256i);
            const SCALES_UNIT: f32 = 256.0;

            #[inline(always)]
            unsafe fn scales(p: *const i8) -> Self::Scales {
                unsafe {
                    let all = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
                    let first = _mm256_setr_epi8(
                        -1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, //
                        -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7,
                    );
                    let last = _mm256_setr_epi8(
                        -1, 8, -1, 8, -1, 9, -1, 9, -1, 10, -1, 10, -1, 11, -1, 11, //
                        -1, 12, -1, 12, -1, 13, -1, 13, -1, 14, -1, 14, -1, 15, -1, 15,
                    );
                    (_mm256_shuffle_epi8(all, first), _mm256_shuffle_epi8(all, last))
                }
            }

            #[inline(always)]
            fn scaled(self, scales: Self::Scales) -> Avx2 {
                unsafe {
                    Avx2(
                        _mm256_cvtepi32_ps(_mm256_madd_epi16(self.0, scales.0)),
                        _mm256_cvtepi32_ps(_mm256_madd_epi16(self.1, scales.1)),
                    )
                }
            }
        }
    );

    /// As `with_upper256`.
    #[inline(always)]
    pub(crate) unsafe fn with_upper512<const STEP: usize>(
        nibbles: __m512i,
        upper: __m512i,
    ) -> __m512i {
        unsafe {
            let moved = match const { STEP } {
                0 => _mm512_slli_epi16::<4>(upper),
                1 => _mm512_slli_epi16::<2>(upper),
                2 => upper,
                _ => _mm512_srli_epi16::<2>(upper),
            };
            _mm512_or_si512(nibbles, _mm512_and_si512(moved, _mm512_set1_epi8(0x30)))
        }
    }

    /// What both kinds of zmm lanes share.
    macro_rules! zmm {
        ($name:ident, |$acc:ident, $w:ident, $x:ident| $dot:expr) => {
            impl Integer for $name {
                type Floats = Avx512;
                type Bytes = __m512i;

                #[inline(always)]
                fn splat(x: i32) -> Self {
                    unsafe { Self(_mm512_set1_epi32(x)) }
                }

                #[inline(always)]
                unsafe fn bytes(p: *const u8) -> __m512i {
                    unsafe { _mm512_loadu_si512(p.cast()) }
                }

                #[inline(always)]
                fn low(bytes: __m512i) -> __m512i {
                    unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
                }

                #[inline(always)]
                fn high(bytes: __m512i) -> __m512i {
                    unsafe { Self::low(_mm512_srli_epi16::<4>(bytes)) }
                }

                #[inline(always)]
                fn with_upper<const STEP: usize>(nibbles: __m512i, upper: __m512i) -> __m512i {
                    unsafe { with_upper512::<STEP>(nibbles, upper) }
                }

                #[inline(always)]
                fn dot(self, $w: __m512i, x: i32) -> Self {
                    unsafe {
                        let ($acc, $x) = (self.0, _mm512_set1_epi32(x));
                        Self($dot)
                    }
                }

                #[inline(always)]
                fn floats(self) -> Avx512 {
                    unsafe { Avx512(_mm512_cvtepi32_ps(self.0)) }
                }

                float_scales!();
            }
        };
    }

    zmm!(Vnni, |acc, w, x| _mm512_dpbusd_epi32(acc, w, x));
    zmm!(Avx512Integer, |acc, w, x| {
        let even = _mm512_and_si512(w, _mm512_set1_epi16(0xff));
        let odd = _mm512_srli_epi16::<8>(w);
        let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
        let x_odd = _mm512_srai_epi16::<8>(x);
        let acc = _mm512_add_epi32(acc, _mm512_madd_epi16(even, x_even));
        _mm512_add_epi32(acc, _mm512_madd_epi16(odd, x_odd))
    });
}
