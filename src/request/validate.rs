//! Ranges of a request's parameters, with vLLM's messages.

use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;

use super::params::{MAX_BAD_WORDS, MAX_N, MAX_STOP_STRINGS, SamplingDefaults, SamplingParams};

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Most positions of a sequence.
    pub max_model_len: usize,
    /// Most logprobs a request may ask for (-1 asks for `vocab_size`).
    pub max_logprobs: usize,
}

impl SamplingParams {
    /// Checks every parameter that the caller set, as far as that can be done before the prompt's
    /// length is known. Says no to `max_tokens` 0: [`Request::validate`](super::Request::validate)
    /// knows when that is allowed.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for the first parameter out of range, with `field`, `limit` and `value`
    /// in the details.
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        if self.max_tokens == Some(0) {
            return Err(out_of_range("max_tokens", "must be at least 1", 1, 0));
        }
        self.validate_ranges(limits)
    }

    /// All of `validate` except that `max_tokens` may be 0.
    pub(super) fn validate_ranges(&self, limits: &Limits) -> Result<()> {
        self.check_numbers()?;
        self.check_lengths(limits)?;
        self.check_logprobs(limits)?;
        self.check_stops(limits)?;
        self.check_logit_bias(limits)?;
        self.check_allowed_token_ids(limits)?;
        self.check_bad_words()
    }

    fn check_numbers(&self) -> Result<()> {
        let n = self.n.unwrap_or(1);
        if n < 1 {
            return Err(out_of_range("n", "must be at least 1", 1, n));
        }
        if n > MAX_N {
            return Err(out_of_range("n", &format!("must be at most {MAX_N}"), MAX_N, n));
        }
        check_penalty("presence_penalty", self.presence_penalty)?;
        check_penalty("frequency_penalty", self.frequency_penalty)?;
        check_repetition_penalty(self.repetition_penalty)?;
        check_temperature(self.temperature)?;
        check_top_p(self.top_p)?;
        check_top_k(self.top_k)?;
        check_min_p(self.min_p)?;
        // Only what says so itself: the model's default temperature is known at `resolve`.
        if self.temperature.is_some_and(|t| t < 1e-5) {
            check_greedy_n(n)?;
        }
        Ok(())
    }

    fn check_lengths(&self, limits: &Limits) -> Result<()> {
        let Some(max_tokens) = self.max_tokens else { return Ok(()) };
        let max_model_len = limits.max_model_len;
        if max_tokens as usize > max_model_len {
            return Err(Error::invalid(
                "max_tokens",
                format!(
                    "max_tokens={max_tokens} cannot be greater than \
                     max_model_len={max_model_len}. Please request fewer output tokens."
                ),
            )
            .with("limit", max_model_len)
            .with("value", max_tokens));
        }
        check_min_tokens(self.min_tokens.unwrap_or(0) as usize, max_tokens as usize)
    }

    fn check_logprobs(&self, limits: &Limits) -> Result<()> {
        let both = [
            ("logprobs", "sample", self.logprobs),
            ("prompt_logprobs", "prompt", self.prompt_logprobs),
        ];
        for (field, what, wanted) in both {
            let Some(wanted) = wanted else { continue };
            if wanted < -1 {
                return Err(out_of_range(field, "must be non-negative or -1", -1, wanted));
            }
            let count = usize::try_from(wanted).unwrap_or(limits.vocab_size);
            if count > limits.max_logprobs {
                let max = limits.max_logprobs;
                return Err(Error::invalid(
                    field,
                    format!(
                        "Requested {what} logprobs of {count}, which is greater than max \
                         allowed: {max}"
                    ),
                )
                .with("limit", max)
                .with("value", wanted));
            }
        }
        Ok(())
    }

    fn check_stops(&self, limits: &Limits) -> Result<()> {
        let count = self.stop.len();
        if count > MAX_STOP_STRINGS {
            let rule = format!("must have at most {MAX_STOP_STRINGS} strings");
            return Err(out_of_range("stop", &rule, MAX_STOP_STRINGS, count));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::invalid("stop", "stop cannot contain an empty string."));
        }
        if count > 0 && self.detokenize == Some(false) {
            return Err(Error::invalid(
                "stop",
                "stop strings are only supported when detokenize is True. \
                 Set detokenize=True to use stop.",
            ));
        }
        check_vocab("stop_token_ids", self.stop_token_ids.iter(), limits)
    }

    fn check_logit_bias(&self, limits: &Limits) -> Result<()> {
        for (token, &bias) in &self.logit_bias {
            if !bias.is_finite() {
                let message =
                    format!("logit_bias of token {token} must be a finite number, got {bias:?}.");
                return Err(Error::invalid("logit_bias", message).with("value", json(bias)));
            }
        }
        check_vocab("logit_bias", self.logit_bias.keys(), limits)
    }

    fn check_allowed_token_ids(&self, limits: &Limits) -> Result<()> {
        let Some(ids) = &self.allowed_token_ids else { return Ok(()) };
        if ids.is_empty() {
            let message = "allowed_token_ids is not None and empty!";
            return Err(Error::invalid("allowed_token_ids", message));
        }
        check_vocab("allowed_token_ids", ids.iter(), limits)
    }

    fn check_bad_words(&self) -> Result<()> {
        let count = self.bad_words.len();
        if count > MAX_BAD_WORDS {
            let rule = format!("must have at most {MAX_BAD_WORDS} words");
            return Err(out_of_range("bad_words", &rule, MAX_BAD_WORDS, count));
        }
        if self.bad_words.iter().any(String::is_empty) {
            let message = "bad_words cannot contain an empty string.";
            return Err(Error::invalid("bad_words", message));
        }
        Ok(())
    }
}

