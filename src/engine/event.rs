//! Events: what the host learns about its requests.

use crate::error::Error;
use crate::ids::{RequestId, TokenId};
use crate::request::{FinishReason, TokenLogprobs};

/// One event. Events of one (request, choice) arrive in order; exactly one event of an accepted
/// request, its last, has `last` set.
#[derive(Clone, Debug)]
pub struct Event {
    /// The request; `RequestId(0)` for events of the engine itself.
    pub request_id: RequestId,
    /// The host's own word from the request.
    pub user_data: u64,
    /// The choice, `0..n`.
    pub choice: u32,
    /// Nothing more comes for this request.
    pub last: bool,
    /// Monotonic time of the (newest part of the) event, nanoseconds.
    pub time_ns: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// New output of one choice.
    Delta(Delta),
    /// The prompt's logprobs (and its text and ids, with `echo`), before any delta.
    Prompt(Delta),
    /// A choice ended.
    Finished(Box<Finished>),
    /// The request failed; no further event of any of its choices.
    Error(Error),
    /// The engine is loading: fraction done, `0.0..=1.0`; 1.0 means ready.
    Load(f32),
    /// The engine failed and serves no more.
    EngineFailed(Error),
}

/// Output since the last event of this choice.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Whole UTF-8 scalars; may be empty while a scalar or a stop string is incomplete.
    pub text: String,
    /// The tokens, in order. Their text may come with a later event.
    pub token_ids: Vec<TokenId>,
    /// One record a token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
}

/// How a choice ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Tokens counted.
    pub usage: Usage,
    /// When things happened, monotonic nanoseconds; 0 where they never did.
    pub times: Times,
    /// Sum of the chosen tokens' logprobs, if logprobs were asked for.
    pub cumulative_logprob: Option<f32>,
}

/// Tokens of one choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, found in the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
}

/// When things happened to one choice, monotonic nanoseconds; 0 where they never did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Submitted.
    pub arrival_ns: u64,
    /// First scheduled.
    pub scheduled_ns: u64,
    /// First token.
    pub first_token_ns: u64,
    /// Last token.
    pub last_token_ns: u64,
}

impl Event {
    /// Bytes that this event holds, as `max_undrained_bytes` counts them.
    pub fn size_bytes(&self) -> usize {
        let payload = match &self.kind {
            EventKind::Delta(d) | EventKind::Prompt(d) => d.size_bytes(),
            EventKind::Finished(_) => size_of::<Finished>(),
            EventKind::Error(e) | EventKind::EngineFailed(e) => e.message().len(),
            EventKind::Load(_) => 0,
        };
        size_of::<Event>() + payload
    }
}

impl Delta {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.token_ids.is_empty() && self.logprobs.is_empty()
    }

    /// Appends `later`.
    pub fn extend(&mut self, later: Delta) {
        self.text.push_str(&later.text);
        self.token_ids.extend(later.token_ids);
        self.logprobs.extend(later.logprobs);
    }

    fn size_bytes(&self) -> usize {
        let logprobs: usize = self.logprobs.iter().map(|l| 32 + 12 * l.top.len()).sum();
        self.text.len() + 4 * self.token_ids.len() + logprobs
    }
}
