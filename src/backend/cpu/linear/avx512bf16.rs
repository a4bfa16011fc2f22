//! bf16 times bf16 by `vdpbf16ps`: each step adds two products to each of sixteen outputs.
// The path's features stand behind every intrinsic here, as in `simd::avx512`.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::x86_64::*;

use super::Panel;
use crate::backend::cpu::simd::avx512::Avx512;

/// Both sides in bf16, weights in pairs: `[N/16][K/2][16][2]`.
pub(crate) struct Dot;

impl Panel for Dot {
    type Acc = Avx512;
    type X = u16;
    type W = __m512i;
    type B = __m512i;
    const STEP: usize = 2;
    const STEP_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const u16) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn step(acc: Avx512, w: __m512i, b: __m512i) -> Avx512 {
        // SAFETY: __m512bh and __m512i are both 64 plain bytes.
        unsafe {
            let w = std::mem::transmute::<__m512i, __m512bh>(w);
            let b = std::mem::transmute::<__m512i, __m512bh>(b);
            Avx512(_mm512_dpbf16_ps(acc.0, w, b))
        }
    }
}
