//! Broken and unusual model folders through the engine: each failure has a kind and a message that
//! names what is wrong, and another engine in the same process goes on.

use std::fs;

use serde_json::json;
use vrust::config::{EngineOptions, LoadFormat, ModelDType};
use vrust::engine::{Engine, EngineState, EventKind};
use vrust::error::{Error, ErrorKind};
use vrust::request::{ChatInput, Input, Request};

use crate::engine_prefix_cache::{TINY, dummy};
use crate::engine_support::{fixture, greedy, options, ready, run_one, text};
use crate::support::folder::{TempDir, edit_tensor, set_fields};

const WEIGHTS: &str = "model.safetensors";

/// A copy of a fixture to break, and options for it.
fn copy(name: &str) -> (TempDir, EngineOptions) {
    let folder = TempDir::copy_of(&fixture(name));
    let mut options = options(name);
    options.model = folder.path().to_owned();
    (folder, options)
}

/// The error of `create` or of loading.
fn failure(options: EngineOptions) -> Error {
    match Engine::create(options) {
        Err(error) => error,
        Ok(engine) => {
            let early = engine.submit(greedy(&[5], 3), engine.default_queue());
            let error = engine.wait_ready(None).unwrap_err();
            assert_eq!(engine.state(), EngineState::Failed);
            assert_eq!(engine.info().unwrap_err().message(), error.message());
            let refused = engine.submit(greedy(&[5], 3), engine.default_queue()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::EngineFailed);
            assert!(refused.message().contains(error.message()), "{refused}");
            let mut events = Vec::new();
            while engine.default_queue().drain(None, 64, &mut events).unwrap()
                != vrust::engine::Polled::Closed
            {}
            let failed = events.iter().any(|e| matches!(e.kind, EventKind::EngineFailed(_)));
            assert!(failed, "the default queue tells of it");
            let ended = events.iter().filter(|e| e.last).count();
            assert_eq!(ended, usize::from(early.is_ok()), "what came early ends once");
            error
        }
    }
}

/// Breaks a copy of `name` and checks how it fails, while `other` runs.
fn check(name: &str, damage: impl FnOnce(&TempDir), kind: ErrorKind, words: &[&str]) {
    let other = ready(options("llama3"));
    let expected = run_one(&other, greedy(&[5, 9], 8)).only().tokens.clone();
    let (folder, options) = copy(name);
    damage(&folder);
    let error = failure(options);
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{error} does not say {word}");
    }
    assert_eq!(run_one(&other, greedy(&[5, 9], 8)).only().tokens, expected);
}

#[test]
fn a_broken_tokenizer() {
    let damage = |d: &TempDir| fs::write(d.join("tokenizer.json"), "{\"model\": 3").unwrap();
    check("llama3", damage, ErrorKind::Tokenizer, &["tokenizer.json"]);
    let damage = |d: &TempDir| fs::remove_file(d.join("tokenizer.json")).unwrap();
    check("llama3", damage, ErrorKind::Tokenizer, &["tokenizer.json"]);
}

#[test]
fn a_broken_template() {
    let damage = |d: &TempDir| fs::write(d.join("chat_template.jinja"), "{% if %}").unwrap();
    check("qwen3", damage, ErrorKind::Template, &["line 1"]);
    let (_folder, mut options) = copy("qwen3");
    options.chat_template = Some("{{ never closed".into());
    assert_eq!(failure(options).kind(), ErrorKind::Template);
}

#[test]
fn a_template_that_raises_fails_one_request() {
    let (_folder, mut options) = copy("qwen3");
    options.chat_template = Some("{{ raise_exception('roles must alternate') }}".into());
    let engine = ready(options);
    let chat = |messages| {
        Request::new(Input::Chat(ChatInput {
            messages,
            tools: None,
            template_kwargs: None,
            add_generation_prompt: true,
            continue_final_message: false,
        }))
    };
    let one = chat(json!([{"role": "user", "content": "Hello"}]));
    let error = run_one(&engine, one).error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Template);
    assert!(error.message().contains("roles must alternate"), "{error}");
    for bad in [json!([]), json!("no list"), json!([{"content": "no role"}]), json!([3])] {
        let error = match engine.submit(chat(bad.clone()), engine.default_queue()) {
            Err(error) => error,
            Ok(id) => {
                let mut consumer = crate::engine_support::Consumer::default();
                consumer.wait(engine.default_queue(), &[id]);
                consumer.outcomes[&id].error.clone().unwrap()
            }
        };
        assert!(error.message().contains("messages"), "{bad}: {error}");
    }
    run_one(&engine, text("Hello", 3)).only();
}

#[test]
fn a_model_without_a_template_says_so() {
    let engine = ready(options("gpt2"));
    assert!(engine.chat_template().unwrap().is_none());
    let chat = ChatInput {
        messages: json!([{"role": "user", "content": "Hello"}]),
        tools: None,
        template_kwargs: None,
        add_generation_prompt: true,
        continue_final_message: false,
    };
    let error = run_one(&engine, Request::new(Input::Chat(chat))).error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Template);
    assert!(error.message().contains("chat_template"), "{error}");
}

