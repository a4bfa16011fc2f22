//! Temporary model folders, and edits of what is in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// A folder that is removed when dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// A new, empty folder.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vrust-test-{}-{unique}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A copy of a folder's files.
    pub(crate) fn copy_of(source: &Path) -> Self {
        let copy = Self::new();
        for entry in fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            // Not `fs::copy`: the copies must be writable whatever the originals are.
            fs::write(copy.0.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
        }
        copy
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nothing depends on it, and a failing test should say why it fails, not this.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Rewrites a JSON file.
pub(crate) fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Sets fields of a JSON object; null removes them.
pub(crate) fn set_fields(path: &Path, fields: &Value) {
    edit_json(path, |value| {
        let object = value.as_object_mut().unwrap();
        for (key, field) in fields.as_object().unwrap() {
            match field {
                Value::Null => object.remove(key),
                other => object.insert(key.clone(), other.clone()),
            };
        }
    });
}

/// Rewrites the header of a safetensors file and leaves the data as it is.
pub(crate) fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let file = fs::read(path).unwrap();
    let (mut header, data_start) = read_header(&file);
    edit(&mut header);
    fs::write(path, safetensors(&header, &file[data_start..])).unwrap();
}

/// Rewrites the elements of an f32 tensor.
pub(crate) fn edit_tensor(path: &Path, name: &str, edit: impl FnOnce(&mut [f32])) {
    let mut file = fs::read(path).unwrap();
    let (header, data_start) = read_header(&file);
    assert_eq!(header[name]["dtype"], "F32", "{name}");
    let offset = |i: usize| data_start + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    let bytes = &mut file[offset(0)..offset(1)];
    let elements = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let mut elements: Vec<f32> = elements.collect();
    edit(&mut elements);
    for (b, x) in bytes.chunks_exact_mut(4).zip(elements) {
        b.copy_from_slice(&x.to_le_bytes());
    }
    fs::write(path, file).unwrap();
}

/// A safetensors file of this header and data.
pub(crate) fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A header's entry.
pub(crate) fn entry(dtype: &str, shape: &[u64], offsets: [u64; 2]) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}

fn read_header(file: &[u8]) -> (Value, usize) {
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + len]).unwrap(), 8 + len)
}
