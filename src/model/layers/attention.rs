//! Attention with its projections.

use crate::backend::{ActId, Attention, Backend, LinearId, RopeId, RopeWrite};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::loader::{Loader, Part};
use crate::weights::{Layout, VectorKind};

/// Projects to queries, keys and values, attends, projects back.
pub(crate) struct AttentionBlock {
    layer: usize,
    qkv: LinearId,
    out: LinearId,
    rope_write: RopeWrite,
    attention: Attention,
}

/// Activations that attention works in; every layer uses the same ones.
#[derive(Clone, Copy)]
pub(crate) struct AttentionBuffers {
    /// `[tokens, qkv_width]`.
    qkv: ActId,
    /// `[tokens, q_width]`.
    out: ActId,
}

impl AttentionBuffers {
    /// Buffers for the model's heads.
    pub(crate) fn new(l: &mut Loader<'_>, config: &ModelConfig) -> Self {
        let heads = config.heads();
        Self { qkv: l.activation(heads.qkv_width()), out: l.activation(heads.q_width()) }
    }
}

impl AttentionBlock {
    /// `q_proj`, `k_proj`, `v_proj`, `o_proj` and, where the model has them, `q_norm` and `k_norm`
    /// below `name`.
    pub(crate) fn load(
        l: &mut Loader<'_>,
        name: &str,
        layer: usize,
        rope: Option<RopeId>,
        config: &ModelConfig,
    ) -> Result<Self> {
        let (heads, hidden) = (config.heads(), config.hidden_size);
        let kv_width = heads.num_kv_heads * heads.head_dim;
        let part =
            |p: &str, out| Part::new(format!("{name}.{p}"), out, hidden).bias(config.qkv_bias);
        let parts =
            [part("q_proj", heads.q_width()), part("k_proj", kv_width), part("v_proj", kv_width)];
        let out = Part::new(format!("{name}.o_proj"), hidden, heads.q_width())
            .bias(config.attention_output_bias);
        let mut norm =
            |n: &str| l.vector(format!("{name}.{n}.weight"), heads.head_dim, VectorKind::Scale);
        let qk_norm = match config.qk_norm {
            true => Some((norm("q_norm")?, norm("k_norm")?, config.norm_eps)),
            false => None,
        };
        let rope_write = RopeWrite { heads, qk_norm, rope };
        let (qkv, out) = (l.linear(&parts)?, l.linear(&[out])?);
        Ok(Self { layer, qkv, out, rope_write, attention: attention(config, layer) })
    }

    /// One tensor of queries, keys and values, and one of the output, without rotation.
    pub(crate) fn load_fused(
        l: &mut Loader<'_>,
        (qkv, out): (String, String),
        layout: Layout,
        layer: usize,
        config: &ModelConfig,
    ) -> Result<Self> {
        let (heads, hidden) = (config.heads(), config.hidden_size);
        let qkv = Part::new(qkv, heads.qkv_width(), hidden).bias(config.qkv_bias).layout(layout);
        let out = Part::new(out, hidden, heads.q_width())
            .bias(config.attention_output_bias)
            .layout(layout);
        let rope_write = RopeWrite { heads, qk_norm: None, rope: None };
        let (qkv, out) = (l.linear(&[qkv])?, l.linear(&[out])?);
        Ok(Self { layer, qkv, out, rope_write, attention: attention(config, layer) })
    }

    /// `residual += attention(x)`. Behind the keys and values of the `last` layer only the rows
    /// that are wanted go on.
    pub(crate) fn forward(
        &self,
        backend: &mut dyn Backend,
        x: ActId,
        buffers: AttentionBuffers,
        (residual, last): (ActId, bool),
    ) {
        backend.linear(self.qkv, x, buffers.qkv);
        backend.rope_write_kv(self.layer, buffers.qkv, &self.rope_write);
        if last {
            backend.keep_rows(&[buffers.qkv, residual]);
        }
        backend.paged_attention(self.layer, buffers.qkv, &self.attention, buffers.out);
        backend.linear_add(self.out, buffers.out, residual);
    }
}

fn attention(config: &ModelConfig, layer: usize) -> Attention {
    Attention {
        heads: config.heads(),
        scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
        sliding_window: config.sliding_windows[layer],
    }
}
