//! `ResolvedParams`: SamplingParams with every default filled in, as the engine runs them.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ids::TokenId;

use super::params::{DEFAULT_MAX_TOKENS, MAX_LOGIT_BIAS, SamplingDefaults, SamplingParams};
use super::validate::{self, Limits};

/// Temperatures below this are greedy.
const GREEDY_BELOW: f32 = 1e-5;
/// Lowest temperature that is not greedy; lower ones are raised to it.
const MIN_TEMPERATURE: f32 = 0.01;

/// SamplingParams after defaults and validation. Nothing is optional where a default exists, and
/// every value is in range. Cheap to clone: the lists that may be as long as the vocabulary are
/// shared.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedParams {
    /// Choices to generate, at least 1.
    pub n: u32,
    /// Subtracted once from tokens already generated; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence among generated tokens; 0 is off.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of prompt and generated tokens; 1 is off.
    pub repetition_penalty: f32,
    /// 0 is greedy, else at least 0.01.
    pub temperature: f32,
    /// `(0, 1]`; 1 is off.
    pub top_p: f32,
    /// Tokens kept; 0 is off.
    pub top_k: usize,
    /// `[0, 1]`; 0 is off.
    pub min_p: f32,
    /// Seed of choice 0; see [`ResolvedParams::seed_of_choice`].
    pub seed: Option<i64>,
    /// Strings that end a choice, none empty.
    pub stop: Vec<String>,
    /// Token ids that end a choice, ascending, without duplicates.
    pub stop_token_ids: Vec<TokenId>,
    /// Keeps the stop string in the output, and the text of a stopping token.
    pub include_stop_str_in_output: bool,
    /// Goes on past end-of-text tokens.
    pub ignore_eos: bool,
    /// Most tokens to generate, clamped to what the context leaves. 0 only for `echo` requests
    /// that score their prompt.
    pub max_tokens: usize,
    /// End-of-text and stop token ids cannot be chosen before this many tokens.
    pub min_tokens: usize,
    /// Top logprobs of each chosen token; `vocab_size` for -1.
    pub logprobs: Option<usize>,
    /// The same for each prompt token.
    pub prompt_logprobs: Option<usize>,
    /// Turns tokens into text.
    pub detokenize: bool,
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Puts a space between adjacent special tokens that stay in the text.
    pub spaces_between_special_tokens: bool,
    /// Added to logits, by ascending token; each within `[-100, 100]`.
    pub logit_bias: Arc<[(TokenId, f32)]>,
    /// Only these can be chosen; ascending, without duplicates, not empty.
    pub allowed_token_ids: Option<Arc<[TokenId]>>,
    /// Words that the output must not contain, none empty.
    pub bad_words: Vec<String>,
}

impl Default for ResolvedParams {
    /// What a request for text gets that sets nothing.
    fn default() -> Self {
        Self {
            n: 1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            max_tokens: DEFAULT_MAX_TOKENS as usize,
            min_tokens: 0,
            logprobs: None,
            prompt_logprobs: None,
            detokenize: true,
            skip_special_tokens: true,
            spaces_between_special_tokens: true,
            logit_bias: Arc::from([]),
            allowed_token_ids: None,
            bad_words: Vec::new(),
        }
    }
}

impl ResolvedParams {
    /// Whether the most likely token is taken, without noise.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// The seed of choice `choice`: `seed + choice`, wrapping. `None` when the request has no
    /// seed, and the engine draws one.
    pub fn seed_of_choice(&self, choice: u32) -> Option<u64> {
        self.seed.map(|seed| seed.wrapping_add(i64::from(choice)) as u64)
    }
}

