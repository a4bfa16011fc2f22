//! Gumbel-max sampling with counter-based noise.
//!
//! Adding independent Gumbel noise to the logits and taking the largest draws from their softmax,
//! without normalising or sorting anything. The noise is a hash of (seed, position, token), so it
//! does not matter which tokens are looked at, in which order, or in whose company.

use crate::ids::TokenId;

use super::filters::Candidate;
use super::logprobs::fast_exp;
use super::row::{CHUNK, Maxima, token};

/// Weyl increment of the counter, 2^64 / golden ratio, odd.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bits of the uniform variable: `(2 * bits + 1) * 2^-53` is exact, and never 0 or 1.
const BITS: u32 = 52;
/// Makes up for the rounding of the bound below, so that no token is skipped which would win.
const SLACK: f32 = 1.0 + 1e-4;

/// The noise of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise {
    key: u64,
}

impl Noise {
    /// The noise for the token at `position` of a sequence with `seed`.
    pub(super) fn new(seed: u64, position: usize) -> Self {
        let row = mix(seed.wrapping_add(STEP)) ^ (position as u64).wrapping_mul(STEP);
        Self { key: mix(row) }
    }

    /// The candidate with the largest noisy logit; of equals the lowest id. `candidates` are
    /// scaled by the temperature, in any order; token 0 if there are none.
    ///
    /// A token with scaled logit `z` beats the score `b` only if its uniform variable is below
    /// `exp(z - b)`: for most tokens a hash and a comparison tell that they lose. One bound, that
    /// of the largest, serves many candidates.
    pub(super) fn choose(self, candidates: &[Candidate]) -> TokenId {
        let largest = |block: &[Candidate]| {
            block.iter().fold(f32::NEG_INFINITY, |m, c| if c.value > m { c.value } else { m })
        };
        // The most likely one tends to win: with its score known, most bounds are low.
        let top = largest(candidates);
        let Some(first) = candidates.iter().find(|c| c.value == top) else { return TokenId(0) };
        let mut best = (score(first.value, self.bits(first.id)), first.id);
        for block in candidates.chunks(CHUNK) {
            let bound = winning_bits(largest(block), best.0);
            if bound == 0 {
                continue;
            }
            let mut bits = [u64::MAX; CHUNK];
            for (bits, c) in bits.iter_mut().zip(block) {
                *bits = self.bits(c.id);
            }
            if bits.iter().fold(true, |none, b| none & (*b >= bound)) {
                continue;
            }
            for (c, &bits) in block.iter().zip(&bits) {
                if bits < bound {
                    best = better(best, (score(c.value, bits), c.id));
                }
            }
        }
        best.1
    }

    /// As `choose`, over every token of the row. `scale` subtracts the row's maximum and divides
    /// by the temperature. One bound serves a whole chunk, so that no token needs an `exp`.
    pub(super) fn choose_from_row(
        self,
        logits: &[f32],
        maxima: &Maxima,
        scale: impl Fn(f32) -> f32,
    ) -> TokenId {
        let first = maxima.argmax(logits);
        let mut best = (score(0.0, self.bits(first)), first);
        for (c, (chunk, &largest)) in logits.chunks(CHUNK).zip(maxima.chunks()).enumerate() {
            let bound = winning_bits(scale(largest), best.0);
            if bound == 0 {
                continue;
            }
            for (i, &x) in chunk.iter().enumerate() {
                let id = token(c * CHUNK + i);
                let bits = self.bits(id);
                if bits < bound {
                    best = better(best, (score(scale(x), bits), id));
                }
            }
        }
        best.1
    }

    /// The uniform variable of `id`, as an integer below `2^52`.
    #[inline(always)]
    pub(super) fn bits(self, id: TokenId) -> u64 {
        mix(self.key.wrapping_add(u64::from(id.0).wrapping_mul(STEP))) >> (64 - BITS)
    }
}

/// The larger score; of equals the lower id.
fn better(a: (f64, TokenId), b: (f64, TokenId)) -> (f64, TokenId) {
    if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a }
}

/// `z` plus Gumbel noise: `z - ln(-ln(1 - v))`, where `v` is uniform in (0, 1). Small `v` wins, and
/// small numbers are where floats are fine-grained, so the tail of the distribution is not lost.
pub(super) fn score(z: f32, bits: u64) -> f64 {
    let v = (2 * bits + 1) as f64 * (0.5f64).powi(BITS as i32 + 1);
    f64::from(z) - (-(-v).ln_1p()).ln()
}

/// Only below this many can the uniform variable of a token with scaled logit `z` be, as an
/// integer, if its score is to reach `best`.
#[inline(always)]
fn winning_bits(z: f32, best: f64) -> u64 {
    // The difference in f64, lest the scores' magnitude eat the digits that SLACK makes up for.
    let lead = (f64::from(z) - best).min(0.0) as f32;
    let v = f64::from(fast_exp(lead) * SLACK);
    let all = 2.0f64.powi(BITS as i32);
    (v * all + 0.5).min(all) as u64
}

/// A bijection of 64-bit words in which every input bit changes about half of the output's
/// (the finalizer of SplitMix64).
#[inline(always)]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
