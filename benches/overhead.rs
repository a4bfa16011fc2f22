//! What the engine costs beside the model: scheduling and output per step, sampling per row, and
//! the way from submit to the first event.
//!
//! `cargo bench --bench overhead [-- sampling]`

#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark prints")]

mod support;

use std::time::Instant;

use support::{Folder, TINY, dummy, median, prompt, ready, request, spread, wait};
use vrust::ids::TokenId;
use vrust::request::{Limits, SamplingDefaults, SamplingParams};
use vrust::sampling::SequenceSampler;

const SEQUENCES: usize = 256;

fn main() {
    if std::env::args().any(|a| a == "sampling") {
        return sampling();
    }
    step_overhead();
    first_event();
    sampling();
}

/// Scheduler + output of a step with 256 running sequences, greedy, vocabulary 1,024.
fn step_overhead() {
    let folder = Folder::new(TINY);
    let mut options = dummy(&folder);
    options.max_num_seqs = SEQUENCES;
    options.num_kv_blocks = Some(SEQUENCES * 40);
    let engine = ready(options);
    let queue = engine.default_queue();
    let mut outside = Vec::new();
    for round in 0..7 {
        for stream in 0..SEQUENCES {
            let prompt = prompt(round * 1000 + stream, 8);
            engine.submit(request(prompt, 500), queue).expect("room");
        }
        // Only steps in which all 256 run are counted.
        while engine.stats().num_requests_running < SEQUENCES as u64 {
            std::hint::spin_loop();
        }
        let before = engine.stats();
        let mut events = Vec::new();
        while engine.stats().steps < before.steps + 300 {
            queue.drain(None, 4096, &mut events).expect("the only poller");
            events.clear();
        }
        let after = engine.stats();
        let total = after.step_seconds - before.step_seconds;
        let model = after.model_seconds - before.model_seconds;
        outside.push(1e6 * (total - model) / (after.steps - before.steps) as f64);
        engine.abort_all();
        wait_idle(&engine);
    }
    let figure = spread(&mut outside, 0);
    println!("scheduler + output, 256 sequences: {figure} us a step (target under 300)");
}

fn wait_idle(engine: &vrust::engine::Engine) {
    let mut events = Vec::new();
    while engine.stats().live_requests > 0 {
        let wait = std::time::Duration::from_millis(5);
        engine.default_queue().drain(Some(wait), 4096, &mut events).expect("the only poller");
        events.clear();
    }
    engine.default_queue().drain(Some(std::time::Duration::ZERO), 4096, &mut events).expect("only");
}

/// From submit to the first event, an idle engine and a model of one tiny layer.
fn first_event() {
    let folder = Folder::new(TINY);
    let mut options = dummy(&folder);
    options.num_kv_blocks = Some(512);
    let engine = ready(options);
    let queue = engine.create_queue(vrust::engine::QueueOptions { max_undrained_bytes: 1 << 20 });
    let mut took = Vec::new();
    for round in 0..2_000 {
        let request = request(prompt(round, 4), 1);
        let began = Instant::now();
        engine.submit(request, &queue).expect("room");
        let mut events = Vec::new();
        queue.drain(None, 1, &mut events).expect("the only poller");
        took.push(began.elapsed().as_secs_f64() * 1e6);
        if !events[0].last {
            wait(&queue, 1);
        }
    }
    took.sort_by(f64::total_cmp);
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("submit to first event: median {p50:.0} us, 99th percentile {p99:.0} us (target 100)");
}

/// Microseconds a row.
fn sampling() {
    for vocab in [32_000usize, 151_936] {
        let logits = logits(vocab);
        let cases: [(&str, SamplingParams); 8] = [
            ("greedy", SamplingParams { temperature: Some(0.0), ..Default::default() }),
            (
                "greedy + 5 logprobs",
                SamplingParams { temperature: Some(0.0), logprobs: Some(5), ..Default::default() },
            ),
            (
                "top-k 50, top-p 0.95",
                SamplingParams {
                    temperature: Some(0.8),
                    top_p: Some(0.95),
                    top_k: Some(50),
                    ..Default::default()
                },
            ),
            ("temperature 1", SamplingParams { temperature: Some(1.0), ..Default::default() }),
            ("top-k 2000", SamplingParams { top_k: Some(2000), ..Default::default() }),
            ("min-p 0.001", SamplingParams { min_p: Some(0.001), ..Default::default() }),
            ("top-p 0.9 alone", SamplingParams { top_p: Some(0.9), ..Default::default() }),
            (
                "greedy, penalties",
                SamplingParams {
                    temperature: Some(0.0),
                    repetition_penalty: Some(1.1),
                    frequency_penalty: Some(0.5),
                    presence_penalty: Some(0.5),
                    ..Default::default()
                },
            ),
        ];
        for (name, params) in cases {
            let figure = sample_row(&logits, &params);
            println!("sampling, vocabulary {vocab}: {name}: {figure} us a row");
        }
    }
}

fn sample_row(logits: &[f32], params: &SamplingParams) -> String {
    let limits = Limits { vocab_size: logits.len(), max_model_len: 4096, max_logprobs: 20 };
    let params = params.resolve(&SamplingDefaults::default(), &limits, false, 4).expect("valid");
    let prompt = [TokenId(1); 4];
    let mut sampler = SequenceSampler::new(&params, &prompt, &[], Vec::new(), 7);
    let mut row = logits.to_vec();
    let mut rounds = Vec::new();
    for _ in 0..5 {
        let mut took = Vec::new();
        for position in 0..100 {
            row.copy_from_slice(logits);
            let began = Instant::now();
            let sampled = sampler.sample(&mut row, position).expect("finite logits");
            took.push(began.elapsed().as_secs_f64() * 1e6);
            sampler.accept(sampled.token);
        }
        rounds.push(median(&mut took));
    }
    spread(&mut rounds, 1)
}

/// Roughly normal, with a few likely tokens, as a model's are.
fn logits(vocab: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..vocab).map(|_| 2.5 * ((0..6).map(|_| uniform()).sum::<f32>() - 3.0)).collect()
}
