//! Wrong models on purpose: each mistake must break a golden, or the goldens prove little.

use std::path::Path;

use serde_json::json;
use vrust::backend::reference::ReferenceBackend;
use vrust::backend::{Activation, ComputeType};
use vrust::model::ModelConfig;

use crate::goldens::{TOLERANCE, config_of, distance};
use crate::support::folder::{TempDir, edit_tensor, set_fields};
use crate::support::golden::{Golden, folder};
use crate::support::runner::Runner;

/// A mistake: a change of the folder, or of the configuration read from it.
enum Mistake {
    Folder(fn(&Path)),
    Config(fn(&mut ModelConfig)),
}

use Mistake::{Config, Folder};

const MISTAKES: &[(&str, &str, Mistake)] = &[
    ("llama2", "no rope", Config(|c| c.rope = None)),
    ("llama2", "theta doubled", Folder(|d| set_config(d, json!({"rope_theta": 20_000.0})))),
    ("llama2", "eps 1e-6 for 1e-5", Config(|c| c.norm_eps = 1e-6)),
    ("llama2", "window", Config(|c| c.sliding_windows.fill(Some(64)))),
    ("llama2", "tied", Config(|c| c.tie_word_embeddings = true)),
    ("llama2", "gelu for silu", Config(|c| c.activation = Activation::Gelu)),
    ("llama3", "no rope", Config(|c| c.rope = None)),
    ("llama3", "scaling dropped", Folder(|d| set_config(d, json!({"rope_scaling": null})))),
    ("llama3", "scaling linear", Folder(linear_scaling)),
    ("llama3", "theta doubled", Folder(|d| set_config(d, json!({"rope_theta": 1e6})))),
    ("llama3", "key-value heads rolled", Folder(roll_kv_heads)),
    ("mistral", "no rope", Config(|c| c.rope = None)),
    ("mistral", "window + 1", Config(|c| c.sliding_windows.fill(Some(25)))),
    ("mistral", "window - 1", Config(|c| c.sliding_windows.fill(Some(23)))),
    ("mistral", "no window", Config(|c| c.sliding_windows.fill(None))),
    ("mistral", "eps 1e-6 for 1e-5", Config(|c| c.norm_eps = 1e-6)),
    ("mistral", "key-value heads rolled", Folder(roll_kv_heads)),
    ("qwen2", "eps 1e-5 for 1e-6", Config(|c| c.norm_eps = 1e-5)),
    ("qwen2", "theta doubled", Folder(|d| set_config(d, json!({"rope_theta": 2e6})))),
    ("qwen2", "no biases", Config(|c| c.qkv_bias = false)),
    ("qwen2", "query bias dropped", Folder(|d| drop_bias(d, "q_proj"))),
    ("qwen2", "key bias dropped", Folder(|d| drop_bias(d, "k_proj"))),
    ("qwen2", "value bias dropped", Folder(|d| drop_bias(d, "v_proj"))),
    ("qwen2", "key-value heads rolled", Folder(roll_kv_heads)),
    ("qwen2-window", "window + 1", Config(|c| c.sliding_windows[1] = Some(25))),
    ("qwen2-window", "window - 1", Config(|c| c.sliding_windows[1] = Some(23))),
    ("qwen2-window", "every layer windowed", Config(|c| c.sliding_windows.fill(Some(24)))),
    ("qwen2-window", "other layer windowed", Config(|c| c.sliding_windows.swap(0, 1))),
    ("qwen3", "no norm on heads", Config(|c| c.qk_norm = false)),
    ("qwen3", "no rope", Config(|c| c.rope = None)),
    ("qwen3", "theta doubled", Folder(|d| set_config(d, json!({"rope_theta": 2e6})))),
    ("qwen3", "eps 1e-5 for 1e-6", Config(|c| c.norm_eps = 1e-5)),
    ("qwen3", "key-value heads rolled", Folder(roll_kv_heads)),
    ("gpt2", "eps 1e-6 for 1e-5", Config(|c| c.norm_eps = 1e-6)),
    ("gpt2", "positions shifted", Folder(shift_positions)),
    ("gpt2", "no biases on projections", Config(|c| c.attention_output_bias = false)),
    ("gpt2", "no biases in the MLP", Config(|c| c.mlp_bias = false)),
    ("gpt2", "relu", Config(|c| c.activation = Activation::Relu)),
    ("gpt2", "exact gelu", Config(|c| c.activation = Activation::Gelu)),
];

#[test]
fn every_mistake_breaks_a_golden() {
    let mut unnoticed = Vec::new();
    for (case, name, mistake) in MISTAKES {
        let (changed, largest) = effect(case, mistake);
        if changed == 0 && largest <= TOLERANCE {
            unnoticed.push(format!("{case}: {name}: {largest}"));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

#[test]
fn the_measure_of_mistakes_finds_none_in_the_right_model() {
    for case in ["llama2", "llama3", "mistral", "qwen2", "qwen2-window", "qwen3", "gpt2"] {
        let (changed, largest) = effect(case, &Config(|_| ()));
        assert!(changed == 0 && largest <= TOLERANCE, "{case}: {changed} {largest}");
    }
}

fn effect(case: &str, mistake: &Mistake) -> (usize, f64) {
    let golden = Golden::read(&folder(case));
    let copy = TempDir::copy_of(&folder(case));
    if let Folder(change) = mistake {
        change(copy.path());
    }
    let mut config = config_of(copy.path());
    if let Config(change) = mistake {
        change(&mut config);
    }
    let mut backend = ReferenceBackend::new(ComputeType::F32);
    let mut runner = Runner::load(copy.path(), &config, &mut backend).unwrap();
    distance(&mut runner, &golden)
}

fn set_config(dir: &Path, fields: serde_json::Value) {
    set_fields(&dir.join("config.json"), &fields);
}

fn linear_scaling(dir: &Path) {
    set_config(dir, json!({"rope_scaling": {"type": "linear", "factor": 8.0}}));
}

/// Every query group reads its neighbour's keys and values.
fn roll_kv_heads(dir: &Path) {
    let config = config_of(dir);
    for layer in 0..config.num_layers {
        for part in ["k_proj", "v_proj"] {
            let name = format!("model.layers.{layer}.self_attn.{part}");
            let tensors = dir.join("model.safetensors");
            let head = config.head_dim * config.hidden_size;
            edit_tensor(&tensors, &format!("{name}.weight"), |w| w.rotate_right(head));
            if config.qkv_bias {
                edit_tensor(&tensors, &format!("{name}.bias"), |b| b.rotate_right(config.head_dim));
            }
        }
    }
}

fn drop_bias(dir: &Path, part: &str) {
    for layer in 0..config_of(dir).num_layers {
        let name = format!("model.layers.{layer}.self_attn.{part}.bias");
        edit_tensor(&dir.join("model.safetensors"), &name, |b| b.fill(0.0));
    }
}

fn shift_positions(dir: &Path) {
    let hidden = config_of(dir).hidden_size;
    let name = "transformer.wpe.weight";
    edit_tensor(&dir.join("model.safetensors"), name, |w| w.rotate_left(hidden));
}