impl SamplingParams {
    /// Fills in `defaults` and the documented defaults, and checks all that `validate` could not
    /// know: the defaults themselves, and what depends on the prompt's length.
    ///
    /// `prompt_len` is in tokens and has passed [`validate_prompt`](super::validate_prompt).
    /// `is_chat` chooses the default of `max_tokens`: the rest of the context, or 16.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, as [`SamplingParams::validate`]; also where a default is out of range.
    pub fn resolve(
        &self,
        defaults: &SamplingDefaults,
        limits: &Limits,
        is_chat: bool,
        prompt_len: usize,
    ) -> Result<ResolvedParams> {
        defaults.validate().map_err(|e| e.context("generation_config.json"))?;
        self.validate_ranges(limits)?;
        let mut resolved = ResolvedParams {
            n: self.n.unwrap_or(1),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(1.0),
            temperature: self.temperature.or(defaults.temperature).unwrap_or(1.0),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            top_k: resolve_top_k(self.top_k.or(defaults.top_k), limits.vocab_size),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            seed: self.seed.filter(|&seed| seed != -1),
            stop: self.stop.clone(),
            stop_token_ids: sorted(&self.stop_token_ids)?,
            include_stop_str_in_output: self.include_stop_str_in_output,
            ignore_eos: self.ignore_eos,
            max_tokens: self.resolve_max_tokens(defaults, limits, is_chat, prompt_len),
            min_tokens: self.min_tokens.unwrap_or(0) as usize,
            logprobs: resolve_logprobs(self.logprobs, limits),
            prompt_logprobs: resolve_logprobs(self.prompt_logprobs, limits),
            detokenize: self.detokenize.unwrap_or(true),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            spaces_between_special_tokens: self.spaces_between_special_tokens.unwrap_or(true),
            logit_bias: self.resolve_logit_bias()?,
            allowed_token_ids: match &self.allowed_token_ids {
                Some(ids) => Some(sorted(ids)?.into()),
                None => None,
            },
            bad_words: self.bad_words.clone(),
        };
        resolved.settle_temperature();
        if resolved.is_greedy() {
            validate::check_greedy_n(resolved.n)?;
        }
        validate::check_min_tokens(resolved.min_tokens, resolved.max_tokens)?;
        Ok(resolved)
    }

    /// The request's own value, else the model's, else the documented one; never more than the
    /// context leaves after `prompt_len` tokens.
    fn resolve_max_tokens(
        &self,
        defaults: &SamplingDefaults,
        limits: &Limits,
        is_chat: bool,
        prompt_len: usize,
    ) -> usize {
        let rest = limits.max_model_len.saturating_sub(prompt_len);
        let wanted = match (self.max_tokens, defaults.max_tokens, is_chat) {
            (Some(own), _, _) => own as usize,
            (None, Some(model), true) => model as usize,
            (None, None, true) => rest,
            // A text request has always had OpenAI's 16; the model's limit can only lower it.
            (None, model, false) => model.unwrap_or(u32::MAX).min(DEFAULT_MAX_TOKENS) as usize,
        };
        wanted.min(rest)
    }

    fn resolve_logit_bias(&self) -> Result<Arc<[(TokenId, f32)]>> {
        let mut bias = Vec::new();
        bias.try_reserve_exact(self.logit_bias.len())?;
        let clamp = |b: f32| b.clamp(-MAX_LOGIT_BIAS, MAX_LOGIT_BIAS);
        bias.extend(self.logit_bias.iter().map(|(&token, &b)| (token, clamp(b))));
        Ok(bias.into())
    }
}

impl ResolvedParams {
    /// Greedy switches the filters off; temperatures too low to divide by are raised.
    fn settle_temperature(&mut self) {
        if self.is_greedy() {
            self.temperature = 0.0;
            self.top_p = 1.0;
            self.top_k = 0;
            self.min_p = 0.0;
        } else {
            self.temperature = self.temperature.max(MIN_TEMPERATURE);
        }
    }
}

/// `top_k` as a count: 0 where it is off or keeps everything.
fn resolve_top_k(top_k: Option<i32>, vocab_size: usize) -> usize {
    match usize::try_from(top_k.unwrap_or(0)) {
        Ok(k) if k < vocab_size => k,
        _ => 0,
    }
}

/// -1 asks for the whole vocabulary, and nobody gets more than that.
fn resolve_logprobs(wanted: Option<i32>, limits: &Limits) -> Option<usize> {
    wanted.map(|n| usize::try_from(n).map_or(limits.vocab_size, |n| n.min(limits.vocab_size)))
}

fn sorted(ids: &[TokenId]) -> Result<Vec<TokenId>> {
    let mut sorted = Vec::new();
    sorted.try_reserve_exact(ids.len()).map_err(Error::from)?;
    sorted.extend_from_slice(ids);
    sorted.sort_unstable();
    sorted.dedup();
    Ok(sorted)
}

#[cfg(test)]
#[path = "resolved_tests.rs"]
mod tests;
