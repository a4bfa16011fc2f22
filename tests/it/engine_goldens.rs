//! Hugging Face transformers is the oracle: greedy tokens, logprobs and prompt logprobs of every
//! architecture, through the whole engine.

use serde_json::Value;
use vrust::config::{BackendKind, EngineOptions};
use vrust::request::TokenLogprobs;

use crate::engine_support::{fixture, greedy, options, ready, run};

/// Largest difference of a logprob in float32.
const TOLERANCE: f64 = 1e-3;

pub(crate) const CASES: &[&str] = &[
    "gpt2",
    "gpt2-base",
    "llama-f16",
    "llama2",
    "llama2-sharded",
    "llama3",
    "llama3-new",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
];

#[test]
fn the_reference_backend_agrees_with_transformers() {
    check_all(|o| o.backend = BackendKind::Reference);
}

#[test]
fn the_cpu_backend_agrees_with_transformers() {
    check_all(|_| ());
}

#[test]
fn every_instruction_path_agrees_with_transformers() {
    for isa in vrust::backend::cpu::isa::ALL {
        let mut probe = options("llama2");
        probe.cpu_isa = Some(isa);
        let engine = vrust::engine::Engine::create(probe).unwrap();
        match engine.wait_ready(None) {
            Ok(_) => check_all(|o| o.cpu_isa = Some(isa)),
            Err(e) => println!("{isa:?} is not run on this machine: {e}"),
        }
    }
}

pub(crate) fn check_all(change: impl Fn(&mut EngineOptions)) {
    for case in CASES {
        let mut options = options(case);
        options.dtype = vrust::config::ModelDType::Float32;
        options.max_num_batched_tokens = 33;
        change(&mut options);
        let worst = check_case(case, options);
        println!("{case}: largest logprob difference {worst:.2e}");
    }
}

/// Runs all prompts of a case together; returns the largest difference of a logprob.
fn check_case(case: &str, options: EngineOptions) -> f64 {
    let golden = std::fs::read(fixture(case).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    let engine = ready(options);
    let requests = prompts.iter().map(|prompt| {
        let ids = ids(&prompt["prompt_token_ids"]);
        let count = ids_of(&prompt["greedy_token_ids"]).count() as u32;
        let mut request = greedy(&ids, count);
        request.params.logprobs = Some(5);
        request.params.prompt_logprobs = Some(3);
        request
    });
    let outcomes = run(&engine, requests.collect());
    let mut worst = 0.0f64;
    for (prompt, outcome) in prompts.iter().zip(&outcomes) {
        let choice = outcome.only();
        let what = format!("{case}, prompt of {}", outcome.choices[&0].tokens.len());
        assert_eq!(choice.tokens, ids(&prompt["greedy_token_ids"]), "{what}");
        let steps = prompt["steps"].as_array().unwrap();
        worst = worst.max(compare(steps, &choice.logprobs, &what));
        let places = prompt["prompt_logprobs"].as_array().unwrap();
        assert_eq!(outcome.prompt_logprobs.len(), places.len());
        assert!(outcome.prompt_logprobs[0].chosen.is_none());
        worst = worst.max(compare(&places[1..], &outcome.prompt_logprobs[1..], &what));
    }
    worst
}

fn compare(golden: &[Value], got: &[TokenLogprobs], what: &str) -> f64 {
    assert_eq!(golden.len(), got.len(), "{what}");
    let mut worst = 0.0f64;
    for (index, (golden, got)) in golden.iter().zip(got).enumerate() {
        let chosen = got.chosen.unwrap();
        assert_eq!(u64::from(chosen.token_id.0), golden["id"].as_u64().unwrap(), "{what}");
        let mut pairs = vec![(f64::from(chosen.logprob), golden["logprob"].as_f64().unwrap())];
        let top = golden["top"].as_array().unwrap();
        assert_eq!(top.len(), got.top.len(), "{what}");
        for (top, got) in top.iter().zip(&got.top) {
            pairs.push((f64::from(got.logprob), top[1].as_f64().unwrap()));
        }
        for (got, expected) in pairs {
            let difference = (got - expected).abs();
            assert!(difference < TOLERANCE, "{what}, place {index}: {got} for {expected}");
            worst = worst.max(difference);
        }
        if let Some(rank) = golden["rank"].as_u64() {
            assert_eq!(u64::from(chosen.rank), rank, "{what}, place {index}");
        }
    }
    worst
}

fn ids(value: &Value) -> Vec<u32> {
    ids_of(value).collect()
}

fn ids_of(value: &Value) -> impl Iterator<Item = u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32)
}
