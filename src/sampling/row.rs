//! One pass over a row: is it sane, and the largest logit of each chunk.

use crate::error::Result;
use crate::ids::TokenId;
use crate::os::{Loops, vectorised};

/// Tokens of a chunk.
pub(super) const CHUNK: usize = 64;
/// Independent accumulators, so that the loops vectorise with any register width.
const LANES: usize = 16;

/// The largest logit of each chunk of a row, and of the row.
#[derive(Debug, Default)]
pub(super) struct Maxima {
    /// By chunk; the last one may be short.
    chunks: Vec<f32>,
    max: f32,
    has_nan: bool,
}

impl Maxima {
    /// Looks at `logits` anew.
    pub(super) fn scan(&mut self, logits: &[f32]) -> Result<()> {
        self.chunks.clear();
        self.chunks.try_reserve(logits.len().div_ceil(CHUNK))?;
        let chunks = &mut self.chunks;
        (self.max, self.has_nan) = vectorised(Scan { logits, chunks });
        Ok(())
    }

    /// The largest logit; -inf for an empty row.
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    /// Whether any logit is NaN.
    pub(super) fn has_nan(&self) -> bool {
        self.has_nan
    }

    /// The largest logit of each chunk.
    pub(super) fn chunks(&self) -> &[f32] {
        &self.chunks
    }

    /// The first token with the largest logit; token 0 for an empty row.
    pub(super) fn argmax(&self, logits: &[f32]) -> TokenId {
        let start = self.chunks.iter().position(|&m| m == self.max).unwrap_or(0) * CHUNK;
        let within = logits[start.min(logits.len())..].iter().position(|&x| x == self.max);
        token(start + within.unwrap_or(0))
    }
}

/// `Maxima::scan`: the row's maximum, and whether it has a NaN.
struct Scan<'a> {
    logits: &'a [f32],
    /// Has room for all.
    chunks: &'a mut Vec<f32>,
}

impl Loops for Scan<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn run(self) -> (f32, bool) {
        let Self { logits, chunks: maxima } = self;
        // Without its sign a NaN is the greatest of floats as integers.
        let mut magnitudes = [0i32; LANES];
        let mut max = f32::NEG_INFINITY;
        let mut has_nan = false;
        let mut chunks = logits.chunks_exact(CHUNK);
        for chunk in &mut chunks {
            let largest = scan_chunk(chunk, &mut magnitudes);
            max = larger(largest, max);
            maxima.push(largest);
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let largest = rest.iter().fold(f32::NEG_INFINITY, |m, &x| larger(x, m));
            has_nan = rest.iter().any(|x| x.is_nan());
            max = larger(largest, max);
            maxima.push(largest);
        }
        (max, has_nan || magnitudes.iter().any(|m| *m > f32::INFINITY.to_bits() as i32))
    }
}

/// Index to id; a vocabulary never has more than u32 can count.
pub(super) fn token(index: usize) -> TokenId {
    TokenId(u32::try_from(index).unwrap_or(u32::MAX))
}

/// The larger of two, `b` when `a` is NaN: one instruction, unlike `f32::max`.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn scan_chunk(chunk: &[f32], magnitudes: &mut [i32; LANES]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    for lanes in chunk.chunks_exact(LANES) {
        for l in 0..LANES {
            max[l] = larger(lanes[l], max[l]);
            magnitudes[l] = magnitudes[l].max((lanes[l].to_bits() & 0x7fff_ffff) as i32);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            max[l] = larger(max[l + width], max[l]);
        }
        width /= 2;
    }
    max[0]
}
