//! `ModelConfig`: what config.json says, checked, in one shape for all architectures.

use std::path::Path;

use serde_json::Value;

use crate::backend::{Activation, ComputeType, DType, Heads, KvGroup, KvSpec, RopeSpec};
use crate::config::ModelDType;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;
use crate::weights::Checkpoint;

use super::fields::Fields;
use super::{ARCHITECTURES, Architecture};

/// A model's sizes and choices. Every number is within the limits below, so that products of a few
/// of them do not overflow.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The architecture's name, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// Tokens of the vocabulary; rows of embedding and head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of each head.
    pub head_dim: usize,
    /// Most positions of a sequence.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Activation of the feed-forward layers.
    pub activation: Activation,
    /// The rotation of queries and keys; absent where positions are learned.
    pub rope: Option<RopeSpec>,
    /// By layer: the last so many positions are seen, this one included; all when absent.
    pub sliding_windows: Vec<Option<usize>>,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub attention_output_bias: bool,
    /// Whether the feed-forward layers have biases.
    pub mlp_bias: bool,
    /// Whether each query and key head is normed before the rotation.
    pub qk_norm: bool,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<TokenId>,
    /// The token that begins a text.
    pub bos_token_id: Option<TokenId>,
    /// Element type that the weights are published in.
    pub checkpoint_dtype: DType,
    /// How to build the model.
    pub(super) kind: &'static Architecture,
}

/// Largest accepted sizes: far above any published model, far below an overflow.
pub(super) mod limits {
    /// Tokens of a vocabulary.
    pub(crate) const VOCAB: usize = 1 << 24;
    /// Width of an activation.
    pub(crate) const WIDTH: usize = 1 << 20;
    /// Layers.
    pub(crate) const LAYERS: usize = 1 << 12;
    /// Heads.
    pub(crate) const HEADS: usize = 1 << 12;
    /// Elements of a head.
    pub(crate) const HEAD_DIM: usize = 1 << 12;
    /// Positions.
    pub(crate) const POSITIONS: usize = 1 << 27;
}

impl ModelConfig {
    /// Reads `dir/config.json`. Fails with `NOT_FOUND` or `IO` naming the file, `MODEL_FORMAT`
    /// naming field and value, or `UNSUPPORTED` naming an architecture, or a field that changes
    /// the model's arithmetic in a way that is not implemented.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let fields = Fields::from_file(dir, "config.json")?;
        refuse_unknown_maths(&fields)?;
        let kind = find_architecture(&fields)?;
        let mut config = (kind.config)(&fields)?;
        config.checkpoint_dtype = match declared_dtype(&fields)? {
            Some(dtype) => dtype,
            // Old files do not say. A folder without weights is `load`'s to report.
            None => Checkpoint::open(dir).ok().and_then(|c| c.main_dtype()).unwrap_or(DType::F32),
        };
        Ok(config)
    }

    /// What the KV cache must hold: one group of all layers.
    pub fn kv_spec(&self, block_size: usize) -> KvSpec {
        let group = KvGroup {
            layers: (0..self.num_layers).collect(),
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
        };
        KvSpec { groups: vec![group], block_size }
    }

    /// The precision to run in: bf16 checkpoints in bf16 and all others in f32, unless told.
    pub fn compute_type(&self, dtype: ModelDType) -> ComputeType {
        match (dtype, self.checkpoint_dtype) {
            (ModelDType::BFloat16, _) | (ModelDType::Auto, DType::Bf16) => ComputeType::Bf16,
            (ModelDType::Float32, _) | (ModelDType::Auto, _) => ComputeType::F32,
        }
    }

    /// Head counts.
    pub fn heads(&self) -> Heads {
        Heads {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Checks what no single field shows.
    pub(super) fn check_heads(self, fields: &Fields) -> Result<Self> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let wanted = format!("a divisor of the {} query heads", self.num_heads);
            let value = Value::from(self.num_kv_heads);
            return Err(fields.bad("num_key_value_heads", &value, &wanted));
        }
        let width = self.heads().qkv_width();
        if width > 4 * limits::WIDTH {
            let message = format!(
                "config.json: {} query and {} key-value heads of head_dim {} make {width} columns, \
                 the limit is {}",
                self.num_heads,
                self.num_kv_heads,
                self.head_dim,
                4 * limits::WIDTH
            );
            return Err(Error::new(ErrorKind::ModelFormat, message)
                .with("field", "head_dim")
                .with("limit", 4 * limits::WIDTH)
                .with("value", width));
        }
        Ok(self)
    }
}

