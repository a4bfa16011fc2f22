//! Prometheus' text format, version 0.0.4.

use std::fmt::Write as _;

use super::histogram::Histogram;
use super::stats::{ModelInfo, Outcome, Stats};
use super::{Metrics, TOKENS};

/// All metrics. Names, labels and help are vLLM's where it has the metric; ours begin `vrust:`.
pub(super) fn render(metrics: &Metrics) -> String {
    let unknown = ModelInfo::default();
    let info = metrics.info.get().unwrap_or(&unknown);
    let mut page = Page {
        text: String::new(),
        labels: format!("model_name=\"{}\",engine=\"0\"", escape(&info.model_name)),
        max_model_len: info.max_model_len,
    };
    let stats = metrics.stats();
    gauges(&mut page, &stats);
    if metrics.info.get().is_some() {
        cache_config_info(&mut page, info);
    }
    counters(&mut page, &stats);
    finished(&mut page, metrics);
    latencies(&mut page, metrics);
    sizes(&mut page, metrics);
    page.text
}

fn gauges(page: &mut Page, stats: &Stats) {
    page.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        stats.num_requests_running as f64,
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        stats.num_requests_waiting as f64,
    );
    let by_reason = "vllm:num_requests_waiting_by_reason";
    page.header(by_reason, "gauge", "Number of waiting requests by reason.");
    // Nothing in this engine waits for anything but room.
    page.sample(by_reason, "reason=\"capacity\"", stats.num_requests_waiting as f64);
    page.sample(by_reason, "reason=\"deferred\"", 0.0);
    page.gauge(
        "vllm:kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        stats.kv_cache_usage,
    );
    page.gauge(
        "vrust:live_requests",
        "Number of requests accepted and not ended.",
        stats.live_requests as f64,
    );
    page.gauge(
        "vrust:undrained_bytes",
        "Bytes of events that no host has drained.",
        stats.undrained_bytes as f64,
    );
}

fn cache_config_info(page: &mut Page, info: &ModelInfo) {
    let name = "vllm:cache_config_info";
    page.header(name, "gauge", "Information of the LLMEngine CacheConfig");
    let labels = format!(
        "block_size=\"{}\",num_gpu_blocks=\"{}\",enable_prefix_caching=\"{}\",cache_dtype=\"{}\"",
        info.block_size,
        info.num_blocks,
        // Labels are text that vLLM's Python prints.
        if info.enable_prefix_caching { "True" } else { "False" },
        escape(&info.cache_dtype),
    );
    page.sample(name, &labels, 1.0);
}

