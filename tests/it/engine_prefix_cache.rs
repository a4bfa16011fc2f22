//! The prefix cache through the engine: what was computed is counted as rows inside the backend.

use vrust::config::{EngineOptions, LoadFormat};
use vrust::engine::Engine;
use vrust::request::Request;

use crate::engine_support::{Outcome, greedy, ready, run, run_one};
use crate::support::folder::TempDir;

/// As little model as there can be around a long context.
pub(crate) const TINY: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "vocab_size": 1024, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096, "tie_word_embeddings": true, "hidden_act": "silu",
    "eos_token_id": 0, "torch_dtype": "float32"
}"#;

/// A folder with nothing but a config, and options that run it with dummy weights.
pub(crate) fn dummy(config: &str) -> (TempDir, EngineOptions) {
    let folder = TempDir::new();
    std::fs::write(folder.join("config.json"), config).unwrap();
    let mut options = EngineOptions::new(folder.path());
    options.load_format = LoadFormat::Dummy;
    options.skip_tokenizer = true;
    options.cpu_threads = Some(1);
    options.num_kv_blocks = Some(1024);
    options.debug.check_integrity = true;
    (folder, options)
}

/// `count` ids that differ from stream to stream.
pub(crate) fn ids(stream: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| 1 + (stream * 7919 + i * 31 + i * i % 97) % 1000).collect()
}

/// Runs a request and says how many rows of tokens the backend computed for it.
fn rows_of(engine: &Engine, request: Request) -> (u64, Outcome) {
    let before = engine.stats().token_rows;
    let outcome = run_one(engine, request);
    (engine.stats().token_rows - before, outcome)
}

fn cached(outcome: &Outcome) -> u32 {
    outcome.only().finished.as_ref().unwrap().usage.cached_tokens
}

#[test]
fn the_second_of_two_that_share_1000_tokens_computes_only_the_rest() {
    for block_size in [16, 64] {
        let (_folder, mut options) = dummy(TINY);
        options.block_size = block_size;
        let engine = ready(options);
        let shared = ids(0, 1000);
        let prompt = |stream, count| [shared.clone(), ids(stream, count)].concat();
        let (first, _) = rows_of(&engine, greedy(&prompt(1, 10), 1));
        assert_eq!(first, 1010);
        let (second, outcome) = rows_of(&engine, greedy(&prompt(2, 30), 4));
        // Whole blocks are shared; the last token generated is never an input.
        let hit = 1000 / block_size as u64 * block_size as u64;
        assert_eq!(second, 1030 - hit + 3);
        assert_eq!(u64::from(cached(&outcome)), hit);
        let stats = engine.stats();
        assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (2040, hit));
        assert_eq!(stats.prompt_tokens_cached, hit);
    }
}

#[test]
fn a_prompt_that_is_cached_whole_computes_its_last_block() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let prompt = ids(3, 160);
    let (first, alone) = rows_of(&engine, greedy(&prompt, 1));
    let (second, again) = rows_of(&engine, greedy(&prompt, 1));
    assert_eq!((first, second), (160, 16));
    assert_eq!(alone.only().tokens, again.only().tokens);
}

#[test]
fn without_the_cache_everything_is_computed_each_time() {
    let (_folder, mut options) = dummy(TINY);
    options.enable_prefix_caching = false;
    let engine = ready(options);
    for _ in 0..2 {
        let (rows, outcome) = rows_of(&engine, greedy(&ids(4, 200), 1));
        assert_eq!((rows, cached(&outcome)), (200, 0));
    }
}

#[test]
fn salts_keep_prompts_apart() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let salted = |salt: Option<&str>| {
        let mut request = greedy(&ids(5, 101), 1);
        request.cache_salt = salt.map(str::to_owned);
        rows_of(&engine, request).0
    };
    // The first of each salt computes everything, the second only what is past the last block.
    assert_eq!((salted(None), salted(None)), (101, 5));
    assert_eq!((salted(Some("a")), salted(Some("a"))), (101, 5));
    assert_eq!((salted(Some("b")), salted(Some("a")), salted(None)), (101, 5, 5));
}

#[test]
fn prompt_logprobs_compute_the_whole_prompt() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let mut request = greedy(&ids(6, 100), 1);
    request.params.prompt_logprobs = Some(1);
    let (first, one) = rows_of(&engine, request.clone());
    let (second, two) = rows_of(&engine, request);
    assert_eq!((first, second, cached(&two)), (100, 100, 0));
    assert_eq!(one.prompt_logprobs, two.prompt_logprobs);
    assert_eq!(one.prompt_logprobs.len(), 100);
}

#[test]
fn choices_of_one_request_share_their_prompt() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let mut request = greedy(&ids(7, 320), 1);
    request.params.temperature = Some(1.0);
    request.params.n = Some(4);
    let before = engine.stats().token_rows;
    let outcome = run(&engine, vec![request]).remove(0);
    assert_eq!(outcome.choices.len(), 4);
    // 320 tokens once, and the last block again for each further choice.
    assert_eq!(engine.stats().token_rows - before, 320 + 3 * 16);
}