/// The activation function that `key` names.
pub(super) fn activation(fields: &Fields, key: &str, default: &str) -> Result<Activation> {
    let name = fields.text(key)?.unwrap_or(default);
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(fields.unsupported(key, &Value::from(other))),
    }
}

/// The first of `architectures` that is known; where there is none at all, `model_type` tells.
fn find_architecture(fields: &Fields) -> Result<&'static Architecture> {
    let names = fields.texts("architectures")?;
    let model_type = fields.text("model_type")?;
    let found = if names.is_empty() {
        ARCHITECTURES.iter().find(|a| Some(a.model_type) == model_type)
    } else {
        let known = |name: &&str| ARCHITECTURES.iter().find(|a| a.names.contains(name));
        names.iter().find_map(known)
    };
    if let Some(architecture) = found {
        return Ok(architecture);
    }
    let (field, value) = match (names.first(), model_type) {
        (Some(name), _) => ("architectures", *name),
        (None, Some(model_type)) => ("model_type", model_type),
        (None, None) => return Err(fields.missing("architectures")),
    };
    let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.names[0]).collect();
    let message =
        format!("config.json: {field} {value:?} is not supported; these are: {}", known.join(", "));
    Err(Error::new(ErrorKind::Unsupported, message)
        .with("field", field)
        .with("value", value)
        .with("limit", known))
}

/// `dtype`, or `torch_dtype` as older files call it.
fn declared_dtype(fields: &Fields) -> Result<Option<DType>> {
    let key = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let Some(name) = fields.text(key)? else { return Ok(None) };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" | "float" => Ok(Some(DType::F32)),
        "float16" | "half" => Ok(Some(DType::F16)),
        "bfloat16" => Ok(Some(DType::Bf16)),
        // The tensors tell what they are; this one only steers the precision of the arithmetic.
        "auto" => Ok(None),
        other => Err(fields.unsupported(key, &Value::from(other))),
    }
}

/// Refuses fields that change the arithmetic and are not implemented by any architecture here.
fn refuse_unknown_maths(fields: &Fields) -> Result<()> {
    for key in fields.keys() {
        let Some((_, neutral)) = CHANGES_MATHS.iter().find(|(name, _)| *name == key) else {
            continue;
        };
        let Some(value) = fields.get(key) else { continue };
        let harmless = match neutral {
            Neutral::Absent => false,
            Neutral::Is(b) => value.as_bool() == Some(*b),
            Neutral::One => value.as_f64() == Some(1.0),
            Neutral::Empty => {
                value.as_object().is_some_and(|o| o.is_empty())
                    || value.as_array().is_some_and(Vec::is_empty)
            }
        };
        if !harmless {
            return Err(fields.unsupported(key, value));
        }
    }
    Ok(())
}

/// The value of a field that leaves the arithmetic as it is, besides absence and null.
enum Neutral {
    Absent,
    Is(bool),
    One,
    Empty,
}

const CHANGES_MATHS: &[(&str, Neutral)] = &[
    ("quantization_config", Neutral::Absent),
    ("compression_config", Neutral::Absent),
    ("partial_rotary_factor", Neutral::One),
    ("rotary_pct", Neutral::One),
    ("attn_logit_softcapping", Neutral::Absent),
    ("final_logit_softcapping", Neutral::Absent),
    ("query_pre_attn_scalar", Neutral::Absent),
    ("attention_multiplier", Neutral::Absent),
    ("embedding_multiplier", Neutral::One),
    ("residual_multiplier", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("logit_scale", Neutral::One),
    ("clip_qkv", Neutral::Absent),
    ("attention_sinks", Neutral::Is(false)),
    ("dual_chunk_attention_config", Neutral::Absent),
    ("alibi", Neutral::Is(false)),
    ("use_alibi", Neutral::Is(false)),
    ("no_rope_layers", Neutral::Empty),
    ("attention_chunk_size", Neutral::Absent),
    ("is_causal", Neutral::Is(true)),
    ("use_bidirectional_attention", Neutral::Is(false)),
    ("is_encoder_decoder", Neutral::Is(false)),
    ("add_cross_attention", Neutral::Is(false)),
    ("pruned_heads", Neutral::Empty),
    ("scale_attn_weights", Neutral::Is(true)),
    ("scale_attn_by_inverse_layer_idx", Neutral::Is(false)),
    ("num_experts", Neutral::Absent),
    ("num_local_experts", Neutral::Absent),
];
