//! The header of a safetensors file: an eight-byte length, then JSON, then the data.
//!
//! The format demands that the tensors cover the data exactly: no gap, no overlap, nothing after.
//! All of that is checked here, so that later reads are in range by construction.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

use super::checkpoint::Tensor;
use super::element::ElementType;
use super::json::{format_error, io_error, open_file};

/// Most bytes of a header, the limit that the safetensors library has.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// An open safetensors file.
#[derive(Debug)]
pub struct ShardFile {
    file: File,
    path: PathBuf,
}

impl ShardFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads exactly `out.len()` bytes at `offset`; `IO` when the file has become shorter.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|e| io_error(&self.path, &e))
    }
}

/// Opens a file and reads its header: the tensors in order of their data.
pub(super) fn open(path: &Path) -> Result<Vec<Tensor>> {
    let (file, len) = open_file(path)?;
    let shard = Arc::new(ShardFile { file, path: path.to_owned() });
    let entries = read_entries(&shard, len)?;
    let data_start = entries.data_start;
    let mut tensors = Vec::new();
    tensors.try_reserve_exact(entries.tensors.len())?;
    for (name, raw) in entries.tensors {
        tensors.push(check_tensor(&shard, name, raw, data_start)?);
    }
    tensors.sort_by_key(|t| (t.offset, t.bytes));
    check_cover(path, &tensors, data_start, len)?;
    check_names(path, &tensors)?;
    Ok(tensors)
}

/// A header as parsed, before any check of its content.
struct Entries {
    tensors: Vec<(String, RawTensor)>,
    /// Offset of the data in the file.
    data_start: u64,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn read_entries(shard: &ShardFile, len: u64) -> Result<Entries> {
    let path = shard.path();
    if len < 8 {
        let message = format!("is {len} bytes long, a safetensors file has at least 8");
        return Err(format_error(path, message).with("limit", 8).with("value", len));
    }
    let mut prefix = [0; 8];
    shard.read_at(0, &mut prefix)?;
    let header_len = u64::from_le_bytes(prefix);
    let limit = MAX_HEADER_BYTES.min(len - 8);
    if header_len > limit {
        let message = format!("header length is {header_len}, the limit here is {limit}");
        return Err(format_error(path, message).with("limit", limit).with("value", header_len));
    }
    let mut text = Vec::new();
    text.try_reserve_exact(header_len as usize)?;
    text.resize(header_len as usize, 0);
    shard.read_at(8, &mut text)?;
    let tensors = serde_json::from_slice::<TensorList>(&text)
        .map_err(|e| format_error(path, format!("bad header: {e}")))?;
    Ok(Entries { tensors: tensors.0, data_start: 8 + header_len })
}

/// Checks one entry by itself.
fn check_tensor(
    shard: &Arc<ShardFile>,
    name: String,
    raw: RawTensor,
    data_start: u64,
) -> Result<Tensor> {
    let fail = |message: String| {
        format_error(shard.path(), format!("tensor {name} {message}")).with("tensor", name.as_str())
    };
    let Some(element) = ElementType::from_name(&raw.dtype) else {
        return Err(fail(format!("has the unknown element type {:?}", raw.dtype))
            .with("value", raw.dtype.as_str()));
    };
    if raw.shape.len() > MAX_RANK {
        return Err(fail(format!("has {} dimensions, the limit is {MAX_RANK}", raw.shape.len())));
    }
    let (begin, end) = raw.data_offsets;
    let count = raw.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
    let Some(needed) = count.and_then(|n| element.bytes(n)) else {
        return Err(fail(format!("has the impossible shape {:?}", raw.shape)));
    };
    if begin.checked_add(needed) != Some(end) {
        return Err(fail(format!(
            "has shape {:?} of {}, {needed} bytes, but data_offsets [{begin}, {end}]",
            raw.shape,
            element.name()
        ))
        .with("limit", needed)
        .with("value", end.saturating_sub(begin)));
    }
    let shape =
        raw.shape.iter().map(|&d| usize::try_from(d)).collect::<std::result::Result<Vec<_>, _>>();
    let (Ok(shape), Some(offset)) = (shape, data_start.checked_add(begin)) else {
        return Err(fail(format!("lies beyond what can be addressed, at {begin}")));
    };
    Ok(Tensor { name, element, shape, offset, bytes: needed, file: Arc::clone(shard) })
}

/// Checks that the sorted tensors cover the data exactly.
fn check_cover(path: &Path, tensors: &[Tensor], data_start: u64, len: u64) -> Result<()> {
    let mut at = data_start;
    for tensor in tensors {
        let fail = |message: String| -> Error {
            format_error(path, format!("tensor {} {message}", tensor.name))
                .with("tensor", tensor.name.as_str())
                .with("limit", at)
                .with("value", tensor.offset)
        };
        if tensor.offset < at {
            return Err(fail(format!(
                "overlaps the one before it: it begins at byte {}, that one ends at {at}",
                tensor.offset
            )));
        }
        if tensor.offset > at {
            return Err(fail(format!(
                "leaves a gap: it begins at byte {}, the one before it ends at {at}",
                tensor.offset
            )));
        }
        let Some(end) = at.checked_add(tensor.bytes).filter(|&end| end <= len) else {
            let end = at.saturating_add(tensor.bytes);
            return Err(fail(format!(
                "ends at byte {end}, but the file is {len} bytes long: it is cut short"
            ))
            .with("limit", len)
            .with("value", end));
        };
        at = end;
    }
    if at != len {
        let message = format!("is {len} bytes long, but its tensors end at byte {at}");
        return Err(format_error(path, message).with("limit", at).with("value", len));
    }
    Ok(())
}

fn check_names(path: &Path, tensors: &[Tensor]) -> Result<()> {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let message = format!("tensor {} occurs twice in the header", pair[0]);
            Err(format_error(path, message).with("tensor", pair[0]))
        }
        None => Ok(()),
    }
}

/// The header's object as a list, so that a name that occurs twice is seen.
struct TensorList(Vec<(String, RawTensor)>);

impl<'de> Deserialize<'de> for TensorList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = TensorList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<TensorList, A::Error> {
                let mut list = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        list.push((name, map.next_value()?));
                    }
                }
                Ok(TensorList(list))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
