//! Quantized linear layers by AMX: the same sums as `quantized`, to the bit.
//!
//! A group's products are summed by `tdpbsud`, exactly, in i32; scales and corrections follow on
//! vectors in the order of `quantized`. While vectors work on one group, the tiles of the next are
//! under way: the processor looks that far ahead. Four or six bits become bytes just before a
//! group.
#![allow(unsafe_code, reason = "kernels work through pointers")]
// The path's features (AVX-512 F and BW among them) stand behind every intrinsic here, as in
// `simd::avx512`.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the fact stands above, once")]

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::amx::{Part, Product};
use super::amx_tiles::{BYTES, Feed, STRIP};
use super::quantized::Format;
use super::{LinearArgs, Wide};
use crate::backend::cpu::simd::Simd16;
use crate::backend::cpu::simd::avx512::Avx512;
use crate::backend::cpu::simd::integer::with_upper512;

/// Layers of format `F`.
pub(crate) struct Bytes<F>(PhantomData<F>);

/// Panels that are multiplied at a time.
const PANELS: usize = 2;

/// One group's sums, `[PANELS][STRIP][16]`, of two groups in turn.
#[repr(C, align(64))]
struct Integers([[i32; PANELS * STRIP * 16]; 2]);

/// Weights of a group of four or six bits as bytes, `[PANELS][inputs / 4][16][4]`, of two in turn.
#[repr(C, align(64))]
struct Widened([[u8; PANELS * NIBBLES_TILE]; 2]);

/// Bytes of a tile of 32 inputs.
const NIBBLES_TILE: usize = 512;

impl<F: Format> Product for Bytes<F> {
    const BLOCK: usize = 1024 / F::GROUP;
    const PANELS: [usize; 2] = [PANELS; 2];
    const DEPTH: u16 = if F::GROUP < 64 { F::GROUP as u16 } else { 64 };
    type Rounding = Wide<Avx512, f32>;

    #[inline(always)]
    unsafe fn add(p: &Part<'_>, sums: *mut f32) {
        let (mut integers, mut widened) =
            (MaybeUninit::<Integers>::uninit(), MaybeUninit::<Widened>::uninit());
        let integers = integers.as_mut_ptr().cast::<i32>();
        let widened = widened.as_mut_ptr().cast::<u8>();
        let mut ahead = p.ahead;
        for (turn, group) in p.steps.clone().enumerate() {
            // SAFETY: rows, panels and groups are in range; the arrays have room for two groups.
            unsafe {
                let integers = integers.add(turn % 2 * PANELS * STRIP * 16);
                let weights = p.a.weights.add(p.panel * p.a.panel_bytes + F::weights_at(group));
                let mut feed = Feed {
                    a: p.a.x.add(p.row * p.a.ldx + group * F::GROUP),
                    a_stride: p.a.ldx,
                    b: weights,
                    panel_bytes: p.a.panel_bytes,
                    depth: (F::GROUP / 64).max(1),
                    c: integers.cast(),
                    anew: true,
                    ahead,
                };
                if F::NIBBLES {
                    let bytes = widened.add(turn % 2 * PANELS * NIBBLES_TILE);
                    widen::<F>(p, weights, bytes);
                    // Their own next bytes are no weights.
                    (feed.b, feed.panel_bytes, feed.ahead) = (bytes, NIBBLES_TILE, bytes);
                } else if !ahead.is_null() {
                    ahead = ahead.wrapping_add(F::GROUP * 8);
                }
                BYTES.multiply(&feed, p.rows, p.panels);
                scale_group::<F>(p, group, integers, sums);
            }
        }
    }

    #[inline(always)]
    unsafe fn scale(a: &LinearArgs, panel: usize, sum: Avx512) -> Avx512 {
        unsafe { sum.mul(Avx512::load(a.scales.add(panel * 16))) }
    }
}

/// A group's weights of each panel, a byte each.
#[inline(always)]
unsafe fn widen<F: Format>(p: &Part<'_>, weights: *const u8, bytes: *mut u8) {
    unsafe {
        let low = _mm512_set1_epi8(15);
        for panel in 0..p.panels {
            let (from, to) =
                (weights.add(panel * p.a.panel_bytes), bytes.add(panel * NIBBLES_TILE));
            // Two steps at a time, which lie in a line; with upper bits every third is of these.
            for two in 0..F::GROUP / 8 {
                let lines = if F::UPPER { two / 2 * 3 + two % 2 } else { two };
                let line = from.add(64 * lines);
                let both = _mm512_loadu_si512(line.cast());
                Avx512::prefetch(line.wrapping_add(PREFETCH_BYTES));
                let mut high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                let mut both = _mm512_and_si512(both, low);
                if F::UPPER {
                    let line = from.add(two / 2 * 192 + 128);
                    let upper = _mm512_loadu_si512(line.cast());
                    Avx512::prefetch(line.wrapping_add(PREFETCH_BYTES));
                    (both, high) = match two % 2 {
                        0 => (with_upper512::<0>(both, upper), with_upper512::<1>(high, upper)),
                        _ => (with_upper512::<2>(both, upper), with_upper512::<3>(high, upper)),
                    };
                }
                let to = to.add(128 * two);
                _mm512_store_si512(to.cast(), both);
                _mm512_store_si512(to.add(64).cast(), high);
            }
        }
    }
}

/// Adds a group's integers, corrected and scaled, to the sums.
#[inline(always)]
unsafe fn scale_group<F: Format>(p: &Part<'_>, group: usize, integers: *const i32, sums: *mut f32) {
    unsafe {
        let x = p.a.x.add(p.row * p.a.ldx);
        let scales = x.add(p.a.steps * F::GROUP + 4 * group).cast::<f32>();
        let corrections = x.add(p.a.steps * (F::GROUP + 4) + 4 * group).cast::<i32>();
        for panel in 0..p.panels {
            let weights = p.a.weights.add((p.panel + panel) * p.a.panel_bytes);
            let own = weights.add(F::scales_at(group)).cast::<i8>();
            let own = F::NIBBLES.then(|| Avx512::load_i8(own));
            for row in 0..p.rows {
                let at = (panel * STRIP + row) * 16;
                let x_scale = Avx512::splat(*scales.byte_add(row * p.a.ldx));
                let correction = _mm512_set1_epi32(*corrections.byte_add(row * p.a.ldx));
                let exact = _mm512_loadu_si512(integers.add(at).cast());
                let exact = Avx512(_mm512_cvtepi32_ps(_mm512_add_epi32(exact, correction)));
                let products = own.map_or(exact, |own| exact.mul(own));
                let sum = match group {
                    0 => Avx512::splat(0.0),
                    _ => Avx512::load(sums.add(at)),
                };
                products.mul_add(x_scale, sum).store(sums.add(at));
            }
        }
    }
}

/// How far ahead such weights are asked for.
const PREFETCH_BYTES: usize = 1536;
