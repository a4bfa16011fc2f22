//! Mistral: Llama with a sliding window over all layers, in its first releases.

use serde_json::Value;

use crate::error::Result;

use super::Architecture;
use super::config::{ModelConfig, limits};
use super::fields::Fields;
use super::llama::{self, DecoderDefaults};

pub(super) static MISTRAL: Architecture = Architecture {
    names: &["MistralForCausalLM"],
    model_type: "mistral",
    config,
    build: llama::build,
};

/// Window where the field is absent; later releases say null, which is none.
const DEFAULT_WINDOW: usize = 4096;

fn config(fields: &Fields) -> Result<ModelConfig> {
    let defaults = DecoderDefaults { num_kv_heads: Some(8), head_dim: None };
    let mut config = llama::decoder_config(fields, &MISTRAL, defaults)?;
    let window =
        fields.size_unless_null("sliding_window", limits::POSITIONS, Some(DEFAULT_WINDOW))?;
    config.sliding_windows = vec![window; config.num_layers];
    // Readers of such files disagree on these where they say other than the window does.
    let usual = if window.is_some() { "sliding_attention" } else { "full_attention" };
    let layer_types = fields.texts("layer_types")?;
    if layer_types.iter().any(|kind| *kind != usual) {
        return Err(fields.unsupported("layer_types", &Value::from(layer_types)));
    }
    Ok(config)
}
