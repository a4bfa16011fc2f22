//! Sampling: one row of logits and one sequence's history to one token and its logprobs.
//!
//! ```text
//! raw logits -> [logprobs of the raw row] -> allowed_token_ids -> logit_bias -> min_tokens
//!   -> penalties -> bad_words -> greedy? argmax
//!                             -> temperature -> min_p -> top_k -> top_p -> Gumbel-max
//! ```
//!
//! A row's token depends on that row, its sequence's history, seed and position, and on nothing
//! else: not on the batch, the thread or the order of calls. Sums run in a fixed order, and noise
//! is a function of (seed, position, token).
//!
//! Cost: all of it is a few passes over the row that the compiler vectorises. The maxima of
//! 64-token chunks, found by the first pass, let all later ones skip what cannot matter; nothing
//! ever sorts the vocabulary.

mod bad_words;
mod bias;
mod filters;
mod logprobs;
mod min_tokens;
mod noise;
mod penalties;
mod row;
#[cfg(test)]
mod tests;
mod top_p;

pub use bad_words::bad_word_sequences;
pub use logprobs::{not_finite, prompt_logprobs, scored};

use std::cell::RefCell;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;
use crate::request::{LogitChanges, ResolvedParams, TokenLogprobs};

use bad_words::BadWords;
use filters::{Candidate, Filters};
use min_tokens::MinTokens;
use noise::Noise;
use penalties::Penalties;
use row::Maxima;
use top_p::Room;

/// The token chosen for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Its logprobs under the raw logits, if the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// A draw that another place than this may make: [`SequenceSampler::draw`].
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Seed of the noise.
    pub seed: u64,
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f32,
    /// `ln(min_p)`; -inf is off.
    pub ln_min_p: f32,
    /// How many of the most likely tokens to report, if any logprobs are asked for.
    pub logprobs: Option<usize>,
    /// What is done to the logits before, if anything.
    pub changes: Option<LogitChanges>,
}

/// Chooses the tokens of one sequence: its parameters and what it generated so far. Used by one
/// thread at a time.
#[derive(Debug)]
pub struct SequenceSampler {
    filters: Filters,
    seed: u64,
    logprobs: Option<usize>,
    allowed_token_ids: Option<Arc<[TokenId]>>,
    logit_bias: Arc<[(TokenId, f32)]>,
    min_tokens: MinTokens,
    penalties: Option<Penalties>,
    bad_words: BadWords,
    /// Why the sequence's history could not be allocated; told by the first `sample`.
    broken: Option<Error>,
}

impl SequenceSampler {
    /// A sampler for a sequence that has generated nothing yet.
    ///
    /// `stop_ids_for_min_tokens` are the ids that cannot be chosen before `min_tokens` tokens
    /// (end-of-text and stop tokens), `bad_words` the sequences of [`bad_word_sequences`], `seed`
    /// that of this choice.
    pub fn new(
        params: &ResolvedParams,
        prompt: &[TokenId],
        stop_ids_for_min_tokens: &[TokenId],
        bad_words: Vec<Vec<TokenId>>,
        seed: u64,
    ) -> Self {
        let (penalties, broken) = match Penalties::new(params, prompt) {
            Ok(penalties) => (penalties, None),
            Err(error) => (None, Some(error)),
        };
        Self {
            filters: Filters::new(params),
            seed,
            logprobs: params.logprobs,
            allowed_token_ids: params.allowed_token_ids.clone(),
            logit_bias: Arc::clone(&params.logit_bias),
            min_tokens: MinTokens::new(params.min_tokens, stop_ids_for_min_tokens),
            penalties,
            bad_words: BadWords::new(bad_words),
            broken,
        }
    }

