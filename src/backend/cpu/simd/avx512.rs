//! `Simd16` as one AVX-512 register.
#![allow(unsafe_code, reason = "vector intrinsics")]
// One fact makes every intrinsic here sound, and it is not local: by the room's contract this
// type is used only in functions compiled with, and called after CPUID showed, AVX-512 F, BW, DQ
// and VL. Pointers are the caller's duty, element counts are in the trait's documentation.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::x86_64::*;

use super::Simd16;

/// One zmm register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

impl Avx512 {
    /// bf16 bits, nearest even, in the upper half of each lane.
    #[inline(always)]
    fn rounded_bits(self) -> __m512i {
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, half);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            _mm512_mask_mov_epi32(rounded, nan, quiet)
        }
    }

    #[inline(always)]
    fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }
}

impl Simd16 for Avx512 {
    const L2_BYTES: usize = 1 << 20;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(p)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self) {
        unsafe {
            let pairs = _mm512_loadu_si512(p.cast());
            let even = _mm512_slli_epi32::<16>(pairs);
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            (Self(_mm512_castsi512_ps(even)), Self(_mm512_castsi512_ps(odd)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(p: *const i8) -> (Self, Self) {
        unsafe {
            let pairs = _mm512_cvtepi16_epi32(_mm256_loadu_si256(p.cast()));
            let even = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(pairs));
            let odd = _mm512_srai_epi32::<8>(pairs);
            (Self(_mm512_cvtepi32_ps(even)), Self(_mm512_cvtepi32_ps(odd)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        unsafe {
            let upper = _mm512_srli_epi32::<16>(self.rounded_bits());
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(upper));
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, odd: Self, p: *mut u16) {
        unsafe {
            let even = _mm512_srli_epi32::<16>(self.rounded_bits());
            let odd = _mm512_castps_si512(odd.round_bf16().0);
            _mm512_storeu_si512(p.cast(), _mm512_or_si512(even, odd));
        }
    }

    #[inline(always)]
    fn round_bf16(self) -> Self {
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000u32 as i32);
            Self(_mm512_castsi512_ps(_mm512_and_si512(self.rounded_bits(), mask)))
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, a.0, b.0)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // The instruction yields its second operand when either is NaN.
        unsafe { Self(_mm512_max_ps(other.0, self.0)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(other.0, self.0)) }
    }

    #[inline(always)]
    fn round(self) -> Self {
        unsafe { Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0)) }
    }

    #[inline(always)]
    fn mul_pow2(self, n: Self) -> Self {
        unsafe { Self(_mm512_scalef_ps(self.0, n.0)) }
    }

    #[inline(always)]
    fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0);
            Self(_mm512_mask_mov_ps(other.0, less, self.0))
        }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        unsafe {
            // What a masked store has yet to bring to memory is waited for, and so it is by a
            // masked load: both only where they must be.
            if n == 16 {
                return Self::load(p);
            }
            Self(_mm512_maskz_loadu_ps(Self::first(n), p))
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe {
            if n == 16 {
                return self.store(p);
            }
            _mm512_mask_storeu_ps(p, Self::first(n), self.0);
        }
    }

    #[inline(always)]
    fn keep(self, from: usize, to: usize, other: Self) -> Self {
        unsafe {
            let mask = Self::first(to.min(16)) & !Self::first(from.min(16));
            Self(_mm512_mask_mov_ps(other.0, mask, self.0))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let eight = _mm512_extractf32x8_ps::<1>(self.0);
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), eight);
            let four = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), four);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn greatest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}
