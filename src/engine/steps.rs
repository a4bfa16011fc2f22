//! Steps: run to the end at once, or submitted to the device and collected while the next one runs.
//!
//! ```text
//!  host:    schedule k+1 ─► submit k+1 ─► collect k ─► emit k ─► schedule k+2 ─► submit k+2 ─► ...
//!  device:  ....... step k .......... | .............. step k+1 .............. | step k+2 ...
//! ```
//!
//! The tokens of step k go into step k+1 on the device; the host sees them one step late. A
//! sequence that turns out to have ended in step k has a row in step k+1, which the scheduler drops
//! when that step is back: its blocks stay until then. Where the next token's rule needs the tokens
//! before it (penalties, bad words of several tokens), or the host draws, the host waits for the
//! step instead.

use std::collections::HashMap;
use std::time::Instant;

use super::sample::{Row, RowResult, result_of, row_numbers, rows_of};
use super::worker::Worker;
use crate::backend::DrawRule;
use crate::error::Result;
use crate::ids::{SeqId, TokenId};
use crate::scheduler::{Batch, SampledToken, StepId};

/// A step that was submitted.
pub(crate) struct Pending {
    step: StepId,
    /// By row of logits: whose, and the token to score of a prompt's row.
    rows: Vec<(SeqId, Option<TokenId>)>,
    began: Instant,
}

impl Worker {
    /// Runs a step that was just scheduled, or starts it and ends the one before.
    pub(crate) fn run_step(&mut self, batch: &Batch) -> Result<()> {
        let began = Instant::now();
        self.note_admitted(batch);
        self.runner.prepare(batch, &self.scheduler);
        self.poison_free_blocks();
        row_numbers(batch, &self.scheduler, &self.choices, &mut self.wanted);
        self.runner.forward(batch, &self.wanted);
        self.panic_if_asked(batch);
        let Some(step) = self.submit(batch, began)? else {
            self.collect()?;
            return self.run_on_host(batch, began);
        };
        let before = self.pending.replace(step);
        if let Some(before) = before {
            self.complete(before)?;
        }
        if self.may_run_ahead(batch) { Ok(()) } else { self.collect() }
    }

    /// Ends the step that the device has, if it has one.
    pub(crate) fn collect(&mut self) -> Result<()> {
        self.pending.take().map_or(Ok(()), |step| self.complete(step))
    }

    /// Starts a step on the device, where every row's token is drawn there.
    fn submit(&mut self, batch: &Batch, began: Instant) -> Result<Option<Pending>> {
        if !self.runner.draws() {
            return Ok(None);
        }
        let rows = rows_of(batch, &self.scheduler, &self.choices);
        let rules: Option<Vec<DrawRule>> = rows.iter().map(Row::rule).collect();
        let Some(rules) = rules else { return Ok(None) };
        let rows: Vec<_> = rows.iter().map(|r| (r.seq, r.target())).collect();
        let sampled = (0..).zip(&rows).filter(|(_, (_, target))| target.is_none());
        let sampled = sampled.map(|(i, (seq, _))| (*seq, i));
        let submitted = self.runner.submit(&self.wanted, &rules, sampled)?;
        Ok(submitted.then_some(Pending { step: batch.step, rows, began }))
    }

    /// Whether the next step can be prepared before this one's tokens are known.
    fn may_run_ahead(&self, batch: &Batch) -> bool {
        let looks_back = |seq: &SeqId| {
            let choice = self.choices.get(seq);
            choice.is_some_and(|c| c.sampler.lock().is_ok_and(|sampler| sampler.looks_back()))
        };
        self.shared.options.async_scheduling
            && !batch.seqs.iter().filter(|s| s.samples).any(|s| looks_back(&s.id))
    }

    /// Waits for a step, and emits what came of it.
    fn complete(&mut self, pending: Pending) -> Result<()> {
        let began = Instant::now();
        let drawn = self.runner.collect()?;
        // What the host did beside the device is not the model's time.
        self.figures.model(began.elapsed());
        let mut results = Vec::with_capacity(drawn.len());
        for ((seq, target), drawn) in pending.rows.into_iter().zip(&drawn) {
            match result_of(seq, target, drawn) {
                Some(result) => results.push(result),
                // The scheduler has its last position computed once more.
                None => {
                    if let Some(choice) = self.choices.get_mut(&seq) {
                        choice.on_host = true;
                    }
                }
            }
        }
        self.emit(pending.step, results);
        self.record_step(pending.began);
        Ok(())
    }

    /// Runs a step to the end, with every row's logits on the host. No other step is in flight.
    fn run_on_host(&mut self, batch: &Batch, began: Instant) -> Result<()> {
        let rows = rows_of(batch, &self.scheduler, &self.choices);
        let indices: Vec<u32> = rows.iter().map(|r| r.row).collect();
        self.runner.logits(&indices, &|i, logits| rows[i].run(logits))?;
        let results = rows.into_iter().filter_map(Row::into_result).collect();
        self.figures.model(began.elapsed());
        self.emit(batch.step, results);
        self.record_step(began);
        Ok(())
    }

    /// Marks first schedules, and what the prefix cache gave.
    fn note_admitted(&mut self, batch: &Batch) {
        for seq in &batch.preempted {
            if let Some(choice) = self.choices.get_mut(seq) {
                choice.preemptions += 1;
            }
        }
        let now = crate::os::monotonic_ns();
        for &(seq, num_cached_tokens) in &batch.admitted {
            let Some(choice) = self.choices.get_mut(&seq) else { continue };
            if choice.times.scheduled_ns == 0 {
                choice.times.scheduled_ns = now;
                choice.usage.cached_tokens = num_cached_tokens as u32;
                if let Some(live) = self.requests.get(&choice.request) {
                    self.shared.registry.dequeued(&live.ticket);
                }
            }
        }
    }

    /// Hands tokens to the scheduler, and output to the hosts.
    fn emit(&mut self, step: StepId, results: Vec<RowResult>) {
        let mut sampled = Vec::with_capacity(results.len());
        let mut logprobs = HashMap::new();
        for result in results {
            match result {
                RowResult::Token(seq, token) => {
                    sampled.push(SampledToken { id: seq, token: token.token });
                    if let Some(record) = token.logprobs {
                        logprobs.insert(seq, record);
                    }
                }
                RowResult::Prompt(seq, record) => {
                    if let Some(prompt) = self.choices.get_mut(&seq).and_then(|c| c.prompt.as_mut())
                    {
                        prompt.logprobs.push(record);
                    }
                }
                RowResult::Failed(seq, error) => self.fail_choice(seq, error),
            }
        }
        let outcomes = self.scheduler.postprocess(step, &sampled);
        for outcome in outcomes {
            let record = logprobs.remove(&outcome.id);
            self.emit_token(outcome, record);
        }
    }

    fn poison_free_blocks(&mut self) {
        if self.shared.options.debug.poison_free_blocks {
            let freed = self.scheduler.take_freed_blocks();
            self.runner.poison(&freed);
        }
    }

    #[allow(clippy::panic, reason = "an aid for tests that show what a bug does")]
    fn panic_if_asked(&self, batch: &Batch) {
        if self.shared.options.debug.panic_at_step == Some(batch.step.0) {
            panic!("asked for by debug.panic_at_step");
        }
    }
}
