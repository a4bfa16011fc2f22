//! generation_config.json: sampling defaults and end-of-text tokens that a model's makers chose.

use std::path::Path;

use serde_json::Value;

use crate::error::{ErrorKind, Result};
use crate::ids::TokenId;
use crate::request::SamplingDefaults;

use super::fields::Fields;

/// What generation_config.json says. `do_sample` is not looked at: a temperature counts whether or
/// not it is set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Used where a request sets nothing.
    pub defaults: SamplingDefaults,
    /// Tokens that end a text, besides those of config.json.
    pub eos_token_ids: Vec<TokenId>,
}

impl GenerationConfig {
    /// Reads `dir/generation_config.json`; an absent file is the default. Fails with
    /// `MODEL_FORMAT` naming field and value.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let fields = match Fields::from_file(dir, "generation_config.json") {
            Ok(fields) => fields,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        let number =
            |key: &str| -> Result<Option<f32>> { Ok(fields.number(key)?.map(|n| n as f32)) };
        let defaults = SamplingDefaults {
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            top_k: top_k(&fields)?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            max_tokens: fields
                .optional_size("max_new_tokens", u32::MAX as usize)?
                .map(|n| n as u32),
        };
        Ok(Self { defaults, eos_token_ids: fields.token_ids("eos_token_id")? })
    }
}

fn top_k(fields: &Fields) -> Result<Option<i32>> {
    let Some(value) = fields.get("top_k") else { return Ok(None) };
    match value.as_i64().and_then(|n| i32::try_from(n).ok()) {
        Some(n) if n >= -1 => Ok(Some(n)),
        _ => Err(fields.bad("top_k", &Value::clone(value), "a whole number of at least -1")),
    }
}
