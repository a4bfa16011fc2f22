//! What the benchmarks share: dummy models, medians, and a consumer.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod chart;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vrust::config::{EngineOptions, LoadFormat};
use vrust::engine::{Engine, EventQueue};
use vrust::ids::TokenId;
use vrust::request::{Input, Request};

/// Qwen3-0.6B's shape (its model card's config): 596 M parameters.
pub(crate) const QWEN3_0_6B: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "tie_word_embeddings": true,
    "hidden_act": "silu", "attention_bias": false, "bos_token_id": 151643,
    "eos_token_id": 151645, "torch_dtype": "bfloat16"
}"#;

/// As little model as there can be around a vocabulary of 1,024.
pub(crate) const TINY: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "vocab_size": 1024, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096, "tie_word_embeddings": true, "hidden_act": "silu",
    "eos_token_id": 0, "torch_dtype": "bfloat16"
}"#;

/// A model folder with nothing but a config, removed at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(config: &str) -> Self {
        let name = format!("vrust-bench-{}-{:p}", std::process::id(), config);
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a temporary folder");
        std::fs::write(dir.join("config.json"), config).expect("a config");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Options for dummy weights without a tokenizer.
pub(crate) fn dummy(folder: &Folder) -> EngineOptions {
    let mut options = EngineOptions::new(folder.path());
    options.load_format = LoadFormat::Dummy;
    options.skip_tokenizer = true;
    options
}

pub(crate) fn ready(options: EngineOptions) -> Engine {
    let engine = Engine::create(options).expect("options");
    engine.wait_ready(None).expect("a loaded engine");
    engine
}

/// A greedy request that ignores the end of text.
pub(crate) fn request(prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    let mut request = Request::new(Input::Tokens(prompt));
    request.params.temperature = Some(0.0);
    request.params.ignore_eos = true;
    request.params.max_tokens = Some(max_tokens);
    request
}

/// `count` ids that differ from stream to stream.
pub(crate) fn prompt(stream: usize, count: usize) -> Vec<TokenId> {
    (0..count).map(|i| TokenId(1 + ((stream * 7919 + i * 31) % 1000) as u32)).collect()
}

/// Polls until `last` requests have had their last event.
pub(crate) fn wait(queue: &EventQueue, mut last: usize) {
    let mut events = Vec::new();
    while last > 0 {
        queue.drain(Some(Duration::from_secs(60)), 1024, &mut events).expect("the only poller");
        last -= events.drain(..).filter(|e| e.last).count();
    }
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median, smallest and largest, printed with `digits`.
pub(crate) fn spread(values: &mut [f64], digits: usize) -> String {
    let middle = median(values);
    let (low, high) = (values[0], values[values.len() - 1]);
    format!("{middle:.digits$} ({low:.digits$} to {high:.digits$})")
}

/// Seconds that `f` takes.
pub(crate) fn time(f: impl FnOnce()) -> f64 {
    let began = Instant::now();
    f();
    began.elapsed().as_secs_f64()
}

/// A line of /proc/self/status in MiB, such as `VmHWM`.
pub(crate) fn status_mib(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|k| k.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
