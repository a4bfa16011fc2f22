//! Broken checkpoints: each is refused with the right kind of error and a message that names what
//! is wrong; none panics, hangs or allocates what a header claims.

use std::fs;
use std::path::Path;

use serde_json::json;
use vrust::backend::reference::ReferenceBackend;
use vrust::backend::{ComputeType, RowSource};
use vrust::config::LoadFormat;
use vrust::error::{Error, ErrorKind, Result};
use vrust::model::{self, LoadOptions, ModelConfig};
use vrust::weights::{Checkpoint, TensorRows};

use crate::support::folder::{
    TempDir, edit_header, edit_json, edit_tensor, entry, safetensors, set_fields,
};
use crate::support::golden::folder;
use crate::support::log::warnings;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn load(dir: &Path) -> Result<()> {
    let config = ModelConfig::from_dir(dir)?;
    let options = LoadOptions { dir, load_format: LoadFormat::Auto, seed: 0, max_model_len: None };
    let mut backend = ReferenceBackend::new(ComputeType::F32);
    model::load(&config, &options, &mut backend, |_| Ok(())).map(|_| ())
}

/// Breaks a copy of a golden case and checks how it is refused.
fn check(case: &str, damage: impl FnOnce(&TempDir), kind: ErrorKind, says: &[&str]) -> Error {
    let copy = TempDir::copy_of(&folder(case));
    load(copy.path()).unwrap();
    damage(&copy);
    let error = load(copy.path()).expect_err("a broken checkpoint is refused");
    assert_eq!(error.kind(), kind, "{error}");
    for part in says {
        assert!(error.message().contains(part), "{part:?} is not in: {error}");
    }
    error
}

/// Breaks the header of `llama2`.
fn check_header(edit: impl FnOnce(&mut serde_json::Value), says: &[&str]) {
    let damage = |dir: &TempDir| edit_header(&dir.join(WEIGHTS), edit);
    check("llama2", damage, ErrorKind::ModelFormat, says);
}

const NORM: &str = "model.norm.weight";

#[test]
fn file_cut_short() {
    let damage = |dir: &TempDir| {
        let file = fs::read(dir.join(WEIGHTS)).unwrap();
        fs::write(dir.join(WEIGHTS), &file[..file.len() - 100]).unwrap();
    };
    let error = check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, "tensor", "cut short"]);
    assert!(error.detail()["limit"].as_u64() < error.detail()["value"].as_u64());
}

#[test]
fn file_cut_short_while_it_is_read() {
    let copy = TempDir::copy_of(&folder("llama2"));
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let source = TensorRows::new(checkpoint.get("lm_head.weight").unwrap()).unwrap();
    fs::OpenOptions::new().write(true).open(copy.join(WEIGHTS)).unwrap().set_len(5000).unwrap();
    let mut out = vec![0; source.rows() * source.cols() * source.dtype().size()];
    let error = source.read_rows(0..source.rows(), &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    for part in [WEIGHTS, "lm_head.weight"] {
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn file_cut_within_header() {
    let damage = |dir: &TempDir| {
        let file = fs::read(dir.join(WEIGHTS)).unwrap();
        fs::write(dir.join(WEIGHTS), &file[..200]).unwrap();
    };
    check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, "header length", "192"]);
    let damage = |dir: &TempDir| fs::write(dir.join(WEIGHTS), [1, 2, 3]).unwrap();
    check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, "3 bytes"]);
    let damage = |dir: &TempDir| fs::write(dir.join(WEIGHTS), []).unwrap();
    check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, "0 bytes"]);
}

#[test]
fn header_length_lies() {
    let claim = |length: u64| {
        move |dir: &TempDir| {
            let mut file = fs::read(dir.join(WEIGHTS)).unwrap();
            file[..8].copy_from_slice(&length.to_le_bytes());
            fs::write(dir.join(WEIGHTS), file).unwrap();
        }
    };
    let says = [WEIGHTS, "header length", "18446744073709551615"];
    check("llama2", claim(u64::MAX), ErrorKind::ModelFormat, &says);
    check("llama2", claim(99_000_000), ErrorKind::ModelFormat, &[WEIGHTS, "99000000", "limit"]);
    check("llama2", claim(11), ErrorKind::ModelFormat, &[WEIGHTS, "bad header"]);
}

