//! Temperature, min_p, top_k and top_p: which tokens may be drawn.
//!
//! Each rule keeps the tokens above some value, so each is found as a threshold: candidates that
//! may pass are collected, by chunk maxima, and only they are looked at closely. Top-p alone, which
//! may keep most of a vocabulary, has its threshold found in the row itself (`top_p`).

use std::cmp::Ordering;

use crate::error::Result;
use crate::ids::TokenId;
use crate::os::{Loops, vectorised};
use crate::request::ResolvedParams;

use super::Draw;
use super::row::{CHUNK, Maxima, token};
use super::top_p::{Room, collect_kept, keep_top_p, last_kept};

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
    /// most likely one. The row's maximum must be finite. `room` is for numbers on the way.
    pub(super) fn survivors(
        &self,
        logits: &[f32],
        maxima: &Maxima,
        room: &mut Room,
        out: &mut Vec<Candidate>,
    ) -> Result<()> {
        let max = maxima.max();
        let scale = |x| self.scale(x, max);
        if self.top_k == 0 && self.ln_min_p == f32::NEG_INFINITY {
            let temperature = self.temperature;
            vectorised(Scale { logits, max, temperature, out: &mut room.scaled })?;
            let last = if self.top_p < 1.0 { last_kept(room, self.top_p)? } else { None };
            return collect_kept(&room.scaled, last, out);
        }
        if self.top_k > 0 {
            collect_top_k(logits, maxima, self.top_k, out)?;
        } else {
            let floor = lowest(max, |x| scale(x) >= self.ln_min_p);
            collect(logits, maxima, floor, out)?;
        }
        let floor = self.ln_min_p.max(-f32::MAX);
        out.iter_mut().for_each(|c| c.value = scale(c.value));
        retain(out, |c| c.value >= floor);
        if self.top_p < 1.0 {
            keep_top_p(out, self.top_p, room)?;
        }
        Ok(())
    }
}

/// The least value that passes `keep`, which is monotone and true for `max`.
fn lowest(max: f32, keep: impl Fn(f32) -> bool) -> f32 {
    // Floats in ascending order as integers, and back.
    let key = |x: f32| {
        let bits = x.to_bits() as i32;
        bits ^ (((bits >> 31) as u32) >> 1) as i32
    };
    let value = |key: i32| f32::from_bits((key ^ (((key >> 31) as u32) >> 1) as i32) as u32);
    // Nothing that passes is -inf: its scaled value is -inf, and no filter is that low.
    let (mut fails, mut passes) = (i64::from(key(f32::NEG_INFINITY)), i64::from(key(max)));
    while passes - fails > 1 {
        let middle = (fails + passes) / 2;
        match keep(value(middle as i32)) {
            true => passes = middle,
            false => fails = middle,
        }
    }
    value(passes as i32)
}

/// Most likely first; of equals the lowest id.
pub(super) fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.value.total_cmp(&a.value).then(a.id.cmp(&b.id))
}

/// Fills `out` with the `k` largest logits and all that equal the last of them, in any order.
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
    collect(logits, maxima, floor, out)?;
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

/// Fills `out` with the tokens whose logits are `floor` or more, in ascending order.
fn collect(logits: &[f32], maxima: &Maxima, floor: f32, out: &mut Vec<Candidate>) -> Result<()> {
    out.clear();
    let most = maxima.chunks().iter().filter(|&&m| m >= floor).count() * CHUNK;
    out.try_reserve(most)?;
    for (c, (chunk, &largest)) in logits.chunks(CHUNK).zip(maxima.chunks()).enumerate() {
        if largest >= floor {
            push_where(chunk, c * CHUNK, out, |_, x| x >= floor);
        }
    }
    Ok(())
}

/// Appends the tokens of a chunk that `keep` says yes to; `out` has room for all of it.
#[inline(always)]
pub(super) fn push_where(
    chunk: &[f32],
    first: usize,
    out: &mut Vec<Candidate>,
    keep: impl Fn(usize, f32) -> bool,
) {
    let mut kept = [Candidate::default(); CHUNK];
    let mut len = 0;
    for (i, &x) in chunk.iter().enumerate() {
        // -0.0 becomes 0.0: equal values must look equal to `total_cmp`.
        kept[len % CHUNK] = Candidate { value: x + 0.0, id: token(first + i) };
        // No branch: nobody could predict it.
        len += usize::from(keep(first + i, x));
    }
    out.extend_from_slice(&kept[..len]);
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

/// `Filters::scale` of a whole row.
struct Scale<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f32,
    out: &'a mut Vec<f32>,
}

impl Loops for Scale<'_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self) -> Result<()> {
        self.out.clear();
        self.out.try_reserve(self.logits.len())?;
        self.out.extend(self.logits.iter().map(|x| (x - self.max) / self.temperature));
        Ok(())
    }
}
