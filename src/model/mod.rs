//! Models: architectures as short files over shared `layers`, described to a backend op by op.
//!
//! ```text
//!  config.json ─► ModelConfig ─► build (twice: check, load) ─► Box<dyn Model>
//!                                      │                             │ forward
//!                     Weights ─► Loader ─► Backend ◄─────────────────┘
//! ```
//!
//! A model knows nothing of requests, sequences or text. To add one: a file with its `Architecture`
//! (how to read its configuration, how to build it) and a row in `ARCHITECTURES`.

mod config;
mod fields;
mod generation;
mod gpt2;
mod layers;
mod llama;
mod loader;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;

pub use config::ModelConfig;
pub use generation::GenerationConfig;

use std::path::Path;

use crate::backend::{ActId, Backend, LinearId};
use crate::config::LoadFormat;
use crate::error::Result;
use crate::weights::{Checkpoint, Weights};

use fields::Fields;
use loader::{Loader, name_some};

/// A loaded model: handles of one backend, and the order in which they are used.
pub trait Model {
    /// Describes the layers, from the embedding of the step's tokens to the final norm, whose
    /// output is `hidden`.
    fn forward(&self, backend: &mut dyn Backend);
    /// The final norm's output, `[tokens, hidden_size]`; of the rows that are wanted, at least.
    fn hidden(&self) -> ActId;
    /// The head, `[vocab_size, hidden_size]`.
    fn head(&self) -> LinearId;
}

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions<'a> {
    /// The checkpoint's folder.
    pub dir: &'a Path,
    /// Whether its weights are read.
    pub load_format: LoadFormat,
    /// Seed of dummy weights.
    pub seed: u64,
    /// Positions that will be used at most; the model's own limit when absent. Sizes tables.
    pub max_model_len: Option<usize>,
}

/// Loads a model into `backend`. `progress` is called at the start and after each piece of a matrix
/// that was read, by the thread that read it, with the share of bytes done, `0..=1`; when it
/// returns an error, the loading ends with that. Fails with
/// `MODEL_FORMAT` naming the tensor, before anything is read where the headers already show it.
pub fn load(
    config: &ModelConfig,
    options: &LoadOptions<'_>,
    backend: &mut dyn Backend,
    progress: impl Fn(f32) -> Result<()> + Send + Sync + 'static,
) -> Result<Box<dyn Model>> {
    let mut config = config.clone();
    if let (Some(rope), Some(len)) = (&mut config.rope, options.max_model_len) {
        rope.max_positions = len;
    }
    let weights = match options.load_format {
        LoadFormat::Auto => Weights::from_checkpoint(Checkpoint::open(options.dir)?),
        LoadFormat::Dummy => Weights::dummy(options.seed, config.checkpoint_dtype),
    };
    let mut check = Loader::check(&weights);
    (config.kind.build)(&config, &mut check)?;
    let total = check.finish_check()?;
    warn_of_unused(&config, &weights);
    progress(0.0)?;
    (config.kind.build)(&config, &mut Loader::load(&weights, backend, Box::new(progress), total))
}

/// An architecture: its names in config.json, and how to read and build it.
#[derive(Debug)]
struct Architecture {
    /// Values of `architectures`; the first one is the usual name.
    names: &'static [&'static str],
    /// Value of `model_type`, for files without `architectures`.
    model_type: &'static str,
    config: fn(&Fields) -> Result<ModelConfig>,
    build: fn(&ModelConfig, &mut Loader<'_>) -> Result<Box<dyn Model>>,
}

/// All that can be loaded.
static ARCHITECTURES: &[&Architecture] =
    &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3, &gpt2::GPT2];

/// Tensors that the model did not ask for are probably harmless, but somebody should know.
fn warn_of_unused(config: &ModelConfig, weights: &Weights) {
    let harmless = |name: &str| {
        BUFFERS.iter().any(|ending| name.ends_with(ending))
            || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    let unused: Vec<String> = weights.unused().into_iter().filter(|n| !harmless(n)).collect();
    if !unused.is_empty() {
        tracing::warn!(count = unused.len(), "unused tensors: {}", name_some(&unused));
    }
}

/// Endings of tensors that can be computed: causal masks and inverse frequencies.
const BUFFERS: &[&str] = &[".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
