//! What the engine tells `Metrics`, and the snapshot that hosts get.

use crate::request::FinishReason;

/// A snapshot of an engine. Counters count from the engine's start; the fields are read one after
/// the other, so that a step in progress may show in some of them only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Sequences that have blocks and are being computed.
    pub num_requests_running: u64,
    /// Sequences waiting for their (next) turn.
    pub num_requests_waiting: u64,
    /// Requests accepted and not ended, in any state.
    pub live_requests: u64,
    /// Rows of tokens that the backend computed, counted inside it.
    pub token_rows: u64,
    /// Rows of logits that the backend computed, counted inside it.
    pub logits_rows: u64,
    /// KV blocks that may hold data; the null block is not one.
    pub kv_blocks_total: u64,
    /// Of those, blocks that a sequence holds.
    pub kv_blocks_used: u64,
    /// Blocks that no sequence holds but the prefix cache may still serve.
    pub kv_blocks_cached: u64,
    /// Blocks that hold nothing of use. Free, used and cached add up to the total.
    pub kv_blocks_free: u64,
    /// `kv_blocks_used / kv_blocks_total`, `0.0..=1.0`.
    pub kv_cache_usage: f64,
    /// Tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Tokens found there.
    pub prefix_cache_hits: u64,
    /// Sequences that lost their blocks to others.
    pub num_preemptions: u64,
    /// Prompt tokens of the sequences whose prefill is done, cached ones included.
    pub prompt_tokens: u64,
    /// Of those, tokens that came from the prefix cache.
    pub prompt_tokens_cached: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Choices that ended at end-of-text, a stop token or a stop string.
    pub finished_stop: u64,
    /// Choices that ended at `max_tokens` or the end of the context.
    pub finished_length: u64,
    /// Choices that the host aborted.
    pub finished_abort: u64,
    /// Choices whose deadline passed.
    pub finished_deadline: u64,
    /// Choices of requests that failed.
    pub finished_error: u64,
    /// Requests turned away because the waiting queue was full.
    pub rejected_queue_full: u64,
    /// Bytes of events that the host has not drained.
    pub undrained_bytes: u64,
    /// Steps done.
    pub steps: u64,
    /// Seconds of all steps.
    pub step_seconds: f64,
    /// Of those, in the model and the sampler; where a device runs them beside the host, waiting
    /// for them. The rest is scheduling and output.
    pub model_seconds: f64,
    /// Seconds of the newest step.
    pub last_step_seconds: f64,
}

/// Labels that are known once the model is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// The label `model_name`.
    pub model_name: String,
    /// Most positions of a sequence: token histograms end there.
    pub max_model_len: usize,
    /// Positions of a KV block.
    pub block_size: usize,
    /// KV blocks, null block included, as vLLM counts `num_gpu_blocks`.
    pub num_blocks: usize,
    /// Whether equal prefixes share blocks.
    pub enable_prefix_caching: bool,
    /// Element type of the KV cache, e.g. `bfloat16`.
    pub cache_dtype: String,
}

/// The scheduler's state after a step. Preemptions, queries and hits are totals since the
/// engine's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerGauges {
    /// Running sequences.
    pub running: usize,
    /// Waiting sequences.
    pub waiting: usize,
    /// KV blocks without the null block.
    pub blocks_total: usize,
    /// Blocks that sequences hold.
    pub blocks_used: usize,
    /// Blocks that only the prefix cache holds.
    pub blocks_cached: usize,
    /// Blocks that hold nothing of use. Free, used and cached add up to the total.
    pub blocks_free: usize,
    /// Preemptions, in total.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache, in total.
    pub prefix_cache_queries: u64,
    /// Tokens found there, in total.
    pub prefix_cache_hits: u64,
}

/// One step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Whole prompts (cached tokens included) of the sequences that got their first token in this
    /// step. A preempted sequence that is computed again does not count twice.
    pub prompt_tokens: u64,
    /// Of those, tokens that came from the prefix cache.
    pub prompt_tokens_cached: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// From the begin of scheduling to the last event.
    pub seconds: f64,
    /// Of those, in the model and the sampler.
    pub model_seconds: f64,
}

/// How a choice ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// End-of-text, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The host aborted it.
    Abort,
    /// Its deadline passed.
    Deadline,
    /// Its request failed.
    Error,
}

impl Outcome {
    /// All of them, in the order of their counters.
    pub(super) const ALL: [Self; 5] =
        [Self::Stop, Self::Length, Self::Abort, Self::Deadline, Self::Error];

    /// The label's value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Deadline => "deadline",
            Self::Error => "error",
        }
    }
}

impl From<&FinishReason> for Outcome {
    fn from(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::Eos | FinishReason::StopToken(_) | FinishReason::StopString(_) => {
                Self::Stop
            }
            FinishReason::Length => Self::Length,
            FinishReason::Abort => Self::Abort,
            FinishReason::Deadline => Self::Deadline,
        }
    }
}

/// One choice that ended. Times are monotonic nanoseconds, 0 where the thing never happened; what
/// cannot be said without them is not observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishedSequence {
    /// How.
    pub outcome: Outcome,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of those, found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// The resolved `max_tokens`.
    pub max_tokens: u64,
    /// Times that it was preempted.
    pub preemptions: u64,
    /// Submitted.
    pub arrival_ns: u64,
    /// First scheduled.
    pub scheduled_ns: u64,
    /// First token.
    pub first_token_ns: u64,
    /// Last token.
    pub last_token_ns: u64,
    /// Ended.
    pub finished_ns: u64,
}
