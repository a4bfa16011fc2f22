//! SamplingParams: how to choose tokens, and when to stop.

use std::collections::BTreeMap;

use crate::ids::TokenId;

/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 4;
/// Most choices of a request.
pub const MAX_N: u32 = 16_384;
/// Most bad words of a request, and most token sequences that they may turn into.
pub const MAX_BAD_WORDS: usize = 128;
/// Tokens that a text request generates when neither it nor the model says how many.
pub const DEFAULT_MAX_TOKENS: u32 = 16;
/// Bound on the magnitude of a logit bias; larger ones are clamped.
pub const MAX_LOGIT_BIAS: f32 = 100.0;

/// How to choose tokens, and when to stop. `None` means "not set": the model's generation_config
/// decides where it can, and the documented default otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingParams {
    /// Choices to generate, `1..=16384`; choice `i` uses `seed + i`. Default 1.
    pub n: Option<u32>,
    /// `[-2, 2]`, subtracted once from tokens already generated. Default 0.
    pub presence_penalty: Option<f32>,
    /// `[-2, 2]`, subtracted per occurrence among generated tokens. Default 0.
    pub frequency_penalty: Option<f32>,
    /// `> 0`, divides positive and multiplies negative logits of prompt and generated tokens.
    /// Default 1.
    pub repetition_penalty: Option<f32>,
    /// `[0, 2]`; below 1e-5 greedy. Default 1.
    pub temperature: Option<f32>,
    /// `(0, 1]`. Default 1.
    pub top_p: Option<f32>,
    /// 0 or -1 for off, else at least 1. Default off.
    pub top_k: Option<i32>,
    /// `[0, 1]`. Default 0.
    pub min_p: Option<f32>,
    /// Seed of the noise; -1 is the same as unset. Default: drawn from the engine's seed.
    pub seed: Option<i64>,
    /// Up to 4 non-empty strings that end a choice. Needs `detokenize`.
    pub stop: Vec<String>,
    /// Token ids that end a choice.
    pub stop_token_ids: Vec<TokenId>,
    /// Keeps the stop string in the output, and the text of a stopping token. Default false.
    pub include_stop_str_in_output: bool,
    /// Goes on past end-of-text tokens. Default false.
    pub ignore_eos: bool,
    /// Most tokens to generate, at least 1 (0 is allowed with `echo`). Default 16 for text and
    /// token prompts, the rest of the context for chats.
    pub max_tokens: Option<u32>,
    /// End-of-text and stop token ids cannot be chosen before this many tokens. Default 0.
    pub min_tokens: Option<u32>,
    /// Logprobs of the chosen token and of this many most likely ones; -1 is the whole vocabulary.
    pub logprobs: Option<i32>,
    /// The same for each prompt token.
    pub prompt_logprobs: Option<i32>,
    /// Turns tokens into text. Default true.
    pub detokenize: Option<bool>,
    /// Leaves special tokens out of the text. Default true.
    pub skip_special_tokens: Option<bool>,
    /// Puts a space between adjacent special tokens that stay in the text. Default true.
    pub spaces_between_special_tokens: Option<bool>,
    /// Added to logits, by token; clamped to `[-100, 100]`.
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// Only these tokens can be chosen. Must not be empty when set.
    pub allowed_token_ids: Option<Vec<TokenId>>,
    /// Words that the output must not contain.
    pub bad_words: Vec<String>,
}

/// Defaults from a model's generation_config.json, used where a request sets nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// `temperature`.
    pub temperature: Option<f32>,
    /// `top_p`.
    pub top_p: Option<f32>,
    /// `top_k`.
    pub top_k: Option<i32>,
    /// `min_p`.
    pub min_p: Option<f32>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f32>,
    /// `max_new_tokens`.
    pub max_tokens: Option<u32>,
}
