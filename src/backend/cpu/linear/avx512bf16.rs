//! bf16 times bf16 by `vdpbf16ps`: each step adds two products to each of sixteen outputs.
// The path's features stand behind every intrinsic here, as in `simd::avx512`.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::x86_64::*;

use super::Panel;
use crate::backend::cpu::simd::avx512::Avx512;

/// Both sides in bf16, weights in pairs: `[N/16][K/2][16][2]`; with `TILES`, by AMX where they can.
pub(crate) struct Dot<const TILES: bool>;

impl<const TILES: bool> Panel for Dot<TILES> {
    type Acc = Avx512;
    type X = u16;
    type W = __m512i;
    type B = __m512i;
    const STEP: usize = 2;
    const STEP_BYTES: usize = 64;
    const TILES: bool = TILES;
    const EXP_FACTOR: f32 = std::f32::consts::LOG2_E;

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

    #[inline(always)]
    unsafe fn put(v: Avx512, p: *mut u16) {
        unsafe {
            let rounded = _mm512_cvtneps_pbh(v.0);
            p.cast::<__m256bh>().write_unaligned(rounded);
        }
    }

    #[inline(always)]
    fn first(w: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(w, _mm512_set1_epi32(0xffff)) }
    }

    /// `2^x` to 3e-6 relative, of which bf16 keeps 4e-3: `2^n` times a polynomial in what x is away
    /// from the integer `n`, its coefficients a minimax fit with 1 at 0.
    #[inline(always)]
    fn exp(x: Avx512) -> Avx512 {
        unsafe {
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x.0);
            let r = _mm512_sub_ps(x.0, n);
            let mut p = _mm512_set1_ps(EXP2[0]);
            for c in &EXP2[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
            }
            Avx512(_mm512_scalef_ps(p, n))
        }
    }
}

/// `2^r` for |r| <= 1/2, highest power first.
const EXP2: [f32; 5] = [0.009_582_853, 0.055_906_426, 0.240_240_99, 0.693_124_2, 1.0];
