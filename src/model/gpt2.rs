//! GPT-2: learned positions, layer norms, biases everywhere, weights stored `[in, out]`.

use serde_json::Value;

use crate::backend::{ActId, Backend, DType, LinearId};
use crate::error::Result;
use crate::weights::Layout;

use super::config::{ModelConfig, activation, limits};
use super::fields::Fields;
use super::layers::{AttentionBlock, AttentionBuffers, Embedding, LayerNorm, PlainMlp};
use super::loader::{Loader, Part};
use super::{Architecture, Model};

pub(super) static GPT2: Architecture =
    Architecture { names: &["GPT2LMHeadModel", "GPT2Model"], model_type: "gpt2", config, build };

fn config(fields: &Fields) -> Result<ModelConfig> {
    let hidden_size = fields.size("n_embd", limits::WIDTH)?;
    let num_heads = fields.size("n_head", limits::HEADS)?;
    let num_layers = fields.size("n_layer", limits::LAYERS)?;
    if !hidden_size.is_multiple_of(num_heads) {
        let wanted = format!("a divisor of n_embd {hidden_size}");
        return Err(fields.bad("n_head", &Value::from(num_heads), &wanted));
    }
    let inner = fields.optional_size("n_inner", limits::WIDTH)?;
    ModelConfig {
        architecture: GPT2.names[0].to_owned(),
        vocab_size: fields.size("vocab_size", limits::VOCAB)?,
        hidden_size,
        intermediate_size: inner.unwrap_or(4 * hidden_size),
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: hidden_size / num_heads,
        max_position_embeddings: fields.size("n_positions", limits::POSITIONS)?,
        norm_eps: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
        activation: activation(fields, "activation_function", "gelu_new")?,
        rope: None,
        sliding_windows: vec![None; num_layers],
        qkv_bias: true,
        attention_output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        checkpoint_dtype: DType::F32,
        kind: &GPT2,
    }
    .check_heads(fields)
}

fn build(config: &ModelConfig, l: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let (hidden, eps, layout) = (config.hidden_size, config.norm_eps, Layout::InOut);
    // The first release has no prefix; whoever saves the model with its head writes one.
    let p =
        if l.has("wte.weight") && !l.has("transformer.wte.weight") { "" } else { "transformer." };
    let embedding = Embedding::load(l, format!("{p}wte"), config)?;
    let wpe = Part::new(format!("{p}wpe"), config.max_position_embeddings, hidden);
    let positions = l.positions(wpe)?;
    let mut layers = Vec::with_capacity(config.num_layers);
    for i in 0..config.num_layers {
        let name = |part: &str| format!("{p}h.{i}.{part}");
        let attention = (name("attn.c_attn"), name("attn.c_proj"));
        let mlp = (name("mlp.c_fc"), name("mlp.c_proj"));
        layers.push(Layer {
            attention_norm: LayerNorm::load(l, &name("ln_1"), hidden, eps)?,
            attention: AttentionBlock::load_fused(l, attention, layout, i, config)?,
            mlp_norm: LayerNorm::load(l, &name("ln_2"), hidden, eps)?,
            mlp: PlainMlp::load(l, mlp, layout, config)?,
        });
    }
    Ok(Box::new(Gpt2 {
        embedding,
        positions,
        layers,
        norm: LayerNorm::load(l, &format!("{p}ln_f"), hidden, eps)?,
        residual: l.activation(hidden),
        normed: l.activation(hidden),
        attention: AttentionBuffers::new(l, config),
        mlp: l.activation(config.intermediate_size),
    }))
}

struct Gpt2 {
    embedding: Embedding,
    /// `[positions, hidden]`.
    positions: LinearId,
    layers: Vec<Layer>,
    norm: LayerNorm,
    /// `[tokens, hidden]`.
    residual: ActId,
    /// `[tokens, hidden]`.
    normed: ActId,
    attention: AttentionBuffers,
    /// `[tokens, intermediate]`.
    mlp: ActId,
}

struct Layer {
    attention_norm: LayerNorm,
    attention: AttentionBlock,
    mlp_norm: LayerNorm,
    mlp: PlainMlp,
}

impl Model for Gpt2 {
    fn forward(&self, backend: &mut dyn Backend) {
        let (x, normed) = (self.residual, self.normed);
        self.embedding.forward(backend, x);
        backend.add_position(self.positions, x);
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
