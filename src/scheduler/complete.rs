//! A step is back: its tokens are appended and checked for the end.

use super::Scheduler;
use super::batch::StepId;
use super::in_flight::{InFlightStep, Part};
use super::sequence::State;
use crate::ids::{SeqId, TokenId};
use crate::request::FinishReason;

/// A token that a step sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledToken {
    /// Whose.
    pub id: SeqId,
    /// Which.
    pub token: TokenId,
}

/// A token that was appended to its sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOutcome {
    /// Whose.
    pub id: SeqId,
    /// Which.
    pub token: TokenId,
    /// Why it is the last: end-of-text, a stop token or the length.
    pub finish: Option<FinishReason>,
}

impl Scheduler {
    /// Takes back `step`, the oldest in flight, with the tokens that it sampled: for each sequence
    /// that samples 0 to n of them, in order and side by side. Returns those that were appended;
    /// the others (of sequences that finished meanwhile, after a stop, of a step gone void) do not
    /// exist for the sequence, and its sampler must not count them.
    ///
    /// One token is the rule. With more, later steps in flight are void for the sequence and the
    /// tokens are computed like a prompt; with none, its last position is computed once more.
    ///
    /// # Panics
    /// If `step` is not the oldest step in flight.
    pub fn postprocess(&mut self, step: StepId, sampled: &[SampledToken]) -> Vec<TokenOutcome> {
        let done = self.take_oldest(step);
        let mut outcomes = Vec::with_capacity(sampled.len());
        let mut rest = sampled;
        for part in &done.parts {
            let tokens = tokens_of(part.id, sampled, &mut rest);
            self.complete(part, tokens, &mut outcomes);
        }
        if outcomes.iter().any(|outcome| outcome.finish.is_some()) {
            let sequences = &self.sequences;
            self.running.retain(|&slot| sequences.get(slot).is_some_and(|s| s.is_running()));
        }
        self.recycle(done);
        outcomes
    }

    pub(super) fn take_oldest(&mut self, step: StepId) -> InFlightStep {
        let oldest = self.in_flight.pop_front().filter(|oldest| oldest.step == step);
        oldest.expect("steps complete once, in the order in which they were scheduled")
    }

    pub(super) fn recycle(&mut self, mut done: InFlightStep) {
        done.clear();
        self.spare.push(done);
    }

    /// A step with rows of this sequence is back; a finished sequence goes when it was the last.
    /// Says whether the part still counts.
    pub(super) fn land(&mut self, part: &Part) -> bool {
        let seq = &mut self.sequences[part.slot];
        seq.num_in_flight -= 1;
        if seq.state == State::Finished {
            self.remove_if_landed(part.slot);
            return false;
        }
        seq.epoch == part.epoch
    }

    fn complete(&mut self, part: &Part, sampled: &[SampledToken], out: &mut Vec<TokenOutcome>) {
        if !self.land(part) || !part.samples {
            return;
        }
        let seq = &mut self.sequences[part.slot];
        seq.num_placeholders -= 1;
        let mut finished = false;
        for &SampledToken { id, token } in sampled {
            let finish = seq.push(token, self.config.max_model_len);
            finished = finish.is_some();
            out.push(TokenOutcome { id, token, finish });
            if finished {
                break;
            }
        }
        if sampled.len() != 1 && !finished {
            // Steps in flight counted on one token: they computed the wrong input.
            self.rewind(part.slot, part.end - usize::from(sampled.is_empty()));
        }
        let mut newest = self.in_flight.pop_back();
        self.cache_full_blocks(part.slot, newest.as_mut());
        self.in_flight.extend(newest);
        if finished {
            self.retire(part.slot);
        }
    }
}

/// The tokens of `id`: as a rule the first ones of `rest`, which moves on.
fn tokens_of<'a>(
    id: SeqId,
    all: &'a [SampledToken],
    rest: &mut &'a [SampledToken],
) -> &'a [SampledToken] {
    let run =
        |from: &'a [SampledToken]| from.split_at(from.iter().take_while(|s| s.id == id).count());
    let (tokens, after) = run(rest);
    if !tokens.is_empty() {
        *rest = after;
        return tokens;
    }
    match all.iter().position(|s| s.id == id) {
        Some(first) => run(&all[first..]).0,
        None => tokens,
    }
}
