//! What quantization of weights and of the KV cache costs: logprobs and greedy choices against
//! float32, on the demo model's own answers and on random text through the oracles' checkpoints.

use vrust::config::{BackendKind, EngineOptions, KvCacheDType, ModelDType, Quantization};
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

/// Precision of arithmetic, weights and KV cache.
#[derive(Clone, Copy)]
struct Kind {
    dtype: ModelDType,
    weights: Option<Quantization>,
    kv: KvCacheDType,
}

const FLOAT32: Kind = Kind { dtype: ModelDType::Float32, weights: None, kv: KvCacheDType::Auto };
const BFLOAT16: Kind = Kind { dtype: ModelDType::BFloat16, ..FLOAT32 };

/// What is compared with float32, and how it is called.
const KINDS: [(&str, Kind); 5] = [
    ("bfloat16", BFLOAT16),
    ("int8", Kind { weights: Some(Quantization::Int8), ..BFLOAT16 }),
    ("int4", Kind { weights: Some(Quantization::Int4), ..BFLOAT16 }),
    ("bfloat16 with int8 KV", Kind { kv: KvCacheDType::Int8, ..BFLOAT16 }),
    ("float32 with int8 KV", Kind { kv: KvCacheDType::Int8, ..FLOAT32 }),
];

fn demo(kind: Kind) -> Engine {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
    engine(EngineOptions::new(folder), kind)
}

fn oracle(case: &str, kind: Kind) -> Engine {
    let mut options = EngineOptions::new(fixture(case));
    options.skip_tokenizer = true;
    engine(options, kind)
}

fn engine(mut options: EngineOptions, kind: Kind) -> Engine {
    (options.dtype, options.quantization) = (kind.dtype, kind.weights);
    options.kv_cache_dtype = kind.kv;
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

/// Checks each precision against float32; `bounds` are of `KINDS`.
fn check(
    what: &str,
    make: &dyn Fn(Kind) -> Engine,
    texts: &[Vec<u32>],
    bounds: [(f64, f64); KINDS.len()],
) {
    let exact = score(&make(FLOAT32), texts);
    for ((name, kind), (logprob, disagreement)) in KINDS.into_iter().zip(bounds) {
        let found = loss(&exact, &score(&make(kind), texts));
        println!("{what}, {name}, {} tokens: {found:?}", exact.len());
        assert!(found.logprob < logprob, "{what}, {name}: {found:?}");
        assert!(found.disagreement < disagreement, "{what}, {name}: {found:?}");
        assert!(found.logprob > 0.0, "{what}, {name}: nothing was rounded");
    }
}

#[test]
fn the_demo_model_hardly_notices() {
    let texts = conversations(&demo(FLOAT32));
    let bounds = [(0.02, 0.01), (0.05, 0.02), (0.25, 0.15), (0.02, 0.01), (0.02, 0.01)];
    check("demo model", &demo, &texts, bounds);
}

#[test]
fn the_oracles_hardly_notice() {
    for case in ["qwen3-bf16-gentle", "llama-bf16-gentle"] {
        let mut random = Random(5);
        let mut text = || (0..90).map(|_| 3 + random.range(0, 200) as u32).collect();
        let texts: Vec<Vec<u32>> = (0..8).map(|_| text()).collect();
        let make = |kind| oracle(case, kind);
        let bounds = [(0.02, 0.1), (0.05, 0.1), (0.3, 0.5), (0.03, 0.1), (0.03, 0.1)];
        check(case, &make, &texts, bounds);
    }
}

#[test]
fn info_says_it_and_the_reference_backend_refuses() {
    let auto = Kind { dtype: ModelDType::Auto, ..FLOAT32 };
    let info = demo(Kind { weights: Some(Quantization::Int4), ..auto }).info().unwrap();
    assert_eq!(info["quantization"], "int4");
    assert!(info["backend"].as_str().unwrap().ends_with(", int4)"), "{info}");
    assert!(demo(auto).info().unwrap()["quantization"].is_null());
    let mut options = EngineOptions::new(fixture("llama3"));
    options.skip_tokenizer = true;
    options.backend = BackendKind::Reference;
    options.quantization = Some(Quantization::Int8);
    let engine = Engine::create(options).unwrap();
    let error = engine.wait_ready(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.detail()["field"], "quantization");
}

#[test]
fn an_int8_cache_holds_more_tokens_and_is_named() {
    let blocks = |kind: Kind| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
        let mut options = EngineOptions::new(folder);
        (options.dtype, options.kv_cache_dtype) = (kind.dtype, kind.kv);
        options.kv_cache_memory_bytes = Some(3 << 20);
        let info = ready(options).info().unwrap();
        let name = info["kv_cache_dtype"].as_str().unwrap().to_owned();
        assert!(info["kv_cache_bytes"].as_u64().unwrap() <= 3 << 20, "{info}");
        (name, info["num_kv_blocks"].as_u64().unwrap() as f64)
    };
    let [float32, bfloat16, int8] =
        [FLOAT32, BFLOAT16, Kind { kv: KvCacheDType::Int8, ..BFLOAT16 }].map(blocks);
    assert_eq!([&float32.0, &bfloat16.0, &int8.0], ["float32", "bfloat16", "int8"]);
    // A scale of four bytes for each head of 32 to 128 elements.
    assert!((1.75..2.0).contains(&(int8.1 / bfloat16.1)), "{bfloat16:?} {int8:?}");
    assert!((3.5..4.0).contains(&(int8.1 / float32.1)), "{float32:?} {int8:?}");
}

#[test]
fn the_reference_backend_has_the_int8_cache_of_the_cpu() {
    for (case, dtype) in [("llama3", ModelDType::Float32), ("mistral", ModelDType::Float32)] {
        let mut random = Random(6);
        let mut text = || (0..60).map(|_| 3 + random.range(0, 200) as u32).collect();
        let texts: Vec<Vec<u32>> = (0..3).map(|_| text()).collect();
        let of = |backend, kv| {
            let mut options = EngineOptions::new(fixture(case));
            (options.skip_tokenizer, options.backend) = (true, backend);
            score(&engine(options, Kind { dtype, weights: None, kv }), &texts)
        };
        let cpu = of(BackendKind::Cpu, KvCacheDType::Int8);
        let same = loss(&of(BackendKind::Reference, KvCacheDType::Int8), &cpu).logprob;
        let other = loss(&of(BackendKind::Reference, KvCacheDType::Auto), &cpu).logprob;
        println!("{case}: {same} from the same cache, {other} from the exact one");
        assert!(same < other / 10.0, "{case}: {same} {other}");
    }
}
