//! bf16 times bf16 by `bfdot`: each step adds two products to each of sixteen outputs. Every lane
//! is a sum of its own, rounded the same whatever stands beside it.
#![allow(unsafe_code, reason = "vector intrinsics, and an instruction without one")]
// The path's features stand behind the instruction here, as the room `simd` says.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::Panel;
use crate::backend::cpu::simd::Simd16;
use crate::backend::cpu::simd::neon::Neon;

/// Both sides in bf16, weights in pairs: `[N/16][K/2][16][2]`.
pub(crate) struct Dot;

/// The intrinsic is not in stable Rust.
#[inline(always)]
fn bfdot(mut acc: float32x4_t, w: uint32x4_t, b: uint32x4_t) -> float32x4_t {
    // SAFETY: registers alone; the machine has the instruction by the contract above.
    unsafe {
        asm!(
            "bfdot {acc:v}.4s, {w:v}.8h, {b:v}.8h",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

impl Panel for Dot {
    type Acc = Neon;
    type X = u16;
    type W = (uint32x4_t, uint32x4_t, uint32x4_t, uint32x4_t);
    type B = uint32x4_t;
    const STEP: usize = 2;
    const STEP_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn weights(p: *const u8) -> Self::W {
        unsafe {
            let p = p.cast::<u32>();
            (vld1q_u32(p), vld1q_u32(p.add(4)), vld1q_u32(p.add(8)), vld1q_u32(p.add(12)))
        }
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const u16) -> uint32x4_t {
        unsafe { vdupq_n_u32(p.cast::<u32>().read_unaligned()) }
    }

    #[inline(always)]
    fn step(acc: Neon, w: Self::W, b: uint32x4_t) -> Neon {
        Neon(bfdot(acc.0, w.0, b), bfdot(acc.1, w.1, b), bfdot(acc.2, w.2, b), bfdot(acc.3, w.3, b))
    }

    #[inline(always)]
    unsafe fn put(v: Neon, p: *mut u16) {
        unsafe { v.store_bf16(p) }
    }

    #[inline(always)]
    fn first(w: Self::W) -> Self::W {
        let lower = |w| unsafe { vandq_u32(w, vdupq_n_u32(0xffff)) };
        (lower(w.0), lower(w.1), lower(w.2), lower(w.3))
    }
}
