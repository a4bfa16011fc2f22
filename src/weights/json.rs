//! JSON files of a checkpoint folder, with limits: a hostile file is an error, not a dead process.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// Most bytes of a configuration file.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Reads `path` as a JSON object of at most `max_bytes` bytes. Depth is limited to 128 by the
/// parser. Fails with `NOT_FOUND`, `IO` or `MODEL_FORMAT`, naming the file.
pub fn read_json_object(path: &Path, max_bytes: u64) -> Result<Map<String, Value>> {
    let text = read_limited(path, max_bytes)?;
    match serde_json::from_slice(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(format_error(path, "is JSON, but not an object".to_owned())),
        Err(e) => Err(format_error(path, format!("bad JSON: {e}"))),
    }
}

/// Opens a regular file. Anything else (a pipe would block) is refused.
pub(super) fn open_file(path: &Path) -> Result<(File, u64)> {
    let metadata = std::fs::metadata(path).map_err(|e| io_error(path, &e))?;
    if !metadata.is_file() {
        let message = format!("{}: is not a regular file", path.display());
        return Err(Error::new(ErrorKind::Io, message).with("file", path_text(path)));
    }
    let file = File::open(path).map_err(|e| io_error(path, &e))?;
    Ok((file, metadata.len()))
}

/// An operating system's error about `path`: `NOT_FOUND` or `IO`.
pub(super) fn io_error(path: &Path, e: &std::io::Error) -> Error {
    let kind = match e.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{}: {e}", path.display())).with("file", path_text(path))
}

/// A `MODEL_FORMAT` error about the file `path`.
pub(super) fn format_error(path: &Path, message: String) -> Error {
    Error::new(ErrorKind::ModelFormat, format!("{}: {message}", path.display()))
        .with("file", path_text(path))
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let (file, len) = open_file(path)?;
    if len > max_bytes {
        let message = format!("is {len} bytes long, the limit is {max_bytes}");
        return Err(format_error(path, message).with("limit", max_bytes).with("value", len));
    }
    let mut text = Vec::new();
    text.try_reserve_exact(len as usize)?;
    // The file may grow while it is read: `take` keeps the limit.
    file.take(max_bytes).read_to_end(&mut text).map_err(|e| io_error(path, &e))?;
    Ok(text)
}