fn counters(page: &mut Page, stats: &Stats) {
    let counters = [
        ("vllm:prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens),
        (
            "vllm:prompt_tokens_cached",
            "Number of prompt tokens found in the prefix cache.",
            stats.prompt_tokens_cached,
        ),
        (
            "vllm:generation_tokens",
            "Number of generation tokens processed.",
            stats.generation_tokens,
        ),
        (
            "vllm:prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            stats.prefix_cache_queries,
        ),
        (
            "vllm:prefix_cache_hits",
            "Prefix cache hits, in terms of number of cached tokens.",
            stats.prefix_cache_hits,
        ),
        (
            "vllm:num_preemptions",
            "Cumulative number of preemption from the engine.",
            stats.num_preemptions,
        ),
        ("vrust:steps", "Number of engine steps.", stats.steps),
    ];
    for (name, help, value) in counters {
        page.counter(name, help, value as f64);
    }
    page.counter("vrust:step_seconds", "Seconds spent in engine steps.", stats.step_seconds);
    let help = "Seconds spent in the model and the sampler.";
    page.counter("vrust:model_seconds", help, stats.model_seconds);
}

fn finished(page: &mut Page, metrics: &Metrics) {
    let name = "vllm:request_success_total";
    page.header(name, "counter", "Count of successfully processed requests.");
    for outcome in Outcome::ALL {
        let label = format!("finished_reason=\"{}\"", outcome.as_str());
        page.sample(name, &label, metrics.finished[outcome as usize].get() as f64);
    }
    let name = "vllm:admission_rejections_total";
    page.header(name, "counter", "Count of requests turned away.");
    page.sample(name, "reason=\"queue_full\"", metrics.rejected_queue_full.get() as f64);
}

fn latencies(page: &mut Page, metrics: &Metrics) {
    let h = &metrics.histograms;
    let histograms = [
        (
            "vllm:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            &h.time_to_first_token,
        ),
        (
            "vllm:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            &h.inter_token_latency,
        ),
        (
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time per output token of a request in seconds.",
            &h.time_per_output_token,
        ),
        (
            "vllm:e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            &h.e2e_latency,
        ),
        (
            "vllm:request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            &h.queue_time,
        ),
        (
            "vllm:request_inference_time_seconds",
            "Histogram of time spent in RUNNING phase for request.",
            &h.inference_time,
        ),
        (
            "vllm:request_prefill_time_seconds",
            "Histogram of time spent in PREFILL phase for request.",
            &h.prefill_time,
        ),
        (
            "vllm:request_decode_time_seconds",
            "Histogram of time spent in DECODE phase for request.",
            &h.decode_time,
        ),
    ];
    for (name, help, histogram) in histograms {
        page.histogram(name, help, histogram);
    }
}

fn sizes(page: &mut Page, metrics: &Metrics) {
    let h = &metrics.histograms;
    let histograms = [
        ("vllm:request_prompt_tokens", "Number of prefill tokens processed.", &h.prompt_tokens),
        (
            "vllm:request_generation_tokens",
            "Number of generation tokens processed.",
            &h.generation_tokens,
        ),
        (
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            &h.prefill_kv_computed_tokens,
        ),
        (
            "vllm:request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            &h.max_num_generation_tokens,
        ),
        (
            "vllm:request_params_max_tokens",
            "Histogram of the max_tokens request parameter.",
            &h.params_max_tokens,
        ),
        ("vllm:request_params_n", "Histogram of the n request parameter.", &h.params_n),
        (
            "vllm:request_num_preemptions",
            "Histogram of preemptions of a request.",
            &h.num_preemptions,
        ),
        (
            "vllm:iteration_tokens_total",
            "Histogram of number of tokens per engine_step.",
            &h.iteration_tokens,
        ),
    ];
    for (name, help, histogram) in histograms {
        page.histogram(name, help, histogram);
    }
}

/// The text so far.
struct Page {
    text: String,
    /// Labels of every sample, without braces.
    labels: String,
    max_model_len: usize,
}

impl Page {
    fn header(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One line; `more` are labels besides the common ones.
    fn sample(&mut self, name: &str, more: &str, value: f64) {
        let comma = if more.is_empty() { "" } else { "," };
        let labels = &self.labels;
        let _ = writeln!(self.text, "{name}{{{labels}{comma}{more}}} {value:?}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.header(name, "gauge", help);
        self.sample(name, "", value);
    }

    /// `name` comes without `_total`.
    fn counter(&mut self, name: &str, help: &str, value: f64) {
        let name = format!("{name}_total");
        self.header(&name, "counter", help);
        self.sample(&name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.header(name, "histogram", help);
        let bounds = histogram.bounds();
        // Buckets that no sequence can reach are left out; the last one holds their counts anyway.
        let is_shown = |&&bound: &&f64| bound <= self.max_model_len as f64;
        let shown = match bounds == TOKENS && self.max_model_len > 0 {
            true => bounds.iter().take_while(is_shown).count(),
            false => bounds.len(),
        };
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (i, in_bucket) in histogram.counts().enumerate() {
            count += in_bucket;
            if i < shown {
                self.sample(&bucket, &format!("le=\"{:?}\"", bounds[i]), count as f64);
            }
        }
        self.sample(&bucket, "le=\"+Inf\"", count as f64);
        self.sample(&format!("{name}_sum"), "", histogram.sum());
        self.sample(&format!("{name}_count"), "", count as f64);
    }
}

/// A label's value: backslash, quote and newline are escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
