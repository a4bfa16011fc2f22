//! golden.json: what Hugging Face transformers says of a model folder. tests/oracle/README.md has
//! the schema.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use vrust::ids::TokenId;

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) prompts: Vec<Prompt>,
    /// The same places, computed in bfloat16; one for each prompt.
    #[serde(default)]
    pub(crate) bfloat16: Vec<Bf16>,
}

#[derive(Deserialize)]
pub(crate) struct Prompt {
    prompt_token_ids: Vec<u32>,
    greedy_token_ids: Vec<u32>,
    pub(crate) steps: Vec<Place>,
    /// None for the first token.
    pub(crate) prompt_logprobs: Vec<Option<Place>>,
}

#[derive(Deserialize)]
pub(crate) struct Bf16 {
    pub(crate) steps: Vec<Place>,
    pub(crate) prompt_logprobs: Vec<Option<Place>>,
}

/// What was said at one place.
#[derive(Deserialize)]
pub(crate) struct Place {
    pub(crate) id: u32,
    pub(crate) logprob: f64,
    #[serde(default)]
    pub(crate) rank: Option<usize>,
    pub(crate) top: Vec<(u32, f64)>,
}

impl Golden {
    pub(crate) fn read(dir: &Path) -> Self {
        serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap()
    }
}

impl Prompt {
    pub(crate) fn prompt(&self) -> Vec<TokenId> {
        self.prompt_token_ids.iter().copied().map(TokenId).collect()
    }

    pub(crate) fn greedy(&self) -> Vec<TokenId> {
        self.greedy_token_ids.iter().copied().map(TokenId).collect()
    }
}

/// A model folder under tests/golden.
pub(crate) fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}