    /// Chooses the next token from `logits`, one per token of the vocabulary, which are changed in
    /// place. `position` is the new token's place in the sequence and, with the seed, decides the
    /// noise. Does not [`accept`](Self::accept) the token.
    ///
    /// # Errors
    /// `DEVICE` when the logits hold a NaN or +inf, or are -inf throughout; `INVALID_ARGUMENT`
    /// when the request's own masks leave no token; `OUT_OF_MEMORY`.
    pub fn sample(&mut self, logits: &mut [f32], position: usize) -> Result<Sampled> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        SCRATCH.with_borrow_mut(|scratch| self.sample_with(logits, position, scratch))
    }

    /// How a token is drawn that follows `pending` tokens which are drawn and not yet accepted.
    /// There may be some where nothing [looks back](Self::looks_back). `None` where `sample` has an
    /// error to tell.
    pub fn draw(&self, pending: usize) -> Option<Draw> {
        if self.broken.is_some() {
            return None;
        }
        let changes = self.changes_logits(pending).then(|| self.changes(pending));
        Some(Draw { logprobs: self.logprobs, changes, ..self.filters.draw(self.seed) })
    }

    /// Whether the tokens generated decide about the next one.
    pub fn looks_back(&self) -> bool {
        self.penalties.is_some() || self.bad_words.look_back()
    }

    /// The rules before the temperature, for another place.
    fn changes(&self, pending: usize) -> LogitChanges {
        let mut add = self.logit_bias.to_vec();
        let hidden = self.min_tokens.hidden(pending).iter().copied().chain(self.bad_words.hidden());
        add.extend(hidden.map(|token| (token, f32::NEG_INFINITY)));
        add.sort_unstable_by_key(|(token, _)| *token);
        add.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0.0 };
            same
        });
        let allowed = self.allowed_token_ids.clone();
        let plain = LogitChanges { allowed, add, repetition: 1.0, ..LogitChanges::default() };
        match &self.penalties {
            Some(penalties) => penalties.changes(plain),
            None => plain,
        }
    }

    /// Counts `token` as generated. Preemption changes nothing: what was generated stays so.
    pub fn accept(&mut self, token: TokenId) {
        self.min_tokens.accept();
        self.bad_words.accept(token);
        if let Some(penalties) = &mut self.penalties
            && let Err(error) = penalties.accept(token)
        {
            self.broken = Some(error);
        }
    }

    fn sample_with(
        &self,
        logits: &mut [f32],
        position: usize,
        scratch: &mut Scratch,
    ) -> Result<Sampled> {
        scratch.maxima.scan(logits)?;
        check_row(&scratch.maxima, logits, position)?;
        let Some(top_n) = self.logprobs else {
            self.process(logits, position, &mut scratch.maxima)?;
            let token = self.choose(logits, position, scratch)?;
            return Ok(Sampled { token, logprobs: None });
        };
        let top = logprobs::top(logits, &scratch.maxima, top_n)?;
        if !self.changes_logits(0) {
            let token = self.choose(logits, position, scratch)?;
            return Ok(Sampled { token, logprobs: Some(top.with_chosen(logits, token)) });
        }
        scratch.raw.clear();
        scratch.raw.try_reserve(logits.len())?;
        scratch.raw.extend_from_slice(logits);
        self.process(logits, position, &mut scratch.maxima)?;
        let token = self.choose(logits, position, scratch)?;
        Ok(Sampled { token, logprobs: Some(top.with_chosen(&scratch.raw, token)) })
    }

    /// Whether any rule before the temperature is active after `pending` more tokens.
    fn changes_logits(&self, pending: usize) -> bool {
        self.allowed_token_ids.is_some()
            || !self.logit_bias.is_empty()
            || !self.min_tokens.hidden(pending).is_empty()
            || self.penalties.is_some()
            || !self.bad_words.is_empty()
    }

    /// The rules before the temperature, in vLLM's order.
    fn process(&self, logits: &mut [f32], position: usize, maxima: &mut Maxima) -> Result<()> {
        if !self.changes_logits(0) {
            return Ok(());
        }
        if let Some(allowed) = &self.allowed_token_ids {
            bias::keep_only(logits, allowed);
        }
        bias::add(logits, &self.logit_bias);
        self.min_tokens.mask(logits);
        if let Some(penalties) = &self.penalties {
            penalties.apply(logits);
        }
        self.bad_words.mask(logits);
        maxima.scan(logits)?;
        if maxima.max() == f32::NEG_INFINITY {
            let message = format!(
                "allowed_token_ids, logit_bias, min_tokens and bad_words leave no token to choose \
                 at position {position}"
            );
            return Err(Error::invalid("allowed_token_ids", message).with("position", position));
        }
        Ok(())
    }

    fn choose(&self, logits: &[f32], position: usize, scratch: &mut Scratch) -> Result<TokenId> {
        let maxima = &scratch.maxima;
        if self.filters.is_greedy() {
            return Ok(maxima.argmax(logits));
        }
        let noise = Noise::new(self.seed, position);
        let max = maxima.max();
        if self.filters.keep_all() {
            let scale = |x| self.filters.scale(x, max);
            return Ok(noise.choose_from_row(logits, maxima, scale));
        }
        self.filters.survivors(logits, maxima, &mut scratch.room, &mut scratch.candidates)?;
        Ok(noise.choose(&scratch.candidates))
    }
}

/// Says what is wrong with a row that a healthy model does not produce.
fn check_row(maxima: &Maxima, logits: &[f32], position: usize) -> Result<()> {
    let max = maxima.max();
    let what = if logits.is_empty() {
        "are missing".to_owned()
    } else if maxima.has_nan() {
        let token = logits.iter().position(|x| x.is_nan()).unwrap_or(0);
        format!("are NaN (first at token {token})")
    } else if max == f32::INFINITY {
        format!("are infinite (first at token {})", maxima.argmax(logits))
    } else if max == f32::NEG_INFINITY {
        "are all -infinity".to_owned()
    } else {
        return Ok(());
    };
    let message = format!("the model's logits at position {position} {what}");
    Err(Error::new(ErrorKind::Device, message).with("position", position))
}

/// Buffers of one thread, reused from row to row: sequences stay small, and a row allocates
/// nothing once its thread has seen one like it.
#[derive(Default)]
struct Scratch {
    maxima: Maxima,
    /// Tokens that survive the filters.
    candidates: Vec<Candidate>,
    /// Numbers of `top_p`.
    room: Room,
    /// Logits before the rules changed them.
    raw: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