impl SamplingDefaults {
    /// Checks the ranges, as for a request's own values.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for the first value out of range.
    pub fn validate(&self) -> Result<()> {
        check_repetition_penalty(self.repetition_penalty)?;
        check_temperature(self.temperature)?;
        check_top_p(self.top_p)?;
        check_top_k(self.top_k)?;
        check_min_p(self.min_p)?;
        match self.max_tokens {
            Some(0) => Err(out_of_range("max_tokens", "must be at least 1", 1, 0)),
            _ => Ok(()),
        }
    }
}

/// Checks a tokenized prompt: not empty, ids in the vocabulary, and short enough. `generates` is
/// false for requests of 0 tokens, whose prompt may fill the context; otherwise one position must
/// be left for the first token.
///
/// # Errors
/// `INVALID_ARGUMENT` for an empty prompt or an id outside of the vocabulary (with its `index`),
/// `CONTEXT_LENGTH` for a long prompt.
pub fn validate_prompt(prompt: &[TokenId], limits: &Limits, generates: bool) -> Result<()> {
    let (len, max) = (prompt.len(), limits.max_model_len);
    if len == 0 {
        return Err(Error::invalid("prompt", "The prompt cannot be empty.")
            .with("limit", 1)
            .with("value", 0));
    }
    // The length first: it costs nothing, and a hostile prompt may be very long.
    let longest = if generates { max.saturating_sub(1) } else { max };
    if len > longest {
        let why = if len > max {
            "exceeds this limit even without any output tokens"
        } else {
            "leaves no room for output tokens"
        };
        let message = format!(
            "This model's maximum context length is {max} tokens. However, your prompt contains \
             {len} input tokens, which {why}. Please reduce the length of the input prompt."
        );
        return Err(Error::new(ErrorKind::ContextLength, message)
            .with("field", "prompt")
            .with("limit", longest)
            .with("value", len));
    }
    let outside = prompt.iter().enumerate().find(|(_, id)| id.index() >= limits.vocab_size);
    if let Some((index, id)) = outside {
        let vocab_size = limits.vocab_size;
        let message = format!(
            "Token id {id} at index {index} of the prompt is out of vocabulary. \
             Vocabulary size: {vocab_size}"
        );
        return Err(Error::invalid("prompt", message)
            .with("index", index)
            .with("limit", vocab_size)
            .with("value", id.0));
    }
    Ok(())
}

/// Most characters of a cache salt.
const MAX_CACHE_SALT_CHARS: usize = 128;