#[test]
fn without_a_tokenizer_text_is_unsupported() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let refused = |request: Request| {
        let error = engine.submit(request, engine.default_queue()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("skip_tokenizer"), "{error}");
    };
    refused(text("Hello", 3));
    let mut stop = greedy(&[5], 3);
    stop.params.stop = vec!["x".into()];
    refused(stop);
    let mut bad_words = greedy(&[5], 3);
    bad_words.params.bad_words = vec!["x".into()];
    refused(bad_words);
    assert_eq!(run_one(&engine, greedy(&[5], 3)).only().text, "");
}

#[test]
fn nan_weights_are_refused_by_name() {
    let damage =
        |d: &TempDir| edit_tensor(&d.join(WEIGHTS), "model.norm.weight", |x| x[3] = f32::NAN);
    check("llama3", damage, ErrorKind::ModelFormat, &["model.norm.weight", "NaN"]);
}

#[test]
fn a_config_that_contradicts_the_tensors() {
    let damage = |d: &TempDir| set_fields(&d.join("config.json"), &json!({"hidden_size": 128}));
    check("llama3", damage, ErrorKind::ModelFormat, &["128", "64"]);
    let damage = |d: &TempDir| set_fields(&d.join("config.json"), &json!({"num_hidden_layers": 3}));
    check("llama3", damage, ErrorKind::ModelFormat, &["layers.2"]);
    let damage = |d: &TempDir| set_fields(&d.join("config.json"), &json!({"vocab_size": 500}));
    check("llama3", damage, ErrorKind::ModelFormat, &["500", "384"]);
    let other = json!({"architectures": ["MambaForCausalLM"]});
    let damage = |d: &TempDir| set_fields(&d.join("config.json"), &other);
    check("llama3", damage, ErrorKind::Unsupported, &["MambaForCausalLM"]);
}

#[test]
fn files_that_are_missing_cut_short_or_of_another_format() {
    let damage = |d: &TempDir| fs::remove_file(d.join(WEIGHTS)).unwrap();
    check("llama3", damage, ErrorKind::NotFound, &[WEIGHTS]);
    let damage = |d: &TempDir| fs::remove_file(d.join("config.json")).unwrap();
    check("llama3", damage, ErrorKind::NotFound, &["config.json"]);
    let damage = |d: &TempDir| {
        fs::rename(d.join(WEIGHTS), d.join("pytorch_model.bin")).unwrap();
    };
    check("llama3", damage, ErrorKind::Unsupported, &["pytorch_model.bin"]);
    let damage = |d: &TempDir| {
        let file = fs::read(d.join(WEIGHTS)).unwrap();
        fs::write(d.join(WEIGHTS), &file[..file.len() / 2]).unwrap();
    };
    check("llama3", damage, ErrorKind::ModelFormat, &[WEIGHTS, "cut short"]);
    let damage = |d: &TempDir| fs::write(d.join("generation_config.json"), "[").unwrap();
    check("llama3", damage, ErrorKind::ModelFormat, &["generation_config.json"]);
}

#[test]
fn the_dtype_is_the_checkpoints_or_as_asked() {
    let cases = [
        ("qwen3-bf16", ModelDType::Auto, "bfloat16"),
        ("llama-f16", ModelDType::Auto, "float32"),
        ("qwen3", ModelDType::Auto, "float32"),
        ("qwen3-bf16", ModelDType::Float32, "float32"),
        ("qwen3", ModelDType::BFloat16, "bfloat16"),
        ("llama-f16", ModelDType::BFloat16, "bfloat16"),
    ];
    for (name, dtype, expected) in cases {
        let mut options = options(name);
        options.dtype = dtype;
        let engine = ready(options);
        assert_eq!(engine.info().unwrap()["dtype"], expected, "{name} {dtype:?}");
        assert_eq!(run_one(&engine, greedy(&[5, 9], 6)).only().tokens.len(), 6);
    }
}

#[test]
fn every_architecture_runs_with_dummy_weights() {
    for name in ["llama2", "llama3", "qwen2", "qwen2-window", "qwen3", "gpt2", "mistral"] {
        let folder = TempDir::new();
        fs::copy(fixture(name).join("config.json"), folder.join("config.json")).unwrap();
        let logprobs = |seed: u64| {
            let mut options = options(name);
            options.model = folder.path().to_owned();
            options.load_format = LoadFormat::Dummy;
            (options.skip_tokenizer, options.seed) = (true, seed);
            let mut request = greedy(&[5, 9, 2], 20);
            request.params.logprobs = Some(5);
            run_one(&ready(options), request).only().logprobs.clone()
        };
        let one = logprobs(1);
        assert_eq!(one.len(), 20);
        assert_eq!(one, logprobs(1), "{name}: seeded");
        assert_ne!(one, logprobs(2), "{name}: by the engine's seed");
    }
}
