//! Temperature, min_p, top_k and top_p: which tokens may be drawn.
//!
//! Each rule keeps the tokens above some value, so each is found as a threshold: candidates that
//! may pass are collected, by chunk maxima, and only they are looked at closely.

use std::cmp::Ordering;

use crate::error::Result;
use crate::ids::TokenId;
use crate::request::ResolvedParams;

use super::logprobs::{fast_exp, sum_exp};
use super::row::Maxima;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Its logit; after `survivors` less the row's maximum and divided by the temperature.
    pub(super) value: f32,
    /// The token.
    pub(super) id: TokenId,
}

/// The filters of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters {
    /// 0 is greedy.
    temperature: f32,
    /// 0 is off.
    top_k: usize,
    /// 1 is off.
    top_p: f32,
    /// `ln(min_p)`; -inf is off.
    ln_min_p: f32,
}

impl Filters {
    pub(super) fn new(params: &ResolvedParams) -> Self {
        let temperature = if params.is_greedy() { 0.0 } else { params.temperature };
        Self { temperature, top_k: params.top_k, top_p: params.top_p, ln_min_p: params.min_p.ln() }
    }

    pub(super) fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether every token may be drawn.
    pub(super) fn keep_all(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.ln_min_p == f32::NEG_INFINITY
    }

    /// `logit` less the row's maximum, divided by the temperature: at most 0, and never NaN.
    #[inline(always)]
    pub(super) fn scale(&self, logit: f32, max: f32) -> f32 {
        (logit - max) / self.temperature
    }

    /// Fills `out` with the tokens that survive, with scaled values and in any order; at least the
    /// most likely one. The row's maximum must be finite.
    pub(super) fn survivors(
        &self,
        logits: &[f32],
        maxima: &Maxima,
        out: &mut Vec<Candidate>,
    ) -> Result<()> {
        let max = maxima.max();
        let mut total = None;
        if self.top_k > 0 {
            collect_top_k(logits, maxima, self.top_k, out)?;
        } else if self.ln_min_p > f32::NEG_INFINITY {
            let keep = |x| self.scale(x, max) >= self.ln_min_p;
            collect(logits, maxima, keep, out)?;
        } else {
            // Tokens below `floor` have less than 1 - top_p of the mass, all together.
            let mass = sum_exp(logits, max, self.temperature.recip());
            let tail = f64::from(1.0 - self.top_p) * mass / logits.len() as f64;
            let floor = tail.ln() as f32 - 1e-3;
            collect(logits, maxima, |x| self.scale(x, max) >= floor, out)?;
            total = Some(mass);
        }
        for c in out.iter_mut() {
            c.value = self.scale(c.value, max);
        }
        out.retain(|c| c.value >= self.ln_min_p && c.value > f32::NEG_INFINITY);
        if self.top_p < 1.0 {
            let total = total.unwrap_or_else(|| out.iter().map(weight).sum());
            keep_top_p(out, self.top_p, total);
        }
        Ok(())
    }
}

/// Most likely first; of equals the lowest id.
pub(super) fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.value.total_cmp(&a.value).then(a.id.cmp(&b.id))
}

/// Fills `out` with the `k` largest logits and all that equal the last of them.
pub(super) fn collect_top_k(
    logits: &[f32],
    maxima: &Maxima,
    k: usize,
    out: &mut Vec<Candidate>,
) -> Result<()> {
    // k chunks hold k logits at least as large as the k-th largest chunk maximum.
    let floor = match k <= maxima.chunks().len() {
        true => {
            out.clear();
            out.try_reserve(maxima.chunks().len())?;
            let id = TokenId(0);
            out.extend(maxima.chunks().iter().map(|&value| Candidate { value, id }));
            kth(out, k)
        }
        false => f32::NEG_INFINITY,
    };
    collect(logits, maxima, |x| x >= floor, out)?;
    if k < out.len() {
        let kth = kth(out, k);
        out.retain(|c| c.value >= kth);
    }
    Ok(())
}

/// The `k`-th largest value, `1 <= k <= candidates.len()`.
fn kth(candidates: &mut [Candidate], k: usize) -> f32 {
    candidates.select_nth_unstable_by(k - 1, |a, b| b.value.total_cmp(&a.value)).1.value
}

/// Fills `out` with the tokens whose logits pass `keep`, which is monotone.
fn collect(
    logits: &[f32],
    maxima: &Maxima,
    keep: impl Fn(f32) -> bool,
    out: &mut Vec<Candidate>,
) -> Result<()> {
    let chunks = maxima.chunks().iter().filter(|&&m| keep(m)).count();
    out.clear();
    out.try_reserve(chunks * super::row::CHUNK)?;
    maxima.for_each_kept(logits, keep, |id, value| {
        // -0.0 becomes 0.0: equal values must look equal to `total_cmp`.
        out.push(Candidate { value: value + 0.0, id });
    });
    Ok(())
}

/// Candidates beyond which `keep_top_p` looks at buckets before it sorts.
const SORT_AT_MOST: usize = 512;
/// Buckets of equal width in the scaled logit.
const BUCKETS: usize = 512;

/// Keeps the most likely candidates until their weights reach `top_p * total`; the one that
/// reaches it is the last. Of equals the lowest ids stay.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32, total: f64) {
    let target = f64::from(top_p) * total;
    let (sure, mut mass) = match candidates.len() > SORT_AT_MOST {
        true => drop_unlikely(candidates, target),
        false => (0, 0.0),
    };
    let open = &mut candidates[sure..];
    open.sort_unstable_by(descending);
    let mut kept = 0;
    while kept < open.len() && (sure + kept == 0 || mass < target) {
        mass += weight(&open[kept]);
        kept += 1;
    }
    candidates.truncate(sure + kept);
}

/// Finds the bucket in which the weights reach `target`, drops all below it and puts all above it
/// first. Returns how many those are, and their weight.
fn drop_unlikely(candidates: &mut Vec<Candidate>, target: f64) -> (usize, f64) {
    let lowest = candidates.iter().fold(0.0f32, |m, c| if c.value < m { c.value } else { m });
    // All equal: one bucket, nothing to drop.
    let per_unit = if lowest < 0.0 { (BUCKETS - 1) as f32 / -lowest } else { 0.0 };
    // Monotone in the value, so buckets are ranges of it.
    let bucket = |c: &Candidate| ((-c.value * per_unit) as usize).min(BUCKETS - 1);
    let mut masses = [0.0f64; BUCKETS];
    for c in candidates.iter() {
        masses[bucket(c)] += weight(c);
    }
    let mut mass = 0.0;
    let mut crossing = 0;
    while crossing + 1 < BUCKETS && mass + masses[crossing] < target {
        mass += masses[crossing];
        crossing += 1;
    }
    candidates.retain(|c| bucket(c) <= crossing);
    let mut sure = 0;
    for i in 0..candidates.len() {
        if bucket(&candidates[i]) < crossing {
            candidates.swap(i, sure);
            sure += 1;
        }
    }
    (sure, mass)
}

/// Unnormalised probability.
fn weight(c: &Candidate) -> f64 {
    f64::from(fast_exp(c.value))
}