/// Not empty, at most 128 characters, none of which could split a key in two.
pub(super) fn check_cache_salt(salt: &str) -> Result<()> {
    let count = salt.chars().count();
    if count == 0 || count > MAX_CACHE_SALT_CHARS {
        let rule = format!("must have 1 to {MAX_CACHE_SALT_CHARS} characters");
        return Err(out_of_range("cache_salt", &rule, MAX_CACHE_SALT_CHARS, count));
    }
    match salt.chars().find(|c| matches!(c, '@' | '/' | '\\' | '\0')) {
        Some(c) => Err(Error::invalid("cache_salt", format!("cache_salt cannot contain {c:?}."))
            .with("value", c.to_string())),
        None => Ok(()),
    }
}

/// Greedy choices would all be the same one.
pub(super) fn check_greedy_n(n: u32) -> Result<()> {
    if n > 1 {
        return Err(out_of_range("n", "must be 1 when using greedy sampling", 1, n));
    }
    Ok(())
}

pub(super) fn check_min_tokens(min_tokens: usize, max_tokens: usize) -> Result<()> {
    if min_tokens > max_tokens {
        let rule = format!("must be less than or equal to max_tokens={max_tokens}");
        return Err(out_of_range("min_tokens", &rule, max_tokens, min_tokens));
    }
    Ok(())
}

fn check_penalty(field: &str, value: Option<f32>) -> Result<()> {
    check_float(field, value, |p| (-2.0..=2.0).contains(&p), "must be in [-2, 2]", "[-2, 2]")
}

fn check_repetition_penalty(value: Option<f32>) -> Result<()> {
    check_float("repetition_penalty", value, |r| r > 0.0, "must be greater than zero", "> 0")
}

fn check_temperature(value: Option<f32>) -> Result<()> {
    check_float("temperature", value, |t| t >= 0.0, "must be non-negative", "[0, 2]")?;
    check_float("temperature", value, |t| t <= 2.0, "must be in [0, 2]", "[0, 2]")
}

fn check_top_p(value: Option<f32>) -> Result<()> {
    check_float("top_p", value, |p| p > 0.0 && p <= 1.0, "must be in (0, 1]", "(0, 1]")
}

fn check_min_p(value: Option<f32>) -> Result<()> {
    check_float("min_p", value, |p| (0.0..=1.0).contains(&p), "must be in [0, 1]", "[0, 1]")
}

fn check_top_k(value: Option<i32>) -> Result<()> {
    match value {
        Some(k) if k < -1 => Err(out_of_range("top_k", "must be 0 (disable), or at least 1", 1, k)),
        _ => Ok(()),
    }
}

/// A finite `value` that is `in_range`, or nothing.
fn check_float(
    field: &str,
    value: Option<f32>,
    in_range: impl Fn(f32) -> bool,
    rule: &str,
    limit: &str,
) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let rule = if !value.is_finite() {
        "must be a finite number"
    } else if !in_range(value) {
        rule
    } else {
        return Ok(());
    };
    let message = format!("{field} {rule}, got {value:?}.");
    Err(Error::invalid(field, message).with("limit", limit).with("value", json(value)))
}

/// Names at most this many of the ids that are out of the vocabulary.
const NAMED_IDS: usize = 8;

fn check_vocab<'a>(
    field: &str,
    ids: impl Iterator<Item = &'a TokenId>,
    limits: &Limits,
) -> Result<()> {
    let vocab_size = limits.vocab_size;
    let outside: Vec<u32> =
        ids.map(|id| id.0).filter(|&id| id as usize >= vocab_size).take(NAMED_IDS).collect();
    if outside.is_empty() {
        return Ok(());
    }
    let message = format!(
        "token_id(s) {outside:?} in {field} contain out-of-vocab token ids. \
         Vocabulary size: {vocab_size}"
    );
    Err(Error::invalid(field, message).with("limit", vocab_size).with("value", outside))
}

/// `"{field} {rule}, got {value}."`
fn out_of_range(
    field: &str,
    rule: &str,
    limit: impl Into<serde_json::Value>,
    value: impl Into<serde_json::Value>,
) -> Error {
    let value = value.into();
    Error::invalid(field, format!("{field} {rule}, got {value}."))
        .with("limit", limit)
        .with("value", value)
}

/// A float for the details, with the digits that the message shows: 0.1 and not 0.10000000149.
/// JSON has no NaN and no infinities; those are words.
fn json(value: f32) -> serde_json::Value {
    match value.to_string().parse::<f64>() {
        Ok(decimal) if decimal.is_finite() => decimal.into(),
        _ => value.to_string().into(),
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
