//! config.json and generation_config.json: both styles, defaults, and what is refused.

use serde_json::{Value, json};
use vrust::backend::{Activation, DType};
use vrust::error::{Error, ErrorKind};
use vrust::ids::TokenId;
use vrust::model::{GenerationConfig, ModelConfig};
use vrust::request::SamplingDefaults;

use crate::support::folder::{TempDir, set_fields};
use crate::support::golden::folder;

/// The configuration of a golden case with some fields changed; null removes one.
fn read(case: &str, changes: &Value) -> Result<ModelConfig, Error> {
    let dir = TempDir::new();
    std::fs::copy(folder(case).join("config.json"), dir.join("config.json")).unwrap();
    set_fields(&dir.join("config.json"), changes);
    ModelConfig::from_dir(dir.path())
}

fn check_refused(case: &str, changes: &Value, kind: ErrorKind, says: &[&str]) {
    let error = read(case, changes).expect_err(&changes.to_string());
    assert_eq!(error.kind(), kind, "{error}");
    for part in says {
        assert!(error.message().contains(part), "{part:?} is not in: {error}");
    }
}

fn check_frequencies(changes: &Value, expected: [f64; 8], magnitude: f64) {
    let rope = read("llama2", changes).unwrap().rope.unwrap();
    assert_eq!(rope.inv_freq.len(), 8);
    for (got, expected) in rope.inv_freq.iter().zip(expected) {
        assert!((got - expected).abs() <= 2e-7 * expected, "{:?}", rope.inv_freq);
    }
    assert!((f64::from(rope.magnitude) - magnitude).abs() < 1e-6, "{}", rope.magnitude);
}

