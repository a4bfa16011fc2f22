//! Rows of logits that a step needs, and what is made of each.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::output::Choice;
use crate::backend::{DrawRule, Drawn};
use crate::error::{Error, Result};
use crate::ids::{SeqId, TokenId};
use crate::request::TokenLogprobs;
use crate::sampling::{Sampled, not_finite, prompt_logprobs, scored};
use crate::scheduler::{Batch, Scheduler};
use crate::sync::Mutex;

/// One row of logits that somebody asked for.
pub(crate) struct Row<'a> {
    /// Row of the step's hidden states.
    pub(crate) row: u32,
    pub(crate) seq: SeqId,
    task: Task<'a>,
    output: Mutex<Option<Result<Made>>>,
}

enum Task<'a> {
    /// Choose the token at `position`; `pending` before it are not known yet.
    Sample { choice: &'a Choice, position: usize, pending: usize },
    /// Score a prompt token.
    Prompt { target: TokenId, top_n: usize },
}

enum Made {
    Token(Sampled),
    Prompt(TokenLogprobs),
}

/// What came of a row.
pub(crate) enum RowResult {
    Token(SeqId, Sampled),
    Prompt(SeqId, TokenLogprobs),
    Failed(SeqId, Error),
}

/// The rows of a step: each scheduled sequence's last row if it samples, and the rows before
/// prompt tokens that are still to be scored. Ascending.
pub(crate) fn rows_of<'a>(
    batch: &Batch,
    scheduler: &Scheduler,
    choices: &'a HashMap<SeqId, Choice>,
) -> Vec<Row<'a>> {
    let mut rows = Vec::with_capacity(batch.seqs.len());
    each_row(batch, scheduler, choices, |row, seq, task| {
        rows.push(Row { row, seq, task, output: Mutex::new(None) });
    });
    rows
}

/// The numbers of those rows.
pub(crate) fn row_numbers(
    batch: &Batch,
    scheduler: &Scheduler,
    choices: &HashMap<SeqId, Choice>,
    rows: &mut Vec<u32>,
) {
    rows.clear();
    each_row(batch, scheduler, choices, |row, _, _| rows.push(row));
}

fn each_row<'a>(
    batch: &Batch,
    scheduler: &Scheduler,
    choices: &'a HashMap<SeqId, Choice>,
    mut f: impl FnMut(u32, SeqId, Task<'a>),
) {
    let mut first_row = 0;
    for scheduled in &batch.seqs {
        let end = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens;
        let mut push = |position: usize, task| {
            let row = (first_row + position - scheduled.num_computed_tokens) as u32;
            f(row, scheduled.id, task);
        };
        let sequence = scheduler.sequence(scheduled.id);
        if let (Some(choice), Some(sequence)) = (choices.get(&scheduled.id), sequence) {
            if let Some(prompt) = &choice.prompt
                && let Some(top_n) = prompt.top_n
            {
                // The row at `position` predicts the token after it. What was recorded before a
                // preemption is not recorded again.
                let recorded = prompt.logprobs.len().saturating_sub(1);
                let start = scheduled.num_computed_tokens.max(recorded);
                for position in start..end.min(sequence.num_prompt_tokens() - 1) {
                    let target = sequence.tokens()[position + 1];
                    push(position, Task::Prompt { target, top_n });
                }
            }
            if scheduled.samples {
                let pending = end - sequence.tokens().len().min(end);
                push(end - 1, Task::Sample { choice, position: end, pending });
            }
        }
        first_row += scheduled.num_scheduled_tokens;
    }
}

impl Row<'_> {
    /// Makes of this row's logits what was asked for. Runs on any compute thread.
    pub(crate) fn run(&self, logits: &mut [f32]) {
        let made = match &self.task {
            Task::Sample { choice, position, .. } => {
                if choice.nan_logits {
                    logits.fill(f32::NAN);
                }
                let mut sampler = choice.sampler.lock().unwrap_or_else(PoisonError::into_inner);
                sampler.sample(logits, *position).map(Made::Token)
            }
            Task::Prompt { target, top_n } => {
                prompt_logprobs(logits, *target, *top_n).map(Made::Prompt)
            }
        };
        *self.output.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
    }

    /// The token that is scored, of a row of a prompt.
    pub(crate) fn target(&self) -> Option<TokenId> {
        match self.task {
            Task::Prompt { target, .. } => Some(target),
            Task::Sample { .. } => None,
        }
    }

    /// What the backend is to do with this row; `None` where the host must.
    pub(crate) fn rule(&self) -> Option<DrawRule> {
        match &self.task {
            Task::Prompt { target, top_n } => Some(score_rule(*target, *top_n)),
            Task::Sample { choice, position, pending } => {
                let sampler = choice.sampler.lock().unwrap_or_else(PoisonError::into_inner);
                let on_host = choice.nan_logits || choice.on_host;
                let draw = if on_host { None } else { sampler.draw(*pending) }?;
                Some(DrawRule {
                    seed: draw.seed,
                    position: u32::try_from(*position).ok()?,
                    temperature: draw.temperature,
                    top_k: u32::try_from(draw.top_k).unwrap_or(u32::MAX),
                    top_p: draw.top_p,
                    ln_min_p: draw.ln_min_p,
                    changes: draw.changes,
                    top_n: draw.logprobs,
                    target: None,
                })
            }
        }
    }

    /// What came of it; nothing if the row was never run.
    pub(crate) fn into_result(self) -> Option<RowResult> {
        let output = self.output.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Some(match output {
            Ok(Made::Token(sampled)) => RowResult::Token(self.seq, sampled),
            Ok(Made::Prompt(record)) => RowResult::Prompt(self.seq, record),
            Err(error) => RowResult::Failed(self.seq, error),
        })
    }
}

/// Scores a prompt's token.
fn score_rule(target: TokenId, top_n: usize) -> DrawRule {
    DrawRule {
        seed: 0,
        position: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        ln_min_p: f32::NEG_INFINITY,
        changes: None,
        top_n: Some(top_n),
        target: Some(target),
    }
}

/// What is made of what the backend drew; `None` where the row must be computed again, by the host.
pub(crate) fn result_of(seq: SeqId, target: Option<TokenId>, drawn: &Drawn) -> Option<RowResult> {
    let record = |token| drawn.scores.as_ref().map(|scores| scored(scores, token));
    if let Some(target) = target {
        return Some(match record(target).flatten() {
            Some(record) => RowResult::Prompt(seq, record),
            None => RowResult::Failed(seq, not_finite(target)),
        });
    }
    let token = drawn.token?;
    let logprobs = match record(token) {
        Some(record) => Some(record?),
        None => None,
    };
    Some(RowResult::Token(seq, Sampled { token, logprobs }))
}
