//! A request: what the caller sent.

mod logprob;
mod params;
mod resolved;
mod row;
mod validate;

pub use logprob::{Logprob, TokenLogprobs};
pub use params::{
    DEFAULT_MAX_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_N, MAX_STOP_STRINGS, SamplingDefaults,
    SamplingParams,
};
pub use resolved::ResolvedParams;
pub use row::{LogitChanges, RowScores};
pub use validate::{Limits, validate_prompt};

use std::time::Duration;

use crate::config::SchedulingPolicy;
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Input of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Text; the tokenizer adds the model's special tokens.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<TokenId>),
    /// Chat messages, rendered by the checkpoint's template.
    Chat(ChatInput),
}

/// A chat, as JSON in OpenAI's shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatInput {
    /// Array of messages.
    pub messages: serde_json::Value,
    /// Array of tools, if any.
    pub tools: Option<serde_json::Value>,
    /// Extra variables of the template, an object.
    pub template_kwargs: Option<serde_json::Value>,
    /// Ends the prompt with the opening of an assistant turn. Default true.
    pub add_generation_prompt: bool,
    /// Leaves the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
}

/// A request. `params` holds only what the caller set; the engine fills the rest from the model's
/// generation_config.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What to continue.
    pub input: Input,
    /// How.
    pub params: SamplingParams,
    /// Lower runs earlier under the priority policy; must be 0 under fcfs.
    pub priority: i32,
    /// The request ends with `FinishReason::Deadline` this long after it was submitted.
    pub deadline: Option<Duration>,
    /// Part of the first block's hash: only requests with an equal salt share cached blocks.
    pub cache_salt: Option<String>,
    /// Echoed in every event of this request.
    pub user_data: u64,
    /// Puts the prompt's text and token ids before the first choice's output.
    pub echo: bool,
    /// Gives each choice's output in one delta, before its end, instead of token by token: the host
    /// is not woken for what it would only gather. vLLM's `output_kind`.
    pub final_only: bool,
    /// Adds the model's special tokens (bos) to a text prompt. Default true; a chat template
    /// writes its own, so chat input never gets them twice.
    pub add_special_tokens: bool,
}

impl Request {
    /// A request with every option at its default.
    pub fn new(input: Input) -> Self {
        Self {
            input,
            params: SamplingParams::default(),
            priority: 0,
            deadline: None,
            cache_salt: None,
            user_data: 0,
            echo: false,
            final_only: false,
            add_special_tokens: true,
        }
    }

    /// Whether the request is a chat.
    pub fn is_chat(&self) -> bool {
        matches!(self.input, Input::Chat(_))
    }

    /// Whether the request wants tokens; one of `max_tokens` 0 only scores its prompt.
    pub fn generates(&self) -> bool {
        self.params.max_tokens != Some(0)
    }

    /// Checks what the caller set, as far as that can be done before the input is tokenized.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for the first thing out of range, `CONTEXT_LENGTH` for a token prompt
    /// that is too long.
    pub fn validate(&self, limits: &Limits, policy: SchedulingPolicy) -> Result<()> {
        if self.echo {
            self.params.validate_ranges(limits)?;
        } else {
            self.params.validate(limits)?;
        }
        if self.priority != 0 && policy == SchedulingPolicy::Fcfs {
            let message = format!(
                "priority must be 0 unless the scheduling policy is priority, got {}.",
                self.priority
            );
            let error = Error::invalid("priority", message);
            return Err(error.with("limit", 0).with("value", self.priority));
        }
        if let Some(salt) = &self.cache_salt {
            validate::check_cache_salt(salt)?;
        }
        match &self.input {
            Input::Tokens(prompt) => validate_prompt(prompt, limits, self.generates()),
            Input::Text(_) | Input::Chat(_) => Ok(()),
        }
    }

    /// The parameters with every default filled in, for a prompt of `prompt_len` tokens. Asking
    /// for `echo` and `logprobs` asks for the prompt's logprobs too.
    ///
    /// # Errors
    /// As [`SamplingParams::resolve`].
    pub fn resolve(
        &self,
        defaults: &SamplingDefaults,
        limits: &Limits,
        prompt_len: usize,
    ) -> Result<ResolvedParams> {
        let mut params = self.params.resolve(defaults, limits, self.is_chat(), prompt_len)?;
        if self.echo {
            params.prompt_logprobs = params.prompt_logprobs.or(params.logprobs);
        }
        Ok(params)
    }
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The end-of-text token.
    Eos,
    /// A token of `stop_token_ids`.
    StopToken(TokenId),
    /// A stop string.
    StopString(String),
    /// `max_tokens` or the model's context.
    Length,
    /// The host aborted the request.
    Abort,
    /// The request's deadline passed.
    Deadline,
}

impl FinishReason {
    /// OpenAI's word for it: `stop`, `length`, or vLLM's `abort`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Eos | Self::StopToken(_) | Self::StopString(_) => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Deadline => "deadline",
        }
    }
}
