//! Typed access to a JSON configuration, with errors that name file, field, limit and value.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;
use crate::weights::{MAX_CONFIG_BYTES, read_json_object};

/// The fields of one JSON object. A field that is `null` counts as absent.
pub(super) struct Fields {
    object: Map<String, Value>,
    /// What messages begin with: the file, or file and field of a nested object.
    place: String,
}

impl Fields {
    /// Reads `dir/file`.
    pub(super) fn from_file(dir: &Path, file: &str) -> Result<Self> {
        let path = dir.join(file);
        let object = read_json_object(&path, MAX_CONFIG_BYTES)?;
        Ok(Self { object, place: file.to_owned() })
    }

    /// The value of a field.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// Names of all fields.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.object.keys().map(String::as_str)
    }

    /// A nested object.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Fields { object: object.clone(), place: format!("{}: {key}", self.place) }))
            }
            Some(other) => Err(self.bad(key, other, "an object")),
        }
    }

    /// A whole number in `1..=limit` that must be there.
    pub(super) fn size(&self, key: &str, limit: usize) -> Result<usize> {
        self.optional_size(key, limit)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number in `1..=limit`.
    pub(super) fn optional_size(&self, key: &str, limit: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n >= 1 && n <= limit as u64 => Ok(Some(n as usize)),
            _ => Err(self
                .bad(key, value, &format!("a whole number from 1 to {limit}"))
                .with("limit", limit)),
        }
    }

    /// A whole number in `1..=limit`, where absence and an explicit `null` mean different things:
    /// the default, and none.
    pub(super) fn size_unless_null(
        &self,
        key: &str,
        limit: usize,
        default: Option<usize>,
    ) -> Result<Option<usize>> {
        match self.object.get(key) {
            None => Ok(default),
            Some(_) => self.optional_size(key, limit),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            // A bool is no number in JSON; 1e999 does not parse: the parser yields finite ones.
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.bad(key, value, "a number")),
        }
    }

    /// A number greater than zero.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(n) if n <= 0.0 => {
                Err(self.bad(key, &self.object[key], "a number greater than 0").with("limit", 0))
            }
            other => Ok(other),
        }
    }

    /// A number greater than zero that must be there.
    pub(super) fn required_positive(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.bad(key, other, "true or false")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.bad(key, other, "a string")),
        }
    }

    /// A list of strings; empty when absent.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(value) => value
                .as_array()
                .and_then(|list| list.iter().map(Value::as_str).collect())
                .ok_or_else(|| self.bad(key, value, "a list of strings")),
        }
    }

    /// One token id or a list of them; empty when absent.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<TokenId>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).map(TokenId);
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.bad(key, &self.object[key], "a token id or a list of them"))
    }

    /// An error about the value of a field.
    pub(super) fn bad(&self, key: &str, value: &Value, wanted: &str) -> Error {
        let message = format!("{}: {key} is {}, must be {wanted}", self.place, shorten(value));
        Error::new(ErrorKind::ModelFormat, message).with("field", key).with("value", shorten(value))
    }

    /// An error about a field whose value asks for what is not implemented.
    pub(super) fn unsupported(&self, key: &str, value: &Value) -> Error {
        let message = format!("{}: {key} {} is not supported", self.place, shorten(value));
        Error::new(ErrorKind::Unsupported, message).with("field", key).with("value", shorten(value))
    }

    /// An error about an absent field.
    pub(super) fn missing(&self, key: &str) -> Error {
        Error::new(ErrorKind::ModelFormat, format!("{}: {key} is missing", self.place))
            .with("field", key)
    }
}

/// A value as text for a message, cut to a sane length.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
