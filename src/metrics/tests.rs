//! The page as a scraper reads it, and counts after known events.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::*;
use crate::ids::TokenId;
use crate::request::FinishReason;

/// A sample's labels, in order.
type Labels = Vec<(String, String)>;

/// A page, parsed by the text format's rules.
#[derive(Default)]
struct Scrape {
    kinds: BTreeMap<String, String>,
    helped: BTreeSet<String>,
    samples: Vec<(String, Labels, f64)>,
}

fn scrape(text: &str) -> Scrape {
    let mut page = Scrape::default();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && page.helped.insert(name.into()), "{name} twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(page.helped.contains(name), "{name} has no HELP before its TYPE");
            page.kinds.insert(name.into(), kind.into());
        } else {
            page.samples.push(sample(line, &page.kinds));
        }
    }
    page
}

fn sample(line: &str, kinds: &BTreeMap<String, String>) -> (String, Labels, f64) {
    let (name, rest) = line.split_once('{').unwrap();
    let legal = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
    assert!(name.chars().all(legal), "{name}");
    let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
    let is_histogram = family.is_some_and(|f| kinds.get(f).is_some_and(|k| k == "histogram"));
    assert!(is_histogram || kinds.contains_key(name), "{name} has no TYPE");
    let (labels, value) = labels(rest);
    (name.into(), labels, value.trim().parse().unwrap())
}

/// Labels up to the closing brace, unescaped, and what follows.
fn labels(mut rest: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    loop {
        let (name, value) = rest.split_once("=\"").unwrap();
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => text.push('\n'),
                    c => text.push(c),
                },
                (i, '"') => break i + 1,
                (_, c) => text.push(c),
            }
        };
        labels.push((name.into(), text));
        let (next, after) = value[end..].split_at(1);
        if next == "}" {
            return (labels, after);
        }
        assert_eq!(next, ",");
        rest = after;
    }
}

impl Scrape {
    /// The one sample of `name` that has the label `more`, if given.
    fn value(&self, name: &str, more: Option<(&str, &str)>) -> f64 {
        let has = |labels: &Labels| more.is_none_or(|m| labels.iter().any(|l| (&*l.0, &*l.1) == m));
        let mut found = self.samples.iter().filter(|s| s.0 == name && has(&s.1));
        let value = found.next().unwrap_or_else(|| panic!("no {name} {more:?}")).2;
        assert!(found.next().is_none(), "{name} {more:?} is there twice");
        value
    }

    /// Buckets are cumulative, end with +Inf, and agree with the count.
    fn check_histograms(&self) {
        for (name, _) in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let bucket = format!("{name}_bucket");
            let (mut bound, mut count) = (f64::NEG_INFINITY, 0.0);
            for (_, labels, value) in self.samples.iter().filter(|s| s.0 == bucket) {
                let le = &labels.iter().find(|l| l.0 == "le").unwrap().1;
                let le: f64 = le.replace("+Inf", "inf").parse().unwrap();
                assert!(le > bound && *value >= count, "{name} at {le}");
                (bound, count) = (le, *value);
            }
            assert_eq!(bound, f64::INFINITY, "{name}");
            assert_eq!(count, self.value(&format!("{name}_count"), None), "{name}");
        }
    }
}

fn info() -> ModelInfo {
    ModelInfo {
        model_name: "a \"model\" \\ of\nmine".into(),
        max_model_len: 2048,
        block_size: 16,
        num_blocks: 101,
        enable_prefix_caching: true,
        cache_dtype: "bfloat16".into(),
    }
}

const SECOND: u64 = 1_000_000_000;

fn finished() -> FinishedSequence {
    FinishedSequence {
        outcome: Outcome::Length,
        prompt_tokens: 40,
        cached_tokens: 32,
        completion_tokens: 11,
        max_tokens: 11,
        preemptions: 1,
        arrival_ns: 10 * SECOND,
        scheduled_ns: 11 * SECOND,
        first_token_ns: 13 * SECOND,
        last_token_ns: 18 * SECOND,
        finished_ns: 19 * SECOND,
    }
}

