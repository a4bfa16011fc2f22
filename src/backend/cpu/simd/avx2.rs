//! `Simd16` as two AVX registers, with FMA and F16C.
#![allow(unsafe_code, reason = "vector intrinsics")]
// One fact makes every intrinsic here sound, and it is not local: by the room's contract this
// type is used only in functions compiled with, and called after CPUID showed, AVX2, FMA and
// F16C. Pointers are the caller's duty, element counts are in the trait's documentation.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::x86_64::*;

use super::Simd16;

/// Two ymm registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(super) __m256, pub(super) __m256);

/// bf16 bits, nearest even, in the upper half of each lane.
#[inline(always)]
unsafe fn rounded_bits(x: __m256) -> __m256i {
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_castsi256_ps(_mm256_add_epi32(bits, half));
        let quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000)));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        _mm256_castps_si256(_mm256_blendv_ps(rounded, quiet, nan))
    }
}

/// The upper halves of both, those of `odd` above those of `even`.
#[inline(always)]
unsafe fn pairs(even: __m256i, odd: __m256i) -> __m256i {
    unsafe { _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd) }
}

#[inline(always)]
unsafe fn widen_bf16(p: *const u16) -> __m256 {
    unsafe {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
}

#[inline(always)]
unsafe fn pow2(x: __m256) -> __m256 {
    unsafe {
        let n = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
    }
}

impl Simd16 for Avx2 {
    const L2_BYTES: usize = 512 << 10;
    // Both measured on Zen 3: a pair comes a sixth faster.
    const PAIRED_ROWS: usize = 2;
    const STREAM_AHEAD: usize = 2048;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        unsafe { Self(widen_bf16(p), widen_bf16(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            Self(low, _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self) {
        unsafe {
            let low = _mm256_loadu_si256(p.cast());
            let high = _mm256_loadu_si256(p.add(16).cast());
            let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let even = |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
            let odd = |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, mask));
            (Self(even(low), even(high)), Self(odd(low), odd(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(p: *const i8) -> (Self, Self) {
        unsafe {
            let low = _mm256_cvtepi16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepi16_epi32(_mm_loadu_si128(p.add(16).cast()));
            let even = |pairs| _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(pairs));
            let even = |pairs| _mm256_cvtepi32_ps(even(pairs));
            let odd = |pairs| _mm256_cvtepi32_ps(_mm256_srai_epi32::<8>(pairs));
            (Self(even(low), even(high)), Self(odd(low), odd(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe {
            let eight = |p: *const i8| _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            Self(_mm256_cvtepi32_ps(eight(p)), _mm256_cvtepi32_ps(eight(p.add(8))))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        unsafe {
            let low = _mm256_srli_epi32::<16>(rounded_bits(self.0));
            let high = _mm256_srli_epi32::<16>(rounded_bits(self.1));
            // The pack works within 128-bit halves; the permutation puts them in order.
            let packed = _mm256_packus_epi32(low, high);
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, odd: Self, p: *mut u16) {
        unsafe {
            let low = pairs(rounded_bits(self.0), rounded_bits(odd.0));
            let high = pairs(rounded_bits(self.1), rounded_bits(odd.1));
            _mm256_storeu_si256(p.cast(), low);
            _mm256_storeu_si256(p.add(16).cast(), high);
        }
    }

    #[inline(always)]
    fn round_bf16(self) -> Self {
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let low = _mm256_and_si256(rounded_bits(self.0), mask);
            let high = _mm256_and_si256(rounded_bits(self.1), mask);
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            // The pack works within 128-bit halves; the permutation puts them in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let high = _mm256_extracti128_si256::<1>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), high);
            _mm_storeu_si128(p.cast(), bytes);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, a.0, b.0), _mm256_fmadd_ps(self.1, a.1, b.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // The instruction yields its second operand when either is NaN.
        unsafe { Self(_mm256_max_ps(other.0, self.0), _mm256_max_ps(other.1, self.1)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(other.0, self.0), _mm256_min_ps(other.1, self.1)) }
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }

    #[inline(always)]
    fn mul_pow2(self, n: Self) -> Self {
        unsafe { self.mul(Self(pow2(n.0), pow2(n.1))) }
    }

    #[inline(always)]
    fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1);
            let low = _mm256_blendv_ps(other.0, self.0, low);
            Self(low, _mm256_blendv_ps(other.1, self.1, high))
        }
    }
}