#[test]
fn offsets_overlap_or_leave_gaps() {
    let size = 64 * 4;
    check_header(
        |h| {
            let begin = h[NORM]["data_offsets"][0].as_u64().unwrap() - 4;
            h[NORM]["data_offsets"] = json!([begin, begin + size]);
        },
        &[WEIGHTS, "overlaps"],
    );
    check_header(
        |h| {
            let begin = h[NORM]["data_offsets"][0].as_u64().unwrap() + 4;
            h[NORM]["data_offsets"] = json!([begin, begin + size]);
        },
        &[WEIGHTS, "gap"],
    );
    check_header(
        |h| h[NORM]["data_offsets"] = json!([u64::MAX - size, u64::MAX]),
        &[WEIGHTS, NORM],
    );
    check_header(|h| h[NORM]["data_offsets"] = json!([size, 0]), &[WEIGHTS, NORM, "data_offsets"]);
}

#[test]
fn bytes_after_the_last_tensor() {
    let damage = |dir: &TempDir| {
        let mut file = fs::read(dir.join(WEIGHTS)).unwrap();
        file.extend_from_slice(&[0; 5]);
        fs::write(dir.join(WEIGHTS), file).unwrap();
    };
    check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, "its tensors end"]);
}

#[test]
fn shapes_that_lie() {
    check_header(|h| h[NORM]["shape"] = json!([65]), &[WEIGHTS, NORM, "[65]", "data_offsets"]);
    check_header(
        |h| h[NORM]["shape"] = json!([u64::MAX, 2]),
        &[WEIGHTS, NORM, "impossible shape", "18446744073709551615"],
    );
    check_header(|h| h[NORM]["shape"] = json!(vec![1; 99]), &[WEIGHTS, NORM, "99 dimensions"]);
    check_header(|h| h[NORM]["shape"] = json!([-64]), &[WEIGHTS, "bad header"]);
}

#[test]
fn element_types() {
    check_header(|h| h[NORM]["dtype"] = json!("F31"), &[WEIGHTS, NORM, "F31", "unknown"]);
    check_header(|h| h[NORM]["dtype"] = json!("I32"), &[WEIGHTS, NORM, "I32", "BF16"]);
    check_header(|h| h[NORM]["dtype"] = json!("F16"), &[WEIGHTS, NORM, "data_offsets"]);
}

#[test]
fn name_twice_in_a_header() {
    let damage = |dir: &TempDir| {
        let header = r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
                         "a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        fs::write(dir.join(WEIGHTS), file).unwrap();
    };
    check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, "tensor a", "twice"]);
}

#[test]
fn name_in_two_shards() {
    let damage = |dir: &TempDir| {
        let header = json!({NORM: entry("F32", &[1], [0, 4])});
        fs::write(dir.join("extra.safetensors"), safetensors(&header, &[0; 4])).unwrap();
        edit_json(&dir.join(INDEX), |v| v["weight_map"]["x"] = json!("extra.safetensors"));
    };
    check("llama2-sharded", damage, ErrorKind::ModelFormat, &[NORM, "also in"]);
}

#[test]
fn missing_tensors_are_named_before_anything_is_read() {
    let damage = |dir: &TempDir| {
        edit_header(&dir.join(WEIGHTS), |h| {
            for name in ["model.layers.1.mlp.up_proj.weight", NORM] {
                let entry = h.as_object_mut().unwrap().shift_remove(name).unwrap();
                h[format!("renamed.{name}")] = entry;
            }
        });
        // Had the weights been read, this is what would have been found.
        edit_tensor(&dir.join(WEIGHTS), "lm_head.weight", |w| w[0] = f32::NAN);
    };
    let says = ["lacks", "model.layers.1.mlp.up_proj.weight", NORM];
    check("llama2", damage, ErrorKind::ModelFormat, &says);
}

#[test]
fn shape_against_config() {
    let damage = |dir: &TempDir| {
        set_fields(&dir.join("config.json"), &json!({"intermediate_size": 128}));
    };
    let says = ["model.layers.0.mlp.gate_proj.weight", "[96, 64]", "[128, 64]"];
    check("llama2", damage, ErrorKind::ModelFormat, &says);
    let damage = |dir: &TempDir| set_fields(&dir.join("config.json"), &json!({"vocab_size": 999}));
    check("gpt2", damage, ErrorKind::ModelFormat, &["transformer.wte.weight", "[999, 48]"]);
}

#[test]
fn nan_and_infinity() {
    let name = "model.layers.1.mlp.down_proj.weight";
    for (bad, word) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let damage = |dir: &TempDir| edit_tensor(&dir.join(WEIGHTS), name, |w| w[96 * 7 + 5] = bad);
        check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, name, word, "[7, 5]"]);
    }
    let damage = |dir: &TempDir| edit_tensor(&dir.join(WEIGHTS), NORM, |w| w[63] = f32::NAN);
    check("llama2", damage, ErrorKind::ModelFormat, &[NORM, "NaN", "[63]"]);
    // Stored transposed: the place is that in the file.
    let name = "transformer.h.0.mlp.c_fc.weight";
    let damage =
        |dir: &TempDir| edit_tensor(&dir.join(WEIGHTS), name, |w| w[192 * 3 + 100] = f32::INFINITY);
    check("gpt2", damage, ErrorKind::ModelFormat, &[name, "inf", "[3, 100]"]);
}