#[test]
fn a_fresh_page_parses_and_has_every_series() {
    let metrics = Metrics::new();
    for page in [scrape(&metrics.prometheus()), {
        metrics.describe(info());
        scrape(&metrics.prometheus())
    }] {
        page.check_histograms();
        for name in [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:prompt_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_hits_total",
            "vllm:num_preemptions_total",
            "vllm:time_to_first_token_seconds_count",
            "vllm:inter_token_latency_seconds_sum",
        ] {
            assert_eq!(page.value(name, None), 0.0);
        }
        for reason in ["stop", "length", "abort", "error", "deadline"] {
            let label = Some(("finished_reason", reason));
            assert_eq!(page.value("vllm:request_success_total", label), 0.0);
        }
    }
    assert_eq!(metrics.stats(), Stats::default());
}

#[test]
fn every_sample_has_the_models_labels_unescaped() {
    let metrics = Metrics::new();
    metrics.describe(info());
    metrics.describe(ModelInfo::default());
    let page = scrape(&metrics.prometheus());
    for (name, labels, _) in &page.samples {
        assert_eq!(labels[0], ("model_name".into(), info().model_name), "{name}");
        assert_eq!(labels[1], ("engine".into(), "0".into()), "{name}");
    }
    for label in [
        ("block_size", "16"),
        ("num_gpu_blocks", "101"),
        ("enable_prefix_caching", "True"),
        ("cache_dtype", "bfloat16"),
    ] {
        assert_eq!(page.value("vllm:cache_config_info", Some(label)), 1.0);
    }
}

/// Metrics after events whose counts the tests know.
fn known_events() -> Metrics {
    let metrics = Metrics::new();
    metrics.describe(info());
    metrics.set_live_requests(1);
    metrics.record_rejected();
    let gauges = SchedulerGauges {
        running: 3,
        waiting: 2,
        blocks_total: 100,
        blocks_used: 25,
        blocks_cached: 10,
        blocks_free: 75,
        preemptions: 4,
        prefix_cache_queries: 80,
        prefix_cache_hits: 64,
    };
    metrics.set_scheduler(&gauges);
    metrics.set_undrained_bytes(512);
    let step = |prompt_tokens, prompt_tokens_cached, generation_tokens| StepRecord {
        prompt_tokens,
        prompt_tokens_cached,
        generation_tokens,
        seconds: 0.25,
        model_seconds: 0.125,
    };
    metrics.record_step(&step(40, 32, 1));
    metrics.record_step(&step(0, 0, 10));
    metrics.record_first_token(3.0);
    metrics.record_inter_token(0.5, 1);
    metrics.record_inter_token(0.9, 9);
    metrics.record_finished(&finished());
    metrics.record_request_finished(1, 11);
    metrics
}

#[test]
fn the_snapshot_is_exact_after_known_events() {
    let metrics = known_events();
    let stats = metrics.stats();
    assert_eq!((stats.live_requests, stats.rejected_queue_full), (1, 1));
    assert_eq!((stats.prompt_tokens, stats.prompt_tokens_cached), (40, 32));
    assert_eq!((stats.generation_tokens, stats.steps), (11, 2));
    assert_eq!((stats.step_seconds, stats.last_step_seconds), (0.5, 0.25));
    assert_eq!((stats.finished_length, stats.finished_stop), (1, 0));
    assert_eq!((stats.kv_cache_usage, stats.kv_blocks_free), (0.25, 75));
}

