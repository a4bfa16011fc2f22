//! What a scheduler is made with.

use crate::config::SchedulingPolicy;
use crate::error::{Error, Result};

/// Limits and choices of a scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Most sequences of a step.
    pub max_num_seqs: usize,
    /// Most tokens (rows) of a step.
    pub max_num_batched_tokens: usize,
    /// Most positions of a sequence.
    pub max_model_len: usize,
    /// Order of the waiting queue, and who is preempted.
    pub policy: SchedulingPolicy,
    /// Most rows of one sequence in one step; 0 is no such limit. A sequence that is alone, and
    /// every sequence without chunked prefill, ignores it.
    pub long_prefill_token_threshold: usize,
    /// Cuts prompts to what is left of the step's budget.
    pub enable_chunked_prefill: bool,
    /// Shares the blocks of equal prefixes.
    pub enable_prefix_caching: bool,
    /// Positions of a block.
    pub block_size: usize,
    /// Blocks of the pool, the null block included.
    pub num_blocks: usize,
    /// KV groups: block tables of a sequence.
    pub num_groups: usize,
    /// Fraction of the pool that admission leaves free while something runs, `0.0..1.0`.
    pub watermark: f32,
    /// Shuffles the order in which blocks are first handed out, by this seed.
    pub shuffle_blocks: Option<u64>,
}

impl SchedulerConfig {
    /// Refuses what cannot work.
    pub(super) fn validate(&self) -> Result<()> {
        let at_least_1 = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_model_len", self.max_model_len),
            ("block_size", self.block_size),
            ("num_groups", self.num_groups),
        ];
        for (field, value) in at_least_1 {
            if value == 0 {
                let message = format!("{field} must be at least 1, got {value}.");
                return Err(Error::invalid(field, message).with("limit", 1).with("value", value));
            }
        }
        if !self.enable_chunked_prefill && self.max_num_batched_tokens < self.max_model_len {
            let message = format!(
                "max_num_batched_tokens ({}) must be at least max_model_len ({}) without chunked \
                 prefill.",
                self.max_num_batched_tokens, self.max_model_len
            );
            return Err(Error::invalid("max_num_batched_tokens", message)
                .with("limit", self.max_model_len)
                .with("value", self.max_num_batched_tokens));
        }
        if !(0.0..1.0).contains(&self.watermark) {
            let message = format!("watermark must be in [0, 1), got {}.", self.watermark);
            return Err(Error::invalid("watermark", message).with("value", self.watermark));
        }
        Ok(())
    }
}
