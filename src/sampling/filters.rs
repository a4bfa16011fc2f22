//! Temperature, min_p, top_k and top_p: which tokens may be drawn.
//!
//! Each rule keeps the tokens above some value, so each is found as a threshold: candidates that
//! may pass are collected, by chunk maxima, and only they are looked at closely.

use std::cmp::Ordering;

use crate::error::Result;
use crate::ids::TokenId;
use crate::request::ResolvedParams;

use super::Draw;
use super::logprobs::{fast_exp, sum_exp};
use super::row::{CHUNK, Maxima, token};

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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

    /// These filters, for another place that draws.
    pub(super) fn draw(&self, seed: u64) -> Draw {
        let Self { temperature, top_k, top_p, ln_min_p } = *self;
        Draw { seed, temperature, top_k, top_p, ln_min_p, logprobs: None, changes: None }
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
        let floor = self.ln_min_p.max(-f32::MAX);
        retain(out, |c| c.value >= floor);
        if self.top_p < 1.0 {
            let total = total.unwrap_or_else(|| out.iter().map(weight).sum());
            keep_top_p(out, self.top_p, total)?;
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
        retain(out, |c| c.value >= kth);
    }
    Ok(())
}

/// The `k`-th largest value, `1 <= k <= candidates.len()`.
fn kth(candidates: &mut [Candidate], k: usize) -> f32 {
    candidates.select_nth_unstable_by(k - 1, |a, b| b.value.total_cmp(&a.value)).1.value
}

/// Fills `out` with the tokens whose logits pass `keep`, in ascending order. `keep` must be
/// monotone: true for everything above a value for which it is true.
fn collect(
    logits: &[f32],
    maxima: &Maxima,
    keep: impl Fn(f32) -> bool,
    out: &mut Vec<Candidate>,
) -> Result<()> {
    let most = CHUNK * maxima.chunks().iter().filter(|&&m| keep(m)).count();
    out.clear();
    out.try_reserve(most)?;
    out.resize(most, Candidate::default());
    let mut len = 0;
    for (c, (chunk, &largest)) in logits.chunks(CHUNK).zip(maxima.chunks()).enumerate() {
        if !keep(largest) {
            continue;
        }
        for (i, &x) in chunk.iter().enumerate() {
            // -0.0 becomes 0.0: equal values must look equal to `total_cmp`.
            out[len] = Candidate { value: x + 0.0, id: token(c * CHUNK + i) };
            // No branch: nobody could predict it.
            len += usize::from(keep(x));
        }
    }
    out.truncate(len);
    Ok(())
}

/// `Vec::retain` without a branch that nobody could predict.
fn retain(candidates: &mut Vec<Candidate>, keep: impl Fn(&Candidate) -> bool) {
    let mut len = 0;
    for i in 0..candidates.len() {
        let c = candidates[i];
        candidates[len] = c;
        len += usize::from(keep(&c));
    }
    candidates.truncate(len);
}

/// Candidates up to which `keep_top_p` simply sorts.
const SORT_AT_MOST: usize = 256;
/// Buckets of equal width in the scaled logit.
const BUCKETS: usize = 2048;

/// Keeps the most likely candidates until their weights reach `top_p * total`; the one that
/// reaches it is the last. Of equals the lowest ids stay.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32, total: f64) -> Result<()> {
    let target = f64::from(top_p) * total;
    if candidates.len() <= SORT_AT_MOST {
        let kept = sort_and_count(candidates, 0.0, target);
        candidates.truncate(kept);
        return Ok(());
    }
    let lowest = candidates.iter().fold(0.0f32, |m, c| if c.value < m { c.value } else { m });
    // All equal: one bucket.
    let per_unit = if lowest < 0.0 { (BUCKETS - 1) as f32 / -lowest } else { 0.0 };
    // Monotone in the value, so buckets are ranges of it.
    let bucket = |c: &Candidate| ((-c.value * per_unit) as usize).min(BUCKETS - 1);
    let (crossing, above) = crossing_bucket(candidates, bucket, target);
    // Only the bucket in which the weights reach the target is sorted, at the end of the list.
    let len = candidates.len();
    for i in 0..len {
        if bucket(&candidates[i]) == crossing {
            candidates.try_reserve(1)?;
            candidates.push(candidates[i]);
        }
    }
    let crossed = &mut candidates[len..];
    let kept = sort_and_count(crossed, above, target);
    let last = kept.checked_sub(1).map(|last| crossed[last]);
    candidates.truncate(len);
    retain(candidates, |c| match bucket(c).cmp(&crossing) {
        Ordering::Less => true,
        Ordering::Equal => last.is_some_and(|last| descending(c, &last) != Ordering::Greater),
        Ordering::Greater => false,
    });
    Ok(())
}

/// The bucket in which the weights reach `target`, and the weight of all buckets before it.
fn crossing_bucket(
    candidates: &[Candidate],
    bucket: impl Fn(&Candidate) -> usize,
    target: f64,
) -> (usize, f64) {
    let mut masses = [0.0f64; BUCKETS];
    for c in candidates {
        masses[bucket(c)] += weight(c);
    }
    let mut above = 0.0;
    for (crossing, mass) in masses.iter().enumerate() {
        if above + mass >= target {
            return (crossing, above);
        }
        above += mass;
    }
    // Rounding: the weights end just short of the target, and everything stays.
    (BUCKETS, above)
}

/// Sorts, most likely first, and counts the candidates until `above` and their weights reach
/// `target`: at least one if `above` is 0.
fn sort_and_count(candidates: &mut [Candidate], mut above: f64, target: f64) -> usize {
    candidates.sort_unstable_by(descending);
    let mut kept = 0;
    while kept < candidates.len() && (above == 0.0 || above < target) {
        above += weight(&candidates[kept]);
        kept += 1;
    }
    kept
}

/// Unnormalised probability.
fn weight(c: &Candidate) -> f64 {
    f64::from(fast_exp(c.value))
}
