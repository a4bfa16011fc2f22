//! A checkpoint folder: which files it has, and the tensors in them by name.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::backend::DType;
use crate::error::{Error, ErrorKind, Result};

use super::element::ElementType;
use super::header::{self, ShardFile};
use super::json::{format_error, io_error, read_json_object};

/// The only file of an unsharded checkpoint.
const SINGLE: &str = "model.safetensors";
/// The list of shards of a sharded one.
const INDEX: &str = "model.safetensors.index.json";
/// Most bytes of the list of shards.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Most shards.
const MAX_SHARDS: usize = 4096;

/// A tensor of a checkpoint: where its data lies, nothing read yet.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub element: ElementType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where the data begins in the file, in bytes.
    pub offset: u64,
    /// Bytes of data; the header's checks make `offset + bytes` lie in the file.
    pub bytes: u64,
    /// Its file.
    pub file: Arc<ShardFile>,
}

/// The tensors of a checkpoint folder, by name.
#[derive(Debug)]
pub struct Checkpoint {
    /// In order of files and of the data in them.
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` lists,
    /// and checks their headers. Fails with `NOT_FOUND` or `IO` naming the file, `MODEL_FORMAT`
    /// naming file and tensor, or `UNSUPPORTED` when the folder has weights in another format.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            let message = format!("{}: no such folder", dir.display());
            return Err(
                Error::new(ErrorKind::NotFound, message).with("file", dir.display().to_string())
            );
        }
        if dir.join(SINGLE).exists() {
            Self::collect(header::open(&dir.join(SINGLE))?)
        } else if dir.join(INDEX).exists() {
            Self::open_sharded(dir)
        } else {
            Err(no_weights(dir))
        }
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// All names, in the order of files and data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// Element type of the largest tensor that a backend can take.
    pub fn main_dtype(&self) -> Option<DType> {
        let computable = self.tensors.iter().filter(|t| t.element.dtype().is_some());
        computable.max_by_key(|t| t.bytes).and_then(|t| t.element.dtype())
    }

    fn open_sharded(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX);
        let object = read_json_object(&index, MAX_INDEX_BYTES)?;
        let Some(Value::Object(map)) = object.get("weight_map") else {
            return Err(format_error(&index, "has no object weight_map".to_owned()));
        };
        let mut tensors = Vec::new();
        for shard in shard_names(&index, map)? {
            tensors.append(&mut header::open(&dir.join(shard))?);
        }
        let checkpoint = Self::collect(tensors)?;
        for (name, shard) in map {
            let file = checkpoint.get(name).and_then(|t| t.file.path().file_name());
            if file.and_then(|f| f.to_str()) != shard.as_str() {
                let message = format!("places tensor {name} in {shard}, which does not have it");
                return Err(format_error(&index, message).with("tensor", name.as_str()));
            }
        }
        Ok(checkpoint)
    }

    fn collect(tensors: Vec<Tensor>) -> Result<Self> {
        let mut by_name = HashMap::new();
        by_name.try_reserve(tensors.len())?;
        for (i, tensor) in tensors.iter().enumerate() {
            if let Some(first) = by_name.insert(tensor.name.clone(), i) {
                let first: &Tensor = &tensors[first];
                let message =
                    format!("tensor {} is also in {}", tensor.name, first.file.path().display());
                return Err(
                    format_error(tensor.file.path(), message).with("tensor", tensor.name.as_str())
                );
            }
        }
        Ok(Self { tensors, by_name })
    }
}

/// The distinct files of a weight map, sorted.
fn shard_names<'a>(index: &Path, map: &'a serde_json::Map<String, Value>) -> Result<Vec<&'a str>> {
    let mut names = Vec::new();
    for (tensor, shard) in map {
        // A plain file name: an index must not lead out of its folder.
        let plain = |s: &&str| !s.is_empty() && !s.contains(['/', '\0']) && *s != "..";
        let Some(shard) = shard.as_str().filter(plain) else {
            let message = format!("places tensor {tensor} in {shard}, which is no file name");
            return Err(format_error(index, message).with("tensor", tensor.as_str()));
        };
        names.push(shard);
    }
    names.sort_unstable();
    names.dedup();
    if names.len() > MAX_SHARDS {
        let message = format!("lists {} shards, the limit is {MAX_SHARDS}", names.len());
        return Err(format_error(index, message)
            .with("limit", MAX_SHARDS)
            .with("value", names.len()));
    }
    Ok(names)
}

/// Why a folder without safetensors cannot be loaded.
fn no_weights(dir: &Path) -> Error {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return io_error(dir, &e),
    };
    let mut others: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| OTHER_FORMATS.iter().any(|ending| name.ends_with(ending)))
        .collect();
    others.sort_unstable();
    match others.first() {
        Some(other) => Error::new(
            ErrorKind::Unsupported,
            format!(
                "{}: has {other} but no {SINGLE}: only safetensors weights can be read",
                dir.display()
            ),
        )
        .with("file", other.as_str()),
        None => Error::new(
            ErrorKind::NotFound,
            format!("{}: has neither {SINGLE} nor {INDEX}", dir.display()),
        )
        .with("file", dir.join(SINGLE).display().to_string()),
    }
}

/// Endings of weights in formats that are not read.
const OTHER_FORMATS: &[&str] =
    &[".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz"];
