//! Qwen2 and 2.5: Llama with biases on queries, keys and values, and perhaps windows in the upper
//! layers.

use serde_json::Value;

use crate::error::Result;

use super::Architecture;
use super::config::{ModelConfig, limits};
use super::fields::Fields;
use super::llama::{self, DecoderDefaults};

pub(super) static QWEN2: Architecture =
    Architecture { names: &["Qwen2ForCausalLM"], model_type: "qwen2", config, build: llama::build };

fn config(fields: &Fields) -> Result<ModelConfig> {
    let defaults = DecoderDefaults { num_kv_heads: Some(32), head_dim: None };
    let mut config = llama::decoder_config(fields, &QWEN2, defaults)?;
    config.qkv_bias = true;
    config.sliding_windows = windows(fields, config.num_layers)?;
    Ok(config)
}

/// By layer, as Qwen2 and Qwen3 have them: with `use_sliding_window`, the layers that
/// `layer_types` names, or else those from `max_window_layers` on.
pub(super) fn windows(fields: &Fields, num_layers: usize) -> Result<Vec<Option<usize>>> {
    let layer_types = fields.texts("layer_types")?;
    let known = |kind: &&str| ["full_attention", "sliding_attention"].contains(kind);
    if !layer_types.iter().all(known) {
        return Err(fields.unsupported("layer_types", &Value::from(layer_types)));
    }
    if !layer_types.is_empty() && layer_types.len() != num_layers {
        let wanted = format!("as long as num_hidden_layers {num_layers}");
        return Err(fields.bad("layer_types", &Value::from(layer_types), &wanted));
    }
    let window = match fields.flag("use_sliding_window", false)? {
        true => {
            fields.size_unless_null("sliding_window", limits::POSITIONS, Some(DEFAULT_WINDOW))?
        }
        false => None,
    };
    let from = match fields.get("max_window_layers") {
        Some(value) => value.as_u64().map(|n| n as usize).ok_or_else(|| {
            fields.bad("max_window_layers", value, "a whole number of at least 0")
        })?,
        None => DEFAULT_FULL_LAYERS,
    };
    let slides = |layer: usize| match layer_types.get(layer) {
        Some(kind) => *kind == "sliding_attention",
        None => window.is_some() && layer >= from,
    };
    if window.is_none() && (0..num_layers).any(slides) {
        let wanted = "full_attention only: use_sliding_window and sliding_window are not both set";
        return Err(fields.bad("layer_types", &Value::from(layer_types), wanted));
    }
    Ok((0..num_layers).map(|layer| window.filter(|_| slides(layer))).collect())
}

/// Window where the field is absent.
const DEFAULT_WINDOW: usize = 4096;
/// Value of `max_window_layers` where it is absent.
const DEFAULT_FULL_LAYERS: usize = 28;
