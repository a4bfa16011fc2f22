//! What the worker tells the metrics.

use std::time::{Duration, Instant};

use super::output::Choice;
use super::worker::{Live, Worker};
use crate::metrics::{FinishedSequence, Metrics, Outcome, SchedulerGauges, StepRecord};
use crate::os::monotonic_ns;

/// Figures of the step under way.
#[derive(Default)]
pub(crate) struct StepFigures {
    record: StepRecord,
    /// When the last step was over.
    over: Option<Instant>,
}

impl StepFigures {
    /// The model and the sampler took this long.
    pub(crate) fn model(&mut self, took: Duration) {
        self.record.model_seconds = took.as_secs_f64();
    }

    /// A choice got a token, `previous_ns` after the one before it (0: it is the first).
    pub(crate) fn token(&mut self, metrics: &Metrics, choice: &Choice, previous_ns: u64) {
        self.record.generation_tokens += 1;
        let now = choice.times.last_token_ns;
        if previous_ns == 0 {
            self.record.prompt_tokens += u64::from(choice.usage.prompt_tokens);
            self.record.prompt_tokens_cached += u64::from(choice.usage.cached_tokens);
            metrics.record_first_token(seconds(choice.times.arrival_ns, now));
        } else {
            metrics.record_inter_token(seconds(previous_ns, now), 1);
        }
    }
}

impl Worker {
    /// A step that began at `began` is over.
    pub(crate) fn record_step(&mut self, began: Instant) {
        let mut record = std::mem::take(&mut self.figures.record);
        let now = Instant::now();
        // It may have begun beside the one before.
        let began = self.figures.over.replace(now).map_or(began, |over| over.max(began));
        record.seconds = now.duration_since(began).as_secs_f64();
        self.shared.metrics.record_step(&record);
    }

    /// Refreshes what is true now.
    pub(crate) fn record_gauges(&self) {
        let stats = self.scheduler.stats();
        self.shared.metrics.set_scheduler(&SchedulerGauges {
            running: stats.running,
            waiting: stats.waiting,
            blocks_total: stats.blocks.total,
            blocks_used: stats.blocks.used,
            blocks_cached: stats.blocks.cached,
            blocks_free: stats.blocks.free,
            preemptions: stats.preemptions,
            prefix_cache_queries: stats.prefix_cache_queries,
            prefix_cache_hits: stats.prefix_cache_hits,
        });
        let counters = self.runner.counters();
        self.shared.metrics.set_backend_rows(counters.token_rows, counters.logits_rows);
    }

    /// A choice ended.
    pub(crate) fn record_choice(&self, choice: &Choice, outcome: Outcome) {
        self.shared.metrics.record_finished(&FinishedSequence {
            outcome,
            prompt_tokens: u64::from(choice.usage.prompt_tokens),
            cached_tokens: u64::from(choice.usage.cached_tokens),
            completion_tokens: u64::from(choice.usage.completion_tokens),
            max_tokens: choice.params.max_tokens as u64,
            preemptions: choice.preemptions,
            arrival_ns: choice.times.arrival_ns,
            scheduled_ns: choice.times.scheduled_ns,
            first_token_ns: choice.times.first_token_ns,
            last_token_ns: choice.times.last_token_ns,
            finished_ns: monotonic_ns(),
        });
    }

    /// A request ended with its last choice.
    pub(crate) fn record_request(&self, live: &Live) {
        self.shared.metrics.record_request_finished(live.ticket.num_choices, live.longest.into());
    }
}

fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 * 1e-9
}
