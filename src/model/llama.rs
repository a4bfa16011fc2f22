//! Llama 2 and 3. Mistral, Qwen2 and Qwen3 are the same decoder with other choices.
//!
//! `x += attention(norm(x)); x += mlp(norm(x))` for each layer, RMS norms, rotated queries and
//! keys, grouped key-value heads, a gated feed-forward layer.

use serde_json::Value;

use crate::backend::{ActId, Backend, DType, LinearId};
use crate::error::Result;

use super::config::{ModelConfig, activation, limits};
use super::fields::Fields;
use super::layers::{AttentionBlock, AttentionBuffers, Embedding, GatedMlp, RmsNorm};
use super::loader::Loader;
use super::{Architecture, Model, rope};

pub(super) static LLAMA: Architecture =
    Architecture { names: &["LlamaForCausalLM"], model_type: "llama", config, build };

fn config(fields: &Fields) -> Result<ModelConfig> {
    let mut config = decoder_config(fields, &LLAMA, DecoderDefaults::default())?;
    config.qkv_bias = fields.flag("attention_bias", false)?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = fields.flag("mlp_bias", false)?;
    // Some readers of such files honour a window here and some do not.
    if let Some(value) = fields.get("sliding_window") {
        return Err(fields.unsupported("sliding_window", value));
    }
    if fields.texts("layer_types")?.iter().any(|kind| *kind != "full_attention") {
        return Err(fields.unsupported("layer_types", &Value::from(fields.texts("layer_types")?)));
    }
    Ok(config)
}

/// What an absent field means, where that differs between architectures.
#[derive(Default)]
pub(super) struct DecoderDefaults {
    /// As many as query heads when absent.
    pub(super) num_kv_heads: Option<usize>,
    /// `hidden_size / num_heads` when absent.
    pub(super) head_dim: Option<usize>,
}

/// The fields that Llama and its relatives share: no biases, no windows, no norms on heads.
pub(super) fn decoder_config(
    fields: &Fields,
    kind: &'static Architecture,
    defaults: DecoderDefaults,
) -> Result<ModelConfig> {
    let hidden_size = fields.size("hidden_size", limits::WIDTH)?;
    let num_heads = fields.size("num_attention_heads", limits::HEADS)?;
    let num_layers = fields.size("num_hidden_layers", limits::LAYERS)?;
    let max_positions = fields.size("max_position_embeddings", limits::POSITIONS)?;
    let num_kv_heads = fields
        .size_unless_null("num_key_value_heads", limits::HEADS, defaults.num_kv_heads)?
        .unwrap_or(num_heads);
    let head_dim = fields.optional_size("head_dim", limits::HEAD_DIM)?.or(defaults.head_dim);
    let head_dim = match head_dim {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let wanted = format!("a divisor of hidden_size {hidden_size}");
            return Err(fields.bad("num_attention_heads", &Value::from(num_heads), &wanted));
        }
    };
    ModelConfig {
        architecture: kind.names[0].to_owned(),
        vocab_size: fields.size("vocab_size", limits::VOCAB)?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", limits::WIDTH)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        max_position_embeddings: max_positions,
        norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        activation: activation(fields, "hidden_act", "silu")?,
        rope: Some(rope::read(fields, head_dim, max_positions)?),
        sliding_windows: vec![None; num_layers],
        qkv_bias: false,
        attention_output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        checkpoint_dtype: DType::F32,
        kind,
    }
    .check_heads(fields)
}

/// Builds the decoder that the configuration describes.
pub(super) fn build(config: &ModelConfig, l: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let (hidden, eps) = (config.hidden_size, config.norm_eps);
    let rope = config.rope.as_ref().map(|spec| l.rope(spec)).transpose()?;
    let embedding = Embedding::load(l, "model.embed_tokens".to_owned(), config)?;
    let mut layers = Vec::with_capacity(config.num_layers);
    for i in 0..config.num_layers {
        let name = format!("model.layers.{i}");
        layers.push(Layer {
            attention_norm: RmsNorm::load(l, &format!("{name}.input_layernorm"), hidden, eps)?,
            attention: AttentionBlock::load(l, &format!("{name}.self_attn"), i, rope, config)?,
            mlp_norm: RmsNorm::load(l, &format!("{name}.post_attention_layernorm"), hidden, eps)?,
            mlp: GatedMlp::load(l, &format!("{name}.mlp"), config)?,
        });
    }
    Ok(Box::new(Decoder {
        embedding,
        layers,
        norm: RmsNorm::load(l, "model.norm", hidden, eps)?,
        residual: l.activation(hidden),
        normed: l.activation(hidden),
        attention: AttentionBuffers::new(l, config),
        mlp: (l.activation(2 * config.intermediate_size), l.activation(config.intermediate_size)),
    }))
}

struct Decoder {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// `[tokens, hidden]`.
    residual: ActId,
    /// `[tokens, hidden]`.
    normed: ActId,
    attention: AttentionBuffers,
    /// `[tokens, 2 * intermediate]` and `[tokens, intermediate]`.
    mlp: (ActId, ActId),
}

struct Layer {
    attention_norm: RmsNorm,
    attention: AttentionBlock,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
}

impl Model for Decoder {
    fn forward(&self, backend: &mut dyn Backend) {
        let (x, normed) = (self.residual, self.normed);
        self.embedding.forward(backend, x);
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            layer.attention_norm.forward(backend, x, normed);
            layer.attention.forward(backend, normed, self.attention, (x, last));
            layer.mlp_norm.forward(backend, x, normed);
            layer.mlp.forward(backend, normed, self.mlp, x);
        }
        self.norm.forward(backend, x, normed);
    }

    fn hidden(&self) -> ActId {
        self.normed
    }

    fn head(&self) -> LinearId {
        self.embedding.head
    }
}