#[test]
fn the_page_is_exact_after_known_events() {
    let metrics = known_events();
    let page = scrape(&metrics.prometheus());
    page.check_histograms();
    let values = [
        ("vllm:num_requests_running", 3.0),
        ("vllm:num_requests_waiting", 2.0),
        ("vllm:kv_cache_usage_perc", 0.25),
        ("vllm:num_preemptions_total", 4.0),
        ("vllm:prompt_tokens_total", 40.0),
        ("vllm:prompt_tokens_cached_total", 32.0),
        ("vllm:generation_tokens_total", 11.0),
        ("vllm:prefix_cache_queries_total", 80.0),
        ("vllm:prefix_cache_hits_total", 64.0),
        ("vllm:admission_rejections_total", 1.0),
        ("vllm:iteration_tokens_total_count", 2.0),
        ("vllm:iteration_tokens_total_sum", 51.0),
        ("vllm:time_to_first_token_seconds_sum", 3.0),
        ("vllm:inter_token_latency_seconds_count", 10.0),
        ("vllm:inter_token_latency_seconds_sum", 1.4),
        ("vllm:request_time_per_output_token_seconds_sum", 0.5),
        ("vllm:e2e_request_latency_seconds_sum", 9.0),
        ("vllm:request_queue_time_seconds_sum", 1.0),
        ("vllm:request_prefill_time_seconds_sum", 2.0),
        ("vllm:request_decode_time_seconds_sum", 5.0),
        ("vllm:request_inference_time_seconds_sum", 7.0),
        ("vllm:request_prompt_tokens_sum", 40.0),
        ("vllm:request_generation_tokens_sum", 11.0),
        ("vllm:request_prefill_kv_computed_tokens_sum", 8.0),
        ("vllm:request_max_num_generation_tokens_sum", 11.0),
        ("vllm:request_params_max_tokens_sum", 11.0),
        ("vllm:request_params_n_sum", 1.0),
        ("vllm:request_num_preemptions_sum", 1.0),
        ("vrust:live_requests", 1.0),
        ("vrust:undrained_bytes", 512.0),
        ("vrust:steps_total", 2.0),
        ("vrust:step_seconds_total", 0.5),
        ("vrust:model_seconds_total", 0.25),
    ];
    for (name, expected) in values {
        let value = page.value(name, None);
        assert!((value - expected).abs() < 1e-9, "{name} is {value}");
    }
    let length = Some(("finished_reason", "length"));
    assert_eq!(page.value("vllm:request_success_total", length), 1.0);
    let le = |bound| page.value("vllm:request_prompt_tokens_bucket", Some(("le", bound)));
    assert_eq!((le("20.0"), le("50.0"), le("2000.0"), le("+Inf")), (0.0, 1.0, 1.0, 1.0));
    let at = |bound| page.value("vllm:time_to_first_token_seconds_bucket", Some(("le", bound)));
    assert_eq!((at("2.5"), at("5.0")), (0.0, 1.0));
}

#[test]
fn token_buckets_end_at_the_context() {
    let metrics = Metrics::new();
    metrics.describe(info());
    let page = scrape(&metrics.prometheus());
    let bounds = page.samples.iter().filter(|s| s.0 == "vllm:request_prompt_tokens_bucket");
    let bounds: Vec<&str> = bounds.map(|s| &*s.1.last().unwrap().1).collect();
    assert_eq!(bounds[bounds.len() - 2..], ["2000.0", "+Inf"]);
}

#[test]
fn what_never_happened_is_not_observed() {
    let metrics = Metrics::new();
    let aborted = FinishedSequence {
        outcome: Outcome::Abort,
        scheduled_ns: 0,
        first_token_ns: 0,
        last_token_ns: 0,
        completion_tokens: 0,
        ..finished()
    };
    metrics.record_finished(&aborted);
    metrics.record_inter_token(1.0, 0);
    metrics.record_first_token(f64::NAN);
    let page = scrape(&metrics.prometheus());
    for (name, expected) in [
        ("vllm:e2e_request_latency_seconds_count", 1.0),
        ("vllm:request_queue_time_seconds_count", 0.0),
        ("vllm:request_prefill_time_seconds_count", 0.0),
        ("vllm:request_time_per_output_token_seconds_count", 0.0),
        ("vllm:inter_token_latency_seconds_count", 0.0),
        ("vllm:time_to_first_token_seconds_count", 0.0),
        ("vllm:request_generation_tokens_count", 1.0),
    ] {
        assert_eq!(page.value(name, None), expected, "{name}");
    }
    assert_eq!(metrics.stats().finished_abort, 1);
}

#[test]
fn an_observation_on_a_bound_belongs_below_it() {
    let histogram = Histogram::new(&[1.0, 2.0]);
    for value in [0.0, 1.0, 1.5, 2.0, 2.5] {
        histogram.observe(value, 2);
    }
    assert_eq!(histogram.counts().collect::<Vec<_>>(), [4, 4, 2]);
    assert_eq!(histogram.sum(), 14.0);
}

#[test]
fn threads_lose_no_records() {
    let metrics = Metrics::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| metrics.record_first_token(0.5)));
        }
    });
    assert_eq!(metrics.histograms.time_to_first_token.sum(), 2000.0);
}

#[test]
fn finish_reasons_have_an_outcome() {
    for (reason, outcome) in [
        (FinishReason::Eos, Outcome::Stop),
        (FinishReason::StopToken(TokenId(1)), Outcome::Stop),
        (FinishReason::StopString("x".into()), Outcome::Stop),
        (FinishReason::Length, Outcome::Length),
        (FinishReason::Abort, Outcome::Abort),
        (FinishReason::Deadline, Outcome::Deadline),
    ] {
        assert_eq!(Outcome::from(&reason), outcome);
        assert_eq!(reason.as_str(), outcome.as_str());
    }
}
