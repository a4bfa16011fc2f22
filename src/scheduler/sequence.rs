//! `Sequence`: one running choice, as the scheduler sees it.

use super::config::SchedulerConfig;
use super::queue::QueueKey;
use crate::error::Result;
use crate::ids::{BlockId, SeqId, TokenId};
use crate::kv_cache::{BlockHash, hash_block};
use crate::request::FinishReason;

/// A sequence to schedule.
#[derive(Clone, Debug, Default)]
pub struct NewSequence {
    /// Its id, never used before.
    pub id: SeqId,
    /// The prompt, not empty.
    pub prompt: Vec<TokenId>,
    /// Most tokens to generate, at least 1, already clamped to the model's context.
    pub max_tokens: usize,
    /// Tokens before which the sampler masks `eos` and `stop_token_ids`. The stop check leaves
    /// them to that mask, as vLLM's does.
    pub min_tokens: usize,
    /// The end-of-text token; `None` when it is ignored.
    pub eos: Option<TokenId>,
    /// Tokens that end the sequence.
    pub stop_token_ids: Vec<TokenId>,
    /// Lower is earlier, under the priority policy.
    pub priority: i32,
    /// When it came, in any unit; earlier is smaller.
    pub arrival: u64,
    /// Only sequences with an equal salt share blocks.
    pub cache_salt: Option<String>,
    /// Computes the whole prompt, whatever the cache holds (prompt logprobs).
    pub skip_cache_read: bool,
}

/// One running choice. Tokens scheduled and tokens known are counted apart: a step in flight that
/// will sample adds a placeholder, whose position later steps may already compute.
#[derive(Debug)]
pub struct Sequence {
    id: SeqId,
    tokens: Vec<TokenId>,
    num_prompt_tokens: usize,
    max_tokens: usize,
    min_tokens: usize,
    eos: Option<TokenId>,
    stop_token_ids: Vec<TokenId>,
    cache_salt: Option<String>,
    pub(super) priority: i32,
    pub(super) arrival: u64,
    pub(super) skip_cache_read: bool,

    pub(super) state: State,
    pub(super) held: bool,
    /// Positions computed by completed steps, cache hits and steps in flight.
    pub(super) num_computed: usize,
    /// Tokens that steps in flight will sample.
    pub(super) num_placeholders: usize,
    /// Steps in flight that have rows of this sequence.
    pub(super) num_in_flight: usize,
    /// Parts of steps in flight count only if they were scheduled in this epoch.
    pub(super) epoch: u32,
    pub(super) num_preemptions: u64,
    /// Positions found in the cache when first admitted.
    pub(super) num_cached_tokens: usize,
    pub(super) admitted_before: bool,

    /// By group; all of one length.
    pub(super) block_tables: Vec<Vec<BlockId>>,
    /// Leading blocks that were cache hits: other sequences' work.
    pub(super) num_hit_blocks: usize,
    /// Leading blocks that were hits or were put in the cache.
    pub(super) num_hashed_blocks: usize,
    /// Whether its blocks may enter the cache.
    pub(super) cacheable: bool,
    /// Hashes of the full blocks of known tokens, as far as they were needed.
    hashes: Vec<BlockHash>,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In the waiting queue, without blocks: new or preempted.
    Waiting(QueueKey),
    /// In the running list.
    Running,
    /// Forgotten by id; keeps its blocks until its steps are back.
    Finished,
}

impl Sequence {
    /// Fails if memory for what the prompt's length asks for cannot be had.
    pub(super) fn new(new: NewSequence, config: &SchedulerConfig, key: QueueKey) -> Result<Self> {
        let mut hashes = Vec::new();
        if config.enable_prefix_caching {
            hashes.try_reserve(new.prompt.len() / config.block_size)?;
        }
        Ok(Self {
            id: new.id,
            num_prompt_tokens: new.prompt.len(),
            tokens: new.prompt,
            max_tokens: new.max_tokens,
            min_tokens: new.min_tokens,
            eos: new.eos,
            stop_token_ids: new.stop_token_ids,
            cache_salt: new.cache_salt,
            priority: new.priority,
            arrival: new.arrival,
            skip_cache_read: new.skip_cache_read,
            state: State::Waiting(key),
            held: false,
            num_computed: 0,
            num_placeholders: 0,
            num_in_flight: 0,
            epoch: 0,
            num_preemptions: 0,
            num_cached_tokens: 0,
            admitted_before: false,
            block_tables: vec![Vec::new(); config.num_groups],
            num_hit_blocks: 0,
            num_hashed_blocks: 0,
            cacheable: true,
            hashes,
        })
    }

    /// Its id.
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// Prompt and output as far as known.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Output as far as known.
    pub fn output_tokens(&self) -> &[TokenId] {
        &self.tokens[self.num_prompt_tokens..]
    }

    /// Tokens of the prompt.
    pub fn num_prompt_tokens(&self) -> usize {
        self.num_prompt_tokens
    }

    /// Positions computed, counting cache hits and steps in flight.
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed
    }

    /// Positions of the prompt found in the prefix cache when first admitted.
    pub fn num_cached_tokens(&self) -> usize {
        self.num_cached_tokens
    }

    /// How often it was preempted.
    pub fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    /// Tokens before which the sampler masks the stop tokens.
    pub fn min_tokens(&self) -> usize {
        self.min_tokens
    }

    /// Whether it is in the running list.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Whether it is held back by `Scheduler::hold`.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Known tokens and those that steps in flight will sample.
    pub(super) fn num_tokens_with_placeholders(&self) -> usize {
        self.tokens.len() + self.num_placeholders
    }

    /// Rows that remain to be computed before the next sample; 0 for a sequence that is certain to
    /// reach its length with what is in flight.
    pub(super) fn num_rows_wanted(&self, max_model_len: usize) -> usize {
        let total = self.num_tokens_with_placeholders();
        if total - self.num_prompt_tokens >= self.max_tokens || total >= max_model_len {
            return 0;
        }
        total - self.num_computed
    }

    /// Appends a sampled token and says whether it ends the sequence: end-of-text, then stop
    /// tokens, then length.
    pub(super) fn push(&mut self, token: TokenId, max_model_len: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.eos == Some(token) {
            return Some(FinishReason::Eos);
        }
        if self.stop_token_ids.contains(&token) {
            return Some(FinishReason::StopToken(token));
        }
        let full = self.tokens.len() >= max_model_len;
        (full || self.output_tokens().len() >= self.max_tokens).then_some(FinishReason::Length)
    }

    /// Hashes of the first `count` blocks, all full of known tokens. Computed once each.
    pub(super) fn block_hashes(&mut self, count: usize, block_size: usize) -> &[BlockHash] {
        assert!(count * block_size <= self.tokens.len(), "hash of a block that is not full");
        for i in self.hashes.len()..count {
            let tokens = &self.tokens[i * block_size..(i + 1) * block_size];
            self.hashes.push(hash_block(self.hashes.last(), tokens, self.cache_salt.as_deref()));
        }
        &self.hashes[..count]
    }

    /// Back to the queue without blocks; known tokens stay, and so do placeholders, whose tokens
    /// are valid when they come.
    pub(super) fn forget_blocks(&mut self) {
        self.block_tables.iter_mut().for_each(Vec::clear);
        self.num_computed = 0;
        self.num_hit_blocks = 0;
        self.num_hashed_blocks = 0;
        self.cacheable = true;
    }
}
