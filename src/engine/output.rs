//! Output of one choice: tokens in; text, stop strings and events out.

use super::event::{Delta, Finished, Times, Usage};
use crate::error::Result;
use crate::ids::{RequestId, TokenId};
use crate::os::monotonic_ns;
use crate::request::{FinishReason, ResolvedParams, TokenLogprobs};
use crate::sampling::SequenceSampler;
use crate::sync::{Arc, Mutex};
use crate::tokenizer::{Detokenizer, StopStrings};

/// One choice of a request while it runs.
pub(crate) struct Choice {
    pub(crate) request: RequestId,
    pub(crate) index: u32,
    pub(crate) params: Arc<ResolvedParams>,
    /// Used by whichever compute thread has this choice's row; never contended.
    pub(crate) sampler: Mutex<SequenceSampler>,
    pub(crate) text: Option<TextOutput>,
    pub(crate) prompt: Option<PromptOutput>,
    pub(crate) usage: Usage,
    pub(crate) times: Times,
    pub(crate) preemptions: u64,
    pub(crate) cumulative_logprob: Option<f32>,
    /// Output is not shown: a request that only scores its prompt (`max_tokens` 0).
    pub(crate) silent: bool,
    /// Output so far, where it is given all at once in the end.
    pub(crate) kept: Option<Delta>,
    /// An aid for tests: this choice's logits come out as NaN.
    pub(crate) nan_logits: bool,
    /// The device found no token: the host samples, and says why if it finds none either.
    pub(crate) on_host: bool,
}

/// Turns tokens into text and looks for stop strings.
pub(crate) struct TextOutput {
    detokenizer: Detokenizer,
    stops: StopStrings,
}

/// What a request wants to know about its prompt. Belongs to choice 0 and speaks for all.
pub(crate) struct PromptOutput {
    /// Most likely tokens to report, if logprobs were asked for.
    pub(crate) top_n: Option<usize>,
    /// One record a position, filled in order; the first token has none.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Text and ids to give back, with `echo`.
    pub(crate) echo: Option<(String, Vec<TokenId>)>,
}

impl Choice {
    /// Takes the next token. Returns what to emit, and why the choice ends if it does: `finish` is
    /// the scheduler's reason, which a stop string overrides.
    pub(crate) fn accept(
        &mut self,
        token: TokenId,
        logprobs: Option<TokenLogprobs>,
        finish: Option<FinishReason>,
    ) -> Result<(Delta, Option<FinishReason>)> {
        let now = monotonic_ns();
        if self.usage.completion_tokens == 0 {
            self.times.first_token_ns = now;
        }
        self.times.last_token_ns = now;
        self.usage.completion_tokens += 1;
        let chosen = logprobs.as_ref().and_then(|l| l.chosen);
        if let (Some(sum), Some(chosen)) = (&mut self.cumulative_logprob, chosen) {
            *sum += chosen.logprob;
        }
        let mut delta = Delta::default();
        delta.token_ids.push(token);
        delta.logprobs.extend(logprobs);
        let finish = self.accept_text(token, finish, &mut delta.text)?;
        Ok((if self.silent { Delta::default() } else { delta }, finish))
    }

    /// What of `delta` and of what was kept is due now: all of it when the choice `ends`.
    pub(crate) fn due(&mut self, delta: Delta, ends: bool) -> Delta {
        let Some(kept) = &mut self.kept else { return delta };
        kept.extend(delta);
        if ends { std::mem::take(kept) } else { Delta::default() }
    }

    /// Output that was held back, when the choice ends without a token.
    pub(crate) fn flush(&mut self) -> Delta {
        let mut delta = Delta::default();
        if let Some(text) = &mut self.text
            && !self.silent
        {
            delta.text = text.finish(true).0;
        }
        self.due(delta, true)
    }

    pub(crate) fn finished(&self, reason: FinishReason) -> Finished {
        let mut usage = self.usage;
        if self.silent {
            usage.completion_tokens = 0;
        }
        let cumulative_logprob = self.cumulative_logprob;
        Finished { reason, usage, times: self.times, cumulative_logprob }
    }

    fn accept_text(
        &mut self,
        token: TokenId,
        finish: Option<FinishReason>,
        out: &mut String,
    ) -> Result<Option<FinishReason>> {
        let Some(text) = &mut self.text else { return Ok(finish) };
        let stopped_by_token =
            matches!(finish, Some(FinishReason::Eos | FinishReason::StopToken(_)));
        // Stop strings count only in text that comes after `min_tokens` tokens.
        let active = self.usage.completion_tokens as usize > self.params.min_tokens;
        if !stopped_by_token || self.params.include_stop_str_in_output {
            let piece = text.detokenizer.push(token)?;
            let outcome = text.stops.push(piece, active);
            out.push_str(&outcome.text);
            if let Some(stop) = outcome.matched {
                return Ok(Some(FinishReason::StopString(stop)));
            }
        }
        if finish.is_some() {
            let (rest, matched) = text.finish(active);
            out.push_str(&rest);
            if let Some(stop) = matched {
                return Ok(Some(FinishReason::StopString(stop)));
            }
        }
        Ok(finish)
    }
}

impl TextOutput {
    pub(crate) fn new(detokenizer: Detokenizer, stops: StopStrings) -> Self {
        Self { detokenizer, stops }
    }

    /// What is left of the text, and the stop string in it, if any.
    fn finish(&mut self, active: bool) -> (String, Option<String>) {
        let rest = self.detokenizer.finish();
        let outcome = self.stops.push(&rest, active);
        let mut text = outcome.text;
        if outcome.matched.is_none() {
            text.push_str(&self.stops.finish());
        }
        (text, outcome.matched)
    }
}

impl PromptOutput {
    /// Whether the prompt's record is complete.
    pub(crate) fn is_complete(&self, prompt_len: usize) -> bool {
        self.top_n.is_none() || self.logprobs.len() == prompt_len
    }

    /// The prompt event's payload.
    pub(crate) fn into_delta(self) -> Delta {
        let (text, token_ids) = self.echo.unwrap_or_default();
        Delta { text, token_ids, logprobs: self.logprobs }
    }
}
