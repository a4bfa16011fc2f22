//! Qwen3: Qwen2 with a norm on each query and key head, and without biases unless asked for.

use crate::error::Result;

use super::Architecture;
use super::config::ModelConfig;
use super::fields::Fields;
use super::llama::{self, DecoderDefaults};
use super::qwen2;

pub(super) static QWEN3: Architecture =
    Architecture { names: &["Qwen3ForCausalLM"], model_type: "qwen3", config, build: llama::build };

fn config(fields: &Fields) -> Result<ModelConfig> {
    let defaults = DecoderDefaults { num_kv_heads: Some(32), head_dim: Some(128) };
    let mut config = llama::decoder_config(fields, &QWEN3, defaults)?;
    config.qk_norm = true;
    config.qkv_bias = fields.flag("attention_bias", false)?;
    config.attention_output_bias = config.qkv_bias;
    config.sliding_windows = qwen2::windows(fields, config.num_layers)?;
    Ok(config)
}
