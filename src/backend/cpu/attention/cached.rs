//! Panels over the cache: what attention asks of a `linear::Panel` beside its products, and those
//! over int8.
//!
//! ```text
//!  few vectors   int8 ─► bf16 (or f32) in registers ─► products
//!  many vectors  int8 ─► bf16 (or f32) in scratch, once ─► products of all vectors
//! ```
//! A byte is exact in bf16, so both are the same bits.
#![allow(unsafe_code, reason = "kernels work through pointers")]

use std::marker::PhantomData;

use crate::backend::cpu::linear::{Pairs, Panel, Wide};
use crate::backend::cpu::simd::Simd16;

/// A panel whose weights are keys or values.
pub(crate) trait Cached: Panel {
    /// Whether scores and probabilities are yet to be multiplied with the positions' scales.
    const SCALED: bool;
    /// The panel over what `widen` writes.
    type Widened: Cached<Acc = Self::Acc, X = Self::X>;
    /// Writes a step's weights so that nothing is left to convert.
    unsafe fn widen(w: Self::W, to: *mut u8);
}

/// Weights as they are.
macro_rules! cached {
    ($([$($generic:tt)*] $panel:ty;)*) => {$(
        impl<$($generic)*> Cached for $panel {
            const SCALED: bool = false;
            type Widened = Self;

            #[inline(always)]
            unsafe fn widen(_w: Self::W, _to: *mut u8) {
                // Nothing is left to convert.
            }
        }
    )*};
}

cached! {
    [S: Simd16] Wide<S, f32>;
    [S: Simd16] Pairs<S>;
    [S: Simd16] Twos<S, f32>;
}

/// Weights of two steps of f32 products: the even elements, the odd elements.
pub(crate) struct Twos<S, T>(PhantomData<(S, T)>);

/// What `Twos` reads its weights from.
pub(crate) trait LoadTwos {
    /// Bytes of one step.
    const BYTES: usize;
    /// Reads a step's weights.
    unsafe fn load<S: Simd16>(p: *const u8) -> (S, S);
}

/// `[16][2]`.
impl LoadTwos for i8 {
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn load<S: Simd16>(p: *const u8) -> (S, S) {
        // SAFETY: the caller vouches for a step.
        unsafe { S::load_i8_pairs(p.cast()) }
    }
}

/// `[2][16]`.
impl LoadTwos for f32 {
    const BYTES: usize = 128;

    #[inline(always)]
    unsafe fn load<S: Simd16>(p: *const u8) -> (S, S) {
        // SAFETY: the caller vouches for a step.
        unsafe { (S::load(p.cast()), S::load(p.add(64).cast())) }
    }
}

impl<S: Simd16, T: LoadTwos> Panel for Twos<S, T> {
    type Acc = S;
    type X = f32;
    type W = (S, S);
    type B = (S, S);
    const STEP: usize = 2;
    const STEP_BYTES: usize = T::BYTES;

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> (S, S) {
        // SAFETY: the caller vouches for one step of weights.
        unsafe { T::load(p) }
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const f32) -> (S, S) {
        // SAFETY: the caller vouches for two elements.
        unsafe { Pairs::<S>::broadcast(p) }
    }

    #[inline(always)]
    fn step(acc: S, w: (S, S), b: (S, S)) -> S {
        Pairs::<S>::step(acc, w, b)
    }

    #[inline(always)]
    unsafe fn put(v: S, p: *mut f32) {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { v.store(p) }
    }

    #[inline(always)]
    fn first(w: (S, S)) -> (S, S) {
        Pairs::<S>::first(w)
    }
}

impl<S: Simd16> Cached for Twos<S, i8> {
    const SCALED: bool = true;
    type Widened = Twos<S, f32>;

