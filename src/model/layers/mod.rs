//! Layers that architectures share. Each is handles of a backend and a `forward` that describes
//! its ops; activations are passed in, so that all layers of a model use the same few.

mod attention;
mod embedding;
mod mlp;
mod norm;

pub(super) use attention::{AttentionBlock, AttentionBuffers};
pub(super) use embedding::Embedding;
pub(super) use mlp::{GatedMlp, PlainMlp};
pub(super) use norm::{LayerNorm, RmsNorm};
