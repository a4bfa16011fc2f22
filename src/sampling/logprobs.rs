//! Log probabilities under the raw logits.

use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;
use crate::os::{Loops, vectorised};
use crate::request::{Logprob, RowScores, TokenLogprobs};

use super::filters::{collect_top_k, descending};
use super::row::Maxima;

/// The logprobs of a prompt token: `logits` is the row before it, `target` the token itself.
///
/// # Errors
/// `DEVICE` when the logits hold a NaN or +inf, or are -inf throughout; `INVALID_ARGUMENT` when
/// `target` is past the row; `OUT_OF_MEMORY`.
pub fn prompt_logprobs(logits: &[f32], target: TokenId, top_n: usize) -> Result<TokenLogprobs> {
    if target.index() >= logits.len() {
        let message = format!(
            "prompt token {target} is out of vocabulary. Vocabulary size: {}",
            logits.len()
        );
        return Err(Error::invalid("prompt", message)
            .with("limit", logits.len())
            .with("value", target.0));
    }
    let mut maxima = Maxima::default();
    maxima.scan(logits)?;
    if maxima.has_nan() || !maxima.max().is_finite() {
        return Err(not_finite(target));
    }
    Ok(top(logits, &maxima, top_n)?.with_chosen(logits, target))
}

/// What is said of a prompt's token whose logits a healthy model does not produce.
pub fn not_finite(target: TokenId) -> Error {
    let message = format!("the model's logits before prompt token {target} are not finite");
    Error::new(ErrorKind::Device, message)
}

/// The logprobs of `token` by what is known of its row; `None` where the row is not sane.
pub fn scored(scores: &RowScores, token: TokenId) -> Option<TokenLogprobs> {
    if !scores.max.is_finite() {
        return None;
    }
    let log_sum_exp = f64::from(scores.max) + scores.sum.ln();
    let chosen =
        Logprob { token_id: token, logprob: logprob(scores.logit, log_sum_exp), rank: scores.rank };
    let top = ranked(scores.top.iter().copied(), log_sum_exp).collect();
    Some(TokenLogprobs { chosen: Some(chosen), top })
}

/// Ranks of logits that come best first: equals have one rank.
fn ranked(
    best: impl Iterator<Item = (TokenId, f32)>,
    log_sum_exp: f64,
) -> impl Iterator<Item = Logprob> {
    let (mut rank, mut above) = (1, f32::INFINITY);
    (1..).zip(best).map(move |(place, (token_id, logit))| {
        if logit < above {
            (rank, above) = (place, logit);
        }
        Logprob { token_id, logprob: logprob(logit, log_sum_exp), rank }
    })
}

/// The most likely tokens of a row, before one is chosen.
pub(super) struct TopLogprobs {
    log_sum_exp: f64,
    top: Vec<Logprob>,
}

impl TopLogprobs {
    /// Adds the token that was chosen, from the same row.
    pub(super) fn with_chosen(self, logits: &[f32], token: TokenId) -> TokenLogprobs {
        let logit = logits.get(token.index()).copied().unwrap_or(f32::NEG_INFINITY);
        let rank = 1 + count_greater(logits, logit);
        let chosen = Logprob { token_id: token, logprob: logprob(logit, self.log_sum_exp), rank };
        TokenLogprobs { chosen: Some(chosen), top: self.top }
    }
}

/// The `top_n` most likely tokens of a row whose maximum is finite, best first; of equals the
/// lowest id first, and all with the same rank.
pub(super) fn top(logits: &[f32], maxima: &Maxima, top_n: usize) -> Result<TopLogprobs> {
    let max = maxima.max();
    let log_sum_exp = f64::from(max) + sum_exp(logits, max).ln();
    let mut top = Vec::new();
    let wanted = top_n.min(logits.len());
    if wanted == 0 {
        return Ok(TopLogprobs { log_sum_exp, top });
    }
    let mut best = Vec::new();
    collect_top_k(logits, maxima, wanted, &mut best)?;
    best.sort_unstable_by(descending);
    best.truncate(wanted);
    top.try_reserve_exact(wanted)?;
    top.extend(ranked(best.iter().map(|c| (c.id, c.value)), log_sum_exp));
    Ok(TopLogprobs { log_sum_exp, top })
}

fn logprob(logit: f32, log_sum_exp: f64) -> f32 {
    (f64::from(logit) - log_sum_exp) as f32
}

/// How many logits are larger.
fn count_greater(logits: &[f32], logit: f32) -> u32 {
    struct Count<'a>(&'a [f32], f32);

    impl Loops for Count<'_> {
        type Output = u32;

        #[inline(always)]
        fn run(self) -> u32 {
            self.0.iter().map(|&x| u32::from(x > self.1)).sum()
        }
    }

    vectorised(Count(logits, logit))
}

/// Independent sums, so that the loop vectorises with any register width.
const LANES: usize = 16;
/// Values whose sum is kept in f32.
const BLOCK: usize = 512;

/// `sum of exp(x - max)`, in one fixed order: lanes within a block, then blocks.
fn sum_exp(logits: &[f32], max: f32) -> f64 {
    vectorised(SumExp { logits, max })
}

struct SumExp<'a> {
    logits: &'a [f32],
    max: f32,
}

impl Loops for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut total = 0.0f64;
        for block in self.logits.chunks(BLOCK) {
            let mut sums = [0.0f32; LANES];
            let mut lanes = block.chunks_exact(LANES);
            for lane in &mut lanes {
                for l in 0..LANES {
                    sums[l] += fast_exp(lane[l] - self.max);
                }
            }
            for (sum, &x) in sums.iter_mut().zip(lanes.remainder()) {
                *sum += fast_exp(x - self.max);
            }
            total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
        }
        total
    }
}

/// `exp(x)` for `x <= 0` within 2e-7 of the value, relatively; what is below -87 counts as -87
/// (1.6e-38), -inf too. Written without branches, so that loops over it vectorise.
#[inline(always)]
pub(super) fn fast_exp(x: f32) -> f32 {
    /// `1.5 * 2^23`: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2` in two parts, the first with few enough bits for exact products.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's polynomial: |r| <= 0.35, and the next term is below 1e-8.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // The low bits of `rounded` are n; 2^n is n in the exponent's place.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    p * power
}