    #[inline(always)]
    unsafe fn widen(w: (S, S), to: *mut u8) {
        // SAFETY: the caller vouches for `Widened::STEP_BYTES`.
        unsafe {
            w.0.store(to.cast());
            w.1.store(to.add(64).cast());
        }
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use dot::DotBytes;

#[cfg(target_arch = "x86_64")]
mod dot {
    // The path's features stand behind every intrinsic here, as in `simd::avx512`.
    #![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

    use std::arch::x86_64::*;

    use super::{Cached, Panel};
    use crate::backend::cpu::linear::avx512bf16::Dot;
    use crate::backend::cpu::simd::avx512::Avx512;

    cached! { [const TILES: bool] Dot<TILES>; }

    /// int8 that become bf16 in registers, `[16][2]`.
    pub(crate) struct DotBytes;

    impl Panel for DotBytes {
        type Acc = Avx512;
        type X = u16;
        type W = __m512i;
        type B = __m512i;
        const STEP: usize = 2;
        const STEP_BYTES: usize = 32;
        const EXP_FACTOR: f32 = Dot::<false>::EXP_FACTOR;

        #[inline(always)]
        unsafe fn weights(p: *const u8) -> __m512i {
            unsafe {
                let low = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
                let high = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.add(16).cast()));
                let (low, high) = (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high));
                // SAFETY: __m512bh and __m512i are both 64 plain bytes.
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
            }
        }

        #[inline(always)]
        unsafe fn broadcast(p: *const u16) -> __m512i {
            unsafe { Dot::<false>::broadcast(p) }
        }

        #[inline(always)]
        fn step(acc: Avx512, w: __m512i, b: __m512i) -> Avx512 {
            Dot::<false>::step(acc, w, b)
        }

        #[inline(always)]
        unsafe fn put(v: Avx512, p: *mut u16) {
            unsafe { Dot::<false>::put(v, p) }
        }

        #[inline(always)]
        fn first(w: __m512i) -> __m512i {
            Dot::<false>::first(w)
        }

        #[inline(always)]
        fn exp(x: Avx512) -> Avx512 {
            Dot::<false>::exp(x)
        }
    }

    impl Cached for DotBytes {
        const SCALED: bool = true;
        type Widened = Dot<false>;

        #[inline(always)]
        unsafe fn widen(w: __m512i, to: *mut u8) {
            unsafe { _mm512_storeu_si512(to.cast(), w) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod dot {
    // The path's features stand behind every intrinsic here, as in `simd::neon`.
    #![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

    use std::arch::aarch64::*;

    use super::{Cached, Panel};
    use crate::backend::cpu::linear::neon_bf16::Dot;
    use crate::backend::cpu::simd::neon::Neon;

    cached! { [] Dot; }

    /// int8 that become bf16 in registers, `[16][2]`.
    pub(crate) struct DotBytes;

    /// Eight bytes as bf16: the upper halves of what they are in f32.
    #[inline(always)]
    fn widened(bytes: int8x8_t) -> uint32x4_t {
        unsafe {
            let words = vmovl_s8(bytes);
            let upper = |half| vshrn_n_u32::<16>(vreinterpretq_u32_f32(vcvtq_f32_s32(half)));
            let low = upper(vmovl_s16(vget_low_s16(words)));
            let high = upper(vmovl_s16(vget_high_s16(words)));
            vreinterpretq_u32_u16(vcombine_u16(low, high))
        }
    }

    impl Panel for DotBytes {
        type Acc = Neon;
        type X = u16;
        type W = <Dot as Panel>::W;
        type B = uint32x4_t;
        const STEP: usize = 2;
        const STEP_BYTES: usize = 32;

        #[inline(always)]
        unsafe fn weights(p: *const u8) -> Self::W {
            unsafe {
                let eight = |i: usize| widened(vld1_s8(p.cast::<i8>().add(8 * i)));
                (eight(0), eight(1), eight(2), eight(3))
            }
        }

        #[inline(always)]
        unsafe fn broadcast(p: *const u16) -> uint32x4_t {
            unsafe { Dot::broadcast(p) }
        }

        #[inline(always)]
        fn step(acc: Neon, w: Self::W, b: uint32x4_t) -> Neon {
            Dot::step(acc, w, b)
        }

        #[inline(always)]
        unsafe fn put(v: Neon, p: *mut u16) {
            unsafe { Dot::put(v, p) }
        }

        #[inline(always)]
        fn first(w: Self::W) -> Self::W {
            Dot::first(w)
        }
    }

    impl Cached for DotBytes {
        const SCALED: bool = true;
        type Widened = Dot;

        #[inline(always)]
        unsafe fn widen(w: Self::W, to: *mut u8) {
            unsafe {
                for (i, part) in [w.0, w.1, w.2, w.3].into_iter().enumerate() {
                    vst1q_u32(to.cast::<u32>().add(4 * i), part);
                }
            }
        }
    }
}
