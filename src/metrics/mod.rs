//! Metrics: counters, gauges and histograms of one engine, with vLLM's names.
//!
//! The engine's worker records, any thread reads; every record is a few relaxed atomic additions,
//! so neither ever waits for the other. In the order of a request's life:
//!
//! ```text
//! record_rejected                         submit
//! set_scheduler, record_step              each step
//! record_first_token, record_inter_token  each token (or run of tokens) of a choice
//! record_finished                         each choice
//! record_request_finished                 the request
//! ```

mod histogram;
mod prometheus;
mod stats;
#[cfg(test)]
mod tests;

pub use stats::{FinishedSequence, ModelInfo, Outcome, SchedulerGauges, Stats, StepRecord};

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use histogram::Histogram;

/// The metrics of one engine.
#[derive(Debug)]
pub struct Metrics {
    info: OnceLock<ModelInfo>,
    running: Cell,
    waiting: Cell,
    live_requests: Cell,
    token_rows: Cell,
    logits_rows: Cell,
    blocks_total: Cell,
    blocks_used: Cell,
    blocks_cached: Cell,
    blocks_free: Cell,
    prefix_cache_queries: Cell,
    prefix_cache_hits: Cell,
    preemptions: Cell,
    prompt_tokens: Cell,
    prompt_tokens_cached: Cell,
    generation_tokens: Cell,
    /// By `Outcome`, in the order of `Outcome::ALL`.
    finished: [Cell; Outcome::ALL.len()],
    rejected_queue_full: Cell,
    undrained_bytes: Cell,
    steps: Cell,
    step_nanos: Cell,
    model_nanos: Cell,
    last_step_nanos: Cell,
    histograms: Histograms,
}

/// The histograms, in vLLM's units: seconds, tokens, counts.
#[derive(Debug)]
struct Histograms {
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    prefill_kv_computed_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
    max_num_generation_tokens: Histogram,
    num_preemptions: Histogram,
    iteration_tokens: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All zero.
    pub fn new() -> Self {
        Self {
            info: OnceLock::new(),
            running: Cell::default(),
            waiting: Cell::default(),
            live_requests: Cell::default(),
            token_rows: Cell::default(),
            logits_rows: Cell::default(),
            blocks_total: Cell::default(),
            blocks_used: Cell::default(),
            blocks_cached: Cell::default(),
            blocks_free: Cell::default(),
            prefix_cache_queries: Cell::default(),
            prefix_cache_hits: Cell::default(),
            preemptions: Cell::default(),
            prompt_tokens: Cell::default(),
            prompt_tokens_cached: Cell::default(),
            generation_tokens: Cell::default(),
            finished: Default::default(),
            rejected_queue_full: Cell::default(),
            undrained_bytes: Cell::default(),
            steps: Cell::default(),
            step_nanos: Cell::default(),
            model_nanos: Cell::default(),
            last_step_nanos: Cell::default(),
            histograms: Histograms::new(),
        }
    }

    /// Sets the labels, once the model is loaded. Only the first call counts.
    pub fn describe(&self, info: ModelInfo) {
        let _ = self.info.set(info);
    }

    /// Requests that have not had their last event, now.
    pub fn set_live_requests(&self, live: u64) {
        self.live_requests.set(live);
    }

    /// Rows that the backend computed since the engine's start: of tokens, and of logits.
    pub fn set_backend_rows(&self, token_rows: u64, logits_rows: u64) {
        self.token_rows.set(token_rows);
        self.logits_rows.set(logits_rows);
    }

    /// A request was turned away because the waiting queue was full.
    pub fn record_rejected(&self) {
        self.rejected_queue_full.add(1);
    }

    /// The scheduler's state now.
    pub fn set_scheduler(&self, gauges: &SchedulerGauges) {
        self.running.set(gauges.running as u64);
        self.waiting.set(gauges.waiting as u64);
        self.blocks_total.set(gauges.blocks_total as u64);
        self.blocks_used.set(gauges.blocks_used as u64);
        self.blocks_cached.set(gauges.blocks_cached as u64);
        self.blocks_free.set(gauges.blocks_free as u64);
        self.preemptions.set(gauges.preemptions);
        self.prefix_cache_queries.set(gauges.prefix_cache_queries);
        self.prefix_cache_hits.set(gauges.prefix_cache_hits);
    }

    /// The worker is gone: nothing runs, waits or holds blocks any more.
    pub fn set_ended(&self) {
        self.running.set(0);
        self.waiting.set(0);
        self.blocks_used.set(0);
        self.blocks_cached.set(0);
        self.blocks_free.set(self.blocks_total.get());
    }

    /// Bytes of events that no host has drained, over all queues.
    pub fn set_undrained_bytes(&self, bytes: u64) {
        self.undrained_bytes.set(bytes);
    }

    /// A step is done.
    pub fn record_step(&self, step: &StepRecord) {
        self.steps.add(1);
        self.prompt_tokens.add(step.prompt_tokens);
        self.prompt_tokens_cached.add(step.prompt_tokens_cached);
        self.generation_tokens.add(step.generation_tokens);
        // Saturates: a float that is negative, huge or NaN is no crash.
        let nanos = (step.seconds * 1e9) as u64;
        self.step_nanos.add(nanos);
        self.model_nanos.add((step.model_seconds * 1e9) as u64);
        self.last_step_nanos.set(nanos);
        let tokens = step.prompt_tokens + step.generation_tokens;
        self.histograms.iteration_tokens.observe(tokens as f64, 1);
    }

    /// A choice got its first token, `seconds` after its request arrived.
    pub fn record_first_token(&self, seconds: f64) {
        self.histograms.time_to_first_token.observe(seconds, 1);
    }

