//! Files and requests with bytes turned, cut or doubled: an error or a result, never a panic.
//!
//! A short run is part of `make test`; `make test-long` runs many more.

use std::path::Path;

use vrust::backend::ComputeType;
use vrust::backend::reference::ReferenceBackend;
use vrust::chat::ChatTemplate;
use vrust::config::LoadFormat;
use vrust::ids::TokenId;
use vrust::model::{self, GenerationConfig, LoadOptions, ModelConfig};
use vrust::request::ChatInput;
use vrust::tokenizer::Tokenizer;

use crate::engine_support::{Random, fixture};
use crate::support::folder::TempDir;

const SHORT: u64 = 150;
const LONG: u64 = 20_000;

#[test]
fn broken_checkpoints_never_panic() {
    fuzz_checkpoints(SHORT);
}

#[test]
fn broken_configs_never_panic() {
    fuzz_configs(SHORT * 4);
}

#[test]
fn broken_tokenizers_never_panic() {
    fuzz_tokenizers(SHORT / 3);
}

#[test]
fn broken_templates_never_panic() {
    fuzz_templates(SHORT);
}

#[test]
#[ignore = "long"]
fn fuzz_for_long() {
    fuzz_checkpoints(LONG);
    fuzz_configs(LONG * 4);
    fuzz_tokenizers(LONG / 10);
    fuzz_templates(LONG);
}

/// The header of a checkpoint, its length included, and the end of the file.
fn fuzz_checkpoints(rounds: u64) {
    let folder = TempDir::copy_of(&fixture("llama2"));
    let path = folder.join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for seed in 0..rounds {
        let mut random = Random(seed);
        let mut bytes = mutate(&whole[..header], &mut random);
        bytes.extend(&whole[header..]);
        if random.chance(20) {
            bytes.truncate(random.range(0, bytes.len() as u64) as usize);
        }
        std::fs::write(&path, bytes).unwrap();
        let Ok(config) = ModelConfig::from_dir(folder.path()) else { continue };
        load(&config, folder.path());
    }
}

fn fuzz_configs(rounds: u64) {
    for case in ["llama3", "qwen2-window", "gpt2", "mistral"] {
        let folder = TempDir::copy_of(&fixture(case));
        let path = folder.join("config.json");
        let whole = std::fs::read(&path).unwrap();
        for seed in 0..rounds / 4 {
            let mut random = Random(seed ^ 0x00c0_ff1e);
            std::fs::write(&path, mutate(&whole, &mut random)).unwrap();
            let _ = GenerationConfig::from_dir(folder.path());
            if let Ok(config) = ModelConfig::from_dir(folder.path()) {
                load(&config, folder.path());
            }
        }
    }
}

fn fuzz_tokenizers(rounds: u64) {
    for case in ["tokenizer-bpe", "tokenizer-llama2"] {
        let folder = TempDir::copy_of(&fixture(case));
        let path = folder.join("tokenizer.json");
        let whole = std::fs::read(&path).unwrap();
        for seed in 0..rounds / 2 {
            let mut random = Random(seed ^ 0x70ce);
            std::fs::write(&path, mutate(&whole, &mut random)).unwrap();
            let Ok(tokenizer) = Tokenizer::open(folder.path()) else { continue };
            if let Ok(ids) = tokenizer.encode("Hello wörld \u{1f600} <s>", true) {
                let _ = tokenizer.decode(&ids, random.chance(50));
            }
            let _ = tokenizer.decode(&[TokenId(random.next() as u32)], false);
        }
    }
}

fn fuzz_templates(rounds: u64) {
    let tokenizer = Tokenizer::open(&fixture("tokenizer-chatml")).unwrap();
    let whole = std::fs::read(fixture("tokenizer-chatml").join("chat_template.jinja")).unwrap();
    let chat = ChatInput {
        messages: serde_json::json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "<think>a</think>b"},
            {"role": "user", "content": [{"type": "text", "text": "again"}]},
        ]),
        tools: None,
        template_kwargs: None,
        add_generation_prompt: true,
        continue_final_message: false,
    };
    for seed in 0..rounds {
        let bytes = mutate(&whole, &mut Random(seed ^ 0x7e77));
        let source = String::from_utf8_lossy(&bytes);
        if let Ok(template) = ChatTemplate::from_source(&source, &tokenizer) {
            let _ = template.render(&chat);
        }
    }
}

/// Loads what still has a sane size.
fn load(config: &ModelConfig, dir: &Path) {
    if config.vocab_size > 100_000 || config.num_layers > 64 {
        return;
    }
    let options =
        LoadOptions { dir, load_format: LoadFormat::Auto, seed: 0, max_model_len: Some(64) };
    let mut backend = ReferenceBackend::new(ComputeType::F32);
    let _ = model::load(config, &options, &mut backend, |_| Ok(()));
}

/// Turns, removes, inserts or doubles a few bytes; digits are turned into digits half of the time,
/// so that many results are still well-formed.
fn mutate(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..random.range(1, 5) {
        let at = random.range(0, bytes.len() as u64) as usize;
        match random.range(0, 6) {
            0 => bytes[at] = random.next() as u8,
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, b"{}[],:\"0-9eE"[random.range(0, 12) as usize]),
            3 => {
                let end = (at + random.range(1, 40) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let digits = bytes.iter().enumerate().filter(|(_, b)| b.is_ascii_digit());
                let digits: Vec<usize> = digits.map(|(i, _)| i).collect();
                if !digits.is_empty() {
                    let digit = digits[random.range(0, digits.len() as u64) as usize];
                    bytes[digit] = b'0' + random.range(0, 10) as u8;
                }
            }
        }
    }
    bytes
}
