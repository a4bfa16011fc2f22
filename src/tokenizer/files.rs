//! Reading small configuration files of a checkpoint, with a limit on their size.

use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// Most bytes of tokenizer.json, vocab.json and merges.txt. The largest published ones have 35 MB.
pub(crate) const MAX_VOCABULARY_BYTES: u64 = 256 << 20;
/// Most bytes of tokenizer_config.json and its kin.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The bytes of `path`, `None` when there is no such file. Everything else that keeps it from
/// being read, a size above `limit` bytes included, is an error of `kind` that names the file.
pub(crate) fn read_limited(path: &Path, limit: u64, kind: ErrorKind) -> Result<Option<Vec<u8>>> {
    let failed = |cause: String| Error::new(kind, format!("{}: {cause}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == IoKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e.to_string())),
    };
    let meta = file.metadata().map_err(|e| failed(e.to_string()))?;
    if !meta.is_file() {
        return Err(failed("not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve(meta.len().min(limit) as usize)?;
    // The length may change between the question and the read: the limit is on what is read.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(failed(format!("larger than the limit of {limit} bytes"))
            .with("limit", limit)
            .with("value", meta.len().max(bytes.len() as u64)));
    }
    Ok(Some(bytes))
}

/// The JSON object in `path`, empty when there is no such file. serde_json bounds the depth.
pub(crate) fn read_object(path: &Path, kind: ErrorKind) -> Result<Map<String, Value>> {
    let Some(bytes) = read_limited(path, MAX_CONFIG_BYTES, kind)? else {
        return Ok(Map::new());
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::new(kind, format!("{}: not a JSON object", path.display()))),
        Err(e) => Err(Error::new(kind, format!("{}: {e}", path.display()))),
    }
}