/// Expected values are those of transformers 5.23.
#[test]
fn rope_scalings() {
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 4.0}});
    let expected = [
        0.25,
        0.079056941,
        0.025,
        0.00790569466,
        0.00249999994,
        0.000790569466,
        0.000250000012,
        7.90569466e-05,
    ];
    check_frequencies(&linear, expected, 1.0);

    let llama3 = json!({"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 512}});
    let expected = [
        1.0,
        0.316227764,
        0.100000001,
        0.0184966773,
        0.00124999997,
        0.000395284733,
        0.000125000006,
        3.95284733e-05,
    ];
    check_frequencies(&llama3, expected, 1.0);

    let yarn = json!({"rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}});
    let expected = [
        1.0,
        0.316227764,
        0.0812500045,
        0.0197642371,
        0.00437500002,
        0.000790569466,
        0.000250000012,
        7.90569466e-05,
    ];
    check_frequencies(&yarn, expected, 1.138629436);

    let yarn = json!({"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "mscale": 1.0,
        "mscale_all_dim": 0.5, "beta_fast": 16, "truncate": false,
        "original_max_position_embeddings": 1024}});
    let expected = [
        1.0,
        0.177827939,
        0.0219320469,
        0.00140585331,
        0.000250000012,
        4.44569851e-05,
        7.90569356e-06,
        1.40585337e-06,
    ];
    check_frequencies(&yarn, expected, 1.064821625);
}

#[test]
fn rope_that_is_not_implemented() {
    let scaled = |key: &str, scaling: Value| {
        let changes = json!({key: scaling});
        move |says: &[&str]| check_refused("llama2", &changes, ErrorKind::Unsupported, says)
    };
    scaled("rope_scaling", json!({"type": "dynamic", "factor": 2.0}))(&["rope_type", "dynamic"]);
    scaled("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0}))(&["longrope"]);
    scaled("rope_parameters", json!({"rope_type": "proportional"}))(&["proportional"]);
    scaled("rope_scaling", json!({"type": "default", "mrope_section": [2, 3, 3]}))(&[
        "mrope_section",
        "[2,3,3]",
    ]);
    scaled("rope_parameters", json!({"full_attention": {"rope_type": "default"}}))(&[
        "full_attention",
    ]);
    scaled("rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 0.5}))(&[
        "partial_rotary_factor",
        "0.5",
    ]);
}

#[test]
fn maths_that_is_not_implemented_is_never_ignored() {
    let cases = [
        ("llama2", json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config"),
        ("llama2", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("llama2", json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        ("llama2", json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping"),
        ("llama2", json!({"sliding_window": 64}), "sliding_window"),
        ("llama2", json!({"hidden_act": "quick_gelu"}), "quick_gelu"),
        ("llama2", json!({"logits_scaling": 8.0}), "logits_scaling"),
        ("llama2", json!({"layer_types": ["full_attention", "linear_attention"]}), "layer_types"),
        ("qwen2", json!({"layer_types": ["full_attention", "chunked"]}), "layer_types"),
        ("gpt2", json!({"scale_attn_by_inverse_layer_idx": true}), "scale_attn_by_inverse"),
        ("gpt2", json!({"scale_attn_weights": false}), "scale_attn_weights"),
        ("gpt2", json!({"add_cross_attention": true}), "add_cross_attention"),
        ("llama2", json!({"torch_dtype": "float8_e4m3fn"}), "float8_e4m3fn"),
    ];
    for (case, changes, says) in cases {
        check_refused(case, &changes, ErrorKind::Unsupported, &[says, "config.json"]);
    }
    let harmless = json!({"partial_rotary_factor": 1.0, "logits_scaling": 1, "is_causal": true});
    read("llama2", &harmless).unwrap();
}

#[test]
fn architectures() {
    let unknown = json!({"architectures": ["GrokForCausalLM"]});
    let says = ["GrokForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"];
    check_refused("llama2", &unknown, ErrorKind::Unsupported, &says);
    let unknown = json!({"architectures": null, "model_type": "mamba"});
    check_refused("llama2", &unknown, ErrorKind::Unsupported, &["model_type", "mamba"]);
    let none = json!({"architectures": null, "model_type": null});
    check_refused("llama2", &none, ErrorKind::ModelFormat, &["architectures is missing"]);
    let by_type = read("qwen3", &json!({"architectures": []})).unwrap();
    assert_eq!(by_type.architecture, "Qwen3ForCausalLM");
    let base = read("gpt2", &json!({"architectures": ["GPT2Model"]})).unwrap();
    assert_eq!(base.architecture, "GPT2LMHeadModel");
}

#[test]
fn absurd_sizes() {
    let cases = [
        (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
        (json!({"num_attention_heads": -4}), "num_attention_heads is -4"),
        (json!({"num_attention_heads": 4.5}), "num_attention_heads is 4.5"),
        (json!({"num_attention_heads": 7, "num_key_value_heads": 7}), "divisor of hidden_size"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads is 3"),
        (json!({"num_hidden_layers": 1_000_000_000}), "num_hidden_layers is 1000000000"),
        (json!({"vocab_size": u64::MAX}), "vocab_size is 18446744073709551615"),
        (json!({"hidden_size": "64"}), "hidden_size is \"64\""),
        (json!({"hidden_size": null}), "hidden_size is missing"),
        (json!({"intermediate_size": null}), "intermediate_size is missing"),
        (json!({"max_position_embeddings": 0}), "max_position_embeddings is 0"),
        (json!({"head_dim": 15}), "head_dim is 15"),
        (json!({"num_attention_heads": 4096, "head_dim": 4096}), "columns"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0.0"),
        (json!({"rope_theta": -1}), "rope_theta is -1"),
        (json!({"rope_theta": true}), "rope_theta is true"),
        (json!({"eos_token_id": -1}), "eos_token_id is -1"),
        (json!({"eos_token_id": [2, "x"]}), "eos_token_id is"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings is 1"),
        (json!({"rope_scaling": 8}), "rope_scaling is 8"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor is missing"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "factor is 0"),
        (
            json!({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4,
                "high_freq_factor": 4, "original_max_position_embeddings": 64}}),
            "high_freq_factor is 4",
        ),
    ];
    for (changes, says) in cases {
        check_refused("llama2", &changes, ErrorKind::ModelFormat, &["config.json", says]);
    }
    check_refused("gpt2", &json!({"n_head": 5}), ErrorKind::ModelFormat, &["n_head is 5", "48"]);
    check_refused("gpt2", &json!({"n_embd": null}), ErrorKind::ModelFormat, &["n_embd is missing"]);
}

#[test]
fn defaults_of_each_architecture() {
    let llama =
        read("llama2", &json!({"num_key_value_heads": null, "rms_norm_eps": null})).unwrap();
    assert_eq!((llama.num_kv_heads, llama.head_dim, llama.norm_eps), (4, 16, 1e-6));
    assert!(!llama.tie_word_embeddings && !llama.qkv_bias);
    let biased = read("llama2", &json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert!(biased.qkv_bias && biased.attention_output_bias && biased.mlp_bias);

    let qwen2 = read("qwen2", &json!({"tie_word_embeddings": null})).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.attention_output_bias && !qwen2.tie_word_embeddings);
    assert_eq!(qwen2.sliding_windows, [None, None]);
    let qwen3 = read("qwen3", &json!({"head_dim": null})).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias), (128, true, false));

    let mistral = read("mistral", &json!({"sliding_window": null, "head_dim": null})).unwrap();
    assert_eq!((mistral.sliding_windows[0], mistral.head_dim), (Some(4096), 16));

    let gpt2 = read("gpt2", &json!({"layer_norm_epsilon": null})).unwrap();
    assert_eq!((gpt2.norm_eps, gpt2.intermediate_size), (1e-5, 192));
    assert_eq!((gpt2.activation, gpt2.checkpoint_dtype), (Activation::GeluTanh, DType::F32));
    assert!(gpt2.tie_word_embeddings && gpt2.rope.is_none());
    assert_eq!(gpt2.eos_token_ids, [TokenId(50)]);
}

#[test]
fn windows_by_layer() {
    let upper = json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1});
    assert_eq!(read("qwen2", &upper).unwrap().sliding_windows, [None, Some(9)]);
    let listed = json!({"use_sliding_window": true, "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(read("qwen3", &listed).unwrap().sliding_windows, [Some(9), None]);
    let short = json!({"layer_types": ["full_attention"]});
    check_refused("qwen3", &short, ErrorKind::ModelFormat, &["layer_types", "num_hidden_layers 2"]);
    let unset = json!({"layer_types": ["full_attention", "sliding_attention"]});
    check_refused("qwen3", &unset, ErrorKind::ModelFormat, &["layer_types"]);
    let zero = json!({"sliding_window": 0});
    check_refused("mistral", &zero, ErrorKind::ModelFormat, &["sliding_window is 0"]);
}

#[test]
fn a_null_window_is_none() {
    let dir = TempDir::copy_of(&folder("mistral"));
    let path = dir.join("config.json");
    crate::support::folder::edit_json(&path, |v| v["sliding_window"] = Value::Null);
    assert_eq!(ModelConfig::from_dir(dir.path()).unwrap().sliding_windows, [None, None]);
}

#[test]
fn the_type_of_the_tensors_where_config_does_not_say() {
    let dir = TempDir::copy_of(&folder("qwen3-bf16"));
    set_fields(&dir.join("config.json"), &json!({"torch_dtype": null}));
    assert_eq!(ModelConfig::from_dir(dir.path()).unwrap().checkpoint_dtype, DType::Bf16);
}

#[test]
fn generation_config() {
    let absent = GenerationConfig::from_dir(&folder("gpt2")).unwrap();
    assert_eq!(absent, GenerationConfig::default());
    let llama3 = GenerationConfig::from_dir(&folder("llama3")).unwrap();
    let (temperature, top_p) = (Some(0.6), Some(0.9));
    let defaults = SamplingDefaults { temperature, top_p, ..SamplingDefaults::default() };
    assert_eq!(llama3.defaults, defaults);
    assert_eq!(llama3.eos_token_ids, [TokenId(380), TokenId(349), TokenId(128)]);

    let dir = TempDir::new();
    let write = |value: Value| {
        std::fs::write(dir.join("generation_config.json"), value.to_string()).unwrap();
        GenerationConfig::from_dir(dir.path())
    };
    // Temperature counts without do_sample, as it does in vLLM.
    let all = json!({"do_sample": false, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
        "min_p": 0.05, "repetition_penalty": 1.05, "max_new_tokens": 512, "eos_token_id": 7});
    let read = write(all).unwrap();
    let expected = SamplingDefaults {
        temperature: Some(0.7),
        top_p: Some(0.8),
        top_k: Some(20),
        min_p: Some(0.05),
        repetition_penalty: Some(1.05),
        max_tokens: Some(512),
    };
    assert_eq!((read.defaults, read.eos_token_ids), (expected, vec![TokenId(7)]));
    let error = write(json!({"temperature": "hot"})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelFormat);
    assert!(error.message().contains("temperature is \"hot\""), "{error}");
    assert!(write(json!({"top_k": 1.5})).is_err() && write(json!({"max_new_tokens": 0})).is_err());
}
