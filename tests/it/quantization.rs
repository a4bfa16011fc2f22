//! What quantization costs: logprobs and greedy choices against float32, on the demo model's own
//! answers and on random text through the oracles' checkpoints.

use vrust::config::{EngineOptions, ModelDType, Quantization};
use vrust::engine::Engine;
use vrust::error::ErrorKind;
use vrust::request::{ChatInput, Input, Request};

use crate::engine_support::{Random, fixture, greedy, ready, run};

/// How far an engine is from float32.
#[derive(Clone, Copy, Debug)]
struct Loss {
    /// Mean of |difference| of the logprobs of the text's own tokens.
    logprob: f64,
    /// Share of places where the most likely token is another one.
    disagreement: f64,
}

fn demo(dtype: ModelDType, quantization: Option<Quantization>) -> Engine {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
    engine(EngineOptions::new(folder), dtype, quantization)
}

fn oracle(case: &str, dtype: ModelDType, quantization: Option<Quantization>) -> Engine {
    let mut options = EngineOptions::new(fixture(case));
    options.skip_tokenizer = true;
    engine(options, dtype, quantization)
}

fn engine(
    mut options: EngineOptions,
    dtype: ModelDType,
    quantization: Option<Quantization>,
) -> Engine {
    (options.dtype, options.quantization) = (dtype, quantization);
    options.num_kv_blocks = Some(1024);
    options.cpu_threads = Some(2);
    ready(options)
}

/// The demo model's own conversations: prompt and greedy answer, as token ids.
fn conversations(engine: &Engine) -> Vec<Vec<u32>> {
    let file = include_bytes!("../../examples/demo-model/training/heldout.json");
    let items: Vec<serde_json::Value> = serde_json::from_slice(file).unwrap();
    let chat = |item: &serde_json::Value| {
        let messages = serde_json::json!([{"role": "user", "content": item["prompt"]}]);
        let mut request = Request::new(Input::Chat(ChatInput {
            messages,
            tools: None,
            template_kwargs: None,
            add_generation_prompt: true,
            continue_final_message: false,
        }));
        request.params.temperature = Some(0.0);
        request.params.prompt_logprobs = Some(0);
        request
    };
    let outcomes = run(engine, items.iter().map(chat).collect());
    outcomes.iter().map(|o| [&o.prompt_tokens[..], &o.only().tokens].concat()).collect()
}

/// Of every token after the first: its logprob, and the most likely token at its place.
fn score(engine: &Engine, texts: &[Vec<u32>]) -> Vec<(f64, u32)> {
    let requests = texts.iter().map(|text| {
        let mut request = greedy(text, 1);
        request.params.prompt_logprobs = Some(1);
        request
    });
    let mut scores = Vec::new();
    for outcome in run(engine, requests.collect()) {
        for place in &outcome.prompt_logprobs[1..] {
            let chosen = place.chosen.unwrap();
            scores.push((f64::from(chosen.logprob), place.top[0].token_id.0));
        }
    }
    scores
}

fn loss(exact: &[(f64, u32)], other: &[(f64, u32)]) -> Loss {
    assert_eq!(exact.len(), other.len());
    let count = exact.len() as f64;
    let pairs = || exact.iter().zip(other);
    let logprob = pairs().map(|(a, b)| (a.0 - b.0).abs()).sum::<f64>() / count;
    let disagreement = pairs().filter(|(a, b)| a.1 != b.1).count() as f64 / count;
    Loss { logprob, disagreement }
}

/// Checks each precision against float32; `bounds` are of bfloat16, int8 and int4.
fn check(
    what: &str,
    make: &dyn Fn(ModelDType, Option<Quantization>) -> Engine,
    texts: &[Vec<u32>],
    bounds: [(f64, f64); 3],
) {
    let exact = score(&make(ModelDType::Float32, None), texts);
    let kinds = [None, Some(Quantization::Int8), Some(Quantization::Int4)];
    for (quantization, (logprob, disagreement)) in kinds.into_iter().zip(bounds) {
        let found = loss(&exact, &score(&make(ModelDType::BFloat16, quantization), texts));
        let name = quantization.map_or("bfloat16", Quantization::name);
        println!("{what}, {name}, {} tokens: {found:?}", exact.len());
        assert!(found.logprob < logprob, "{what}, {name}: {found:?}");
        assert!(found.disagreement < disagreement, "{what}, {name}: {found:?}");
        assert!(found.logprob > 0.0, "{what}, {name}: nothing was rounded");
    }
}

#[test]
fn the_demo_model_hardly_notices() {
    let texts = conversations(&demo(ModelDType::Float32, None));
    check("demo model", &demo, &texts, [(0.02, 0.01), (0.05, 0.02), (0.25, 0.15)]);
}

#[test]
fn the_oracles_hardly_notice() {
    for case in ["qwen3-bf16-gentle", "llama-bf16-gentle"] {
        let mut random = Random(5);
        let mut text = || (0..90).map(|_| 3 + random.range(0, 200) as u32).collect();
        let texts: Vec<Vec<u32>> = (0..8).map(|_| text()).collect();
        let make = |dtype, quantization| oracle(case, dtype, quantization);
        check(case, &make, &texts, [(0.02, 0.1), (0.05, 0.1), (0.3, 0.5)]);
    }
}

#[test]
fn info_says_it_and_the_reference_backend_refuses() {
    let info = demo(ModelDType::Auto, Some(Quantization::Int4)).info().unwrap();
    assert_eq!(info["quantization"], "int4");
    assert!(info["backend"].as_str().unwrap().ends_with(", int4)"), "{info}");
    assert!(demo(ModelDType::Auto, None).info().unwrap()["quantization"].is_null());
    let mut options = EngineOptions::new(fixture("llama3"));
    options.skip_tokenizer = true;
    options.backend = vrust::config::BackendKind::Reference;
    options.quantization = Some(Quantization::Int8);
    let engine = Engine::create(options).unwrap();
    let error = engine.wait_ready(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.detail()["field"], "quantization");
}
