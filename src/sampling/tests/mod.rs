//! Tests of the sampling room, against plain and slow references in f64.

mod filters;
mod logprobs;
mod noise;
mod row;
mod rules;

use super::*;

/// `f32::NEG_INFINITY`, which tests write a lot.
const MASKED: f32 = f32::NEG_INFINITY;

/// Ids from numbers.
fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().map(|&id| TokenId(id)).collect()
}

/// Default parameters without noise.
fn greedy() -> ResolvedParams {
    ResolvedParams { temperature: 0.0, ..ResolvedParams::default() }
}

/// A sampler without prompt, stop tokens or bad words.
fn sampler(params: &ResolvedParams, seed: u64) -> SequenceSampler {
    SequenceSampler::new(params, &[], &[], Vec::new(), seed)
}

/// `len` pseudo-random values, about normal with deviation `sigma`.
fn random_row(len: usize, sigma: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    // Twelve uniforms have variance 1.
    (0..len).map(|_| sigma * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect()
}