#[test]
fn tensors_that_nobody_uses_are_warned_of() {
    for case in CASES_WITHOUT_SURPRISES {
        assert_eq!(warnings(|| load(&folder(case)).unwrap()), Vec::<String>::new(), "{case}");
    }
    let copy = TempDir::copy_of(&folder("llama2"));
    edit_header(&copy.join(WEIGHTS), |h| {
        for i in 0..6 {
            h[format!("model.layers.{i}.self_attn.q_proj.bias")] = entry("F32", &[0], [0, 0]);
        }
    });
    let warnings = warnings(|| load(copy.path()).unwrap());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in ["model.layers.0.self_attn.q_proj.bias", "and 2 more", "count=6"] {
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
}

/// Masks of `gpt2-base` are known buffers.
const CASES_WITHOUT_SURPRISES: &[&str] = &["gpt2", "gpt2-base", "llama2-sharded", "qwen3"];

#[test]
fn missing_files() {
    let remove = |name: &'static str| move |dir: &TempDir| fs::remove_file(dir.join(name)).unwrap();
    let shard = "model-00002-of-00003.safetensors";
    check("llama2-sharded", remove(shard), ErrorKind::NotFound, &[shard]);
    check("llama2-sharded", remove(INDEX), ErrorKind::NotFound, &[WEIGHTS, INDEX]);
    check("llama2", remove(WEIGHTS), ErrorKind::NotFound, &[WEIGHTS]);
    check("llama2", remove("config.json"), ErrorKind::NotFound, &["config.json"]);
    let error = load(Path::new("/does/not/exist")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn other_formats_are_named() {
    for name in ["pytorch_model.bin", "model-q4.gguf"] {
        let damage = |dir: &TempDir| fs::rename(dir.join(WEIGHTS), dir.join(name)).unwrap();
        check("llama2", damage, ErrorKind::Unsupported, &[name, "safetensors"]);
    }
}

#[test]
fn a_folder_in_place_of_a_file() {
    let damage = |dir: &TempDir| {
        fs::remove_file(dir.join(WEIGHTS)).unwrap();
        fs::create_dir(dir.join(WEIGHTS)).unwrap();
    };
    check("llama2", damage, ErrorKind::Io, &[WEIGHTS, "not a regular file"]);
}

#[test]
fn bad_indexes() {
    let map = |value: serde_json::Value| {
        move |dir: &TempDir| edit_json(&dir.join(INDEX), |v| v["weight_map"][NORM] = value)
    };
    let says = [INDEX, NORM, "no file name"];
    for bad in [json!("../../etc/passwd"), json!("/etc/passwd"), json!(".."), json!(7)] {
        check("llama2-sharded", map(bad), ErrorKind::ModelFormat, &says);
    }
    let elsewhere = map(json!("model-00001-of-00003.safetensors"));
    check("llama2-sharded", elsewhere, ErrorKind::ModelFormat, &[INDEX, NORM, "does not have it"]);
    let damage = |dir: &TempDir| fs::write(dir.join(INDEX), "{}").unwrap();
    check("llama2-sharded", damage, ErrorKind::ModelFormat, &[INDEX, "weight_map"]);
}

#[test]
fn bad_json() {
    let write = |text: String| {
        move |dir: &TempDir| fs::write(dir.join("config.json"), text.as_bytes()).unwrap()
    };
    let bomb = "[".repeat(1_000_000);
    let nested = format!("{{\"a\":{}1{}}}", "[".repeat(500), "]".repeat(500));
    let cases = [
        ("{\"vocab_size\":".to_owned(), "bad JSON"),
        (bomb, "bad JSON"),
        (nested, "recursion limit"),
        ("[1]".to_owned(), "not an object"),
        (String::new(), "bad JSON"),
        (format!("{{\"a\":\"{}\"}}", "x".repeat(5 << 20)), "limit"),
        ("{\"rope_theta\":1e999}".to_owned(), "bad JSON"),
        ("{\"rope_theta\":NaN}".to_owned(), "bad JSON"),
    ];
    for (text, says) in cases {
        check("llama2", write(text), ErrorKind::ModelFormat, &["config.json", says]);
    }
    let header = format!("{{\"a\":{}", "[".repeat(100_000));
    let damage = |dir: &TempDir| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        fs::write(dir.join(WEIGHTS), file).unwrap();
    };
    check("llama2", damage, ErrorKind::ModelFormat, &[WEIGHTS, "bad header"]);
}