    /// A choice got `tokens` more, `seconds` after the one before them.
    pub fn record_inter_token(&self, seconds: f64, tokens: u64) {
        if tokens > 0 {
            self.histograms.inter_token_latency.observe(seconds / tokens as f64, tokens);
        }
    }

    /// A choice ended.
    pub fn record_finished(&self, sequence: &FinishedSequence) {
        self.finished[sequence.outcome as usize].add(1);
        self.histograms.observe_finished(sequence);
    }

    /// `choices` of a request ended before they were ever scheduled: they count, and no more.
    pub fn record_unscheduled(&self, outcome: Outcome, choices: u32) {
        self.finished[outcome as usize].add(u64::from(choices));
    }

    /// A request ended, with all its `n` choices, the longest of `max_generation_tokens` tokens.
    pub fn record_request_finished(&self, n: u32, max_generation_tokens: u64) {
        self.histograms.params_n.observe(f64::from(n), 1);
        self.histograms.max_num_generation_tokens.observe(max_generation_tokens as f64, 1);
    }

    /// A snapshot.
    pub fn stats(&self) -> Stats {
        let (used, total) = (self.blocks_used.get(), self.blocks_total.get());
        let finished = |outcome: Outcome| self.finished[outcome as usize].get();
        Stats {
            num_requests_running: self.running.get(),
            num_requests_waiting: self.waiting.get(),
            live_requests: self.live_requests.get(),
            token_rows: self.token_rows.get(),
            logits_rows: self.logits_rows.get(),
            kv_blocks_total: total,
            kv_blocks_used: used,
            kv_blocks_cached: self.blocks_cached.get(),
            kv_blocks_free: self.blocks_free.get(),
            kv_cache_usage: if total == 0 { 0.0 } else { used as f64 / total as f64 },
            prefix_cache_queries: self.prefix_cache_queries.get(),
            prefix_cache_hits: self.prefix_cache_hits.get(),
            num_preemptions: self.preemptions.get(),
            prompt_tokens: self.prompt_tokens.get(),
            prompt_tokens_cached: self.prompt_tokens_cached.get(),
            generation_tokens: self.generation_tokens.get(),
            finished_stop: finished(Outcome::Stop),
            finished_length: finished(Outcome::Length),
            finished_abort: finished(Outcome::Abort),
            finished_deadline: finished(Outcome::Deadline),
            finished_error: finished(Outcome::Error),
            rejected_queue_full: self.rejected_queue_full.get(),
            undrained_bytes: self.undrained_bytes.get(),
            steps: self.steps.get(),
            step_seconds: self.step_nanos.get() as f64 * 1e-9,
            model_seconds: self.model_nanos.get() as f64 * 1e-9,
            last_step_seconds: self.last_step_nanos.get() as f64 * 1e-9,
        }
    }

    /// All metrics in Prometheus' text format.
    pub fn prometheus(&self) -> String {
        prometheus::render(self)
    }
}

impl Histograms {
    fn new() -> Self {
        Self {
            time_to_first_token: Histogram::new(FIRST_TOKEN_SECONDS),
            inter_token_latency: Histogram::new(TOKEN_SECONDS),
            time_per_output_token: Histogram::new(TOKEN_SECONDS),
            e2e_latency: Histogram::new(REQUEST_SECONDS),
            queue_time: Histogram::new(REQUEST_SECONDS),
            inference_time: Histogram::new(REQUEST_SECONDS),
            prefill_time: Histogram::new(REQUEST_SECONDS),
            decode_time: Histogram::new(REQUEST_SECONDS),
            prompt_tokens: Histogram::new(TOKENS),
            generation_tokens: Histogram::new(TOKENS),
            prefill_kv_computed_tokens: Histogram::new(TOKENS),
            params_n: Histogram::new(PARAMS_N),
            params_max_tokens: Histogram::new(TOKENS),
            max_num_generation_tokens: Histogram::new(TOKENS),
            num_preemptions: Histogram::new(PREEMPTIONS),
            iteration_tokens: Histogram::new(ITERATION_TOKENS),
        }
    }

    fn observe_finished(&self, s: &FinishedSequence) {
        let span = |histogram: &Histogram, from: u64, to: u64| {
            if from > 0 && to > 0 {
                histogram.observe(to.saturating_sub(from) as f64 * 1e-9, 1);
            }
        };
        span(&self.e2e_latency, s.arrival_ns, s.finished_ns);
        span(&self.queue_time, s.arrival_ns, s.scheduled_ns);
        span(&self.prefill_time, s.scheduled_ns, s.first_token_ns);
        span(&self.decode_time, s.first_token_ns, s.last_token_ns);
        span(&self.inference_time, s.scheduled_ns, s.last_token_ns);
        if s.completion_tokens > 1 && s.first_token_ns > 0 {
            let decode = s.last_token_ns.saturating_sub(s.first_token_ns) as f64 * 1e-9;
            self.time_per_output_token.observe(decode / (s.completion_tokens - 1) as f64, 1);
        }
        let computed = s.prompt_tokens.saturating_sub(s.cached_tokens);
        self.prompt_tokens.observe(s.prompt_tokens as f64, 1);
        self.generation_tokens.observe(s.completion_tokens as f64, 1);
        self.prefill_kv_computed_tokens.observe(computed as f64, 1);
        self.params_max_tokens.observe(s.max_tokens as f64, 1);
        self.num_preemptions.observe(s.preemptions as f64, 1);
    }
}

const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's buckets start at 10 ms; small models need the ones below.
const TOKEN_SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Shown up to `max_model_len`.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5,
    5e5, 1e6, 2e6, 5e6, 1e7,
];
const ITERATION_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const PARAMS_N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];

/// One number. Relaxed: it orders nothing else.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
