//! How long from the start of a process to the first token, and how much memory? Qwen3-0.6B's
//! shape, bfloat16, as a file of 1.2 GB in the page cache, for each weight format.
//!
//! Each turn is a process of its own: it loads, answers a prompt of 32 tokens with one token, and
//! reports. `pack` is the time between the first and the last report of progress.
//!
//! `cargo bench --bench loading [-- FOLDER]`; without a folder a seeded checkpoint is written to
//! the temporary folder and removed.

#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark prints")]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, TensorView};
use support::{Folder, QWEN3_0_6B, median, prompt, request, spread, status_mib};
use vrust::config::{EngineOptions, Quantization};
use vrust::engine::{Engine, EventKind};

const ROUNDS: usize = 5;
const POOL_BYTES: u64 = 2 << 30;
const FORMATS: [&str; 3] = ["none", "int8", "int4"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [child, format, folder] = &args[..]
        && child == "--child"
    {
        return one_start(format, Path::new(folder));
    }
    let written = args.is_empty().then(|| {
        let folder = Folder::new(QWEN3_0_6B);
        write_checkpoint(folder.path());
        folder
    });
    let folder = match &written {
        Some(folder) => folder.path().to_owned(),
        None => PathBuf::from(&args[0]),
    };
    let gigabytes = std::fs::metadata(folder.join("model.safetensors")).map_or(0, |m| m.len());
    let gigabytes = gigabytes as f64 / 1e9;
    for format in FORMATS {
        let mut figures: HashMap<String, Vec<f64>> = HashMap::new();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let this = std::env::current_exe().expect("a program");
            let output = Command::new(this).args(["--child", format]).arg(&folder).output();
            let text = String::from_utf8(output.expect("a child").stdout).expect("text");
            figures.entry("process".into()).or_default().push(began.elapsed().as_secs_f64());
            for pair in text.split_whitespace() {
                let (name, value) = pair.split_once('=').expect("name=value");
                let value = value.parse().expect("a number");
                figures.entry(name.into()).or_default().push(value);
            }
        }
        println!("{format}:");
        let mut packing = figures["pack"].clone();
        println!("  packing {:.2} GB/s", gigabytes / median(&mut packing));
        for name in ["tokenizer", "pack", "ready", "first", "process"] {
            let figure = spread(figures.get_mut(name).expect("it was printed"), 3);
            println!("  {name:9} {figure} s");
        }
        for name in ["peak", "allowed"] {
            let figure = spread(figures.get_mut(name).expect("it was printed"), 0);
            println!("  {name:9} {figure} MiB");
        }
    }
}

/// Loads, generates a token and prints the figures.
fn one_start(format: &str, folder: &Path) {
    let began = Instant::now();
    let mut options = EngineOptions::new(folder);
    options.kv_cache_memory_bytes = Some(POOL_BYTES);
    options.quantization =
        [Quantization::Int8, Quantization::Int4].into_iter().find(|q| q.name() == format);
    options.skip_tokenizer = !folder.join("tokenizer.json").exists();
    let engine = Engine::create(options).expect("options");
    let queue = engine.default_queue();
    let (mut events, mut fractions) = (Vec::new(), Vec::new());
    let mut at = [0.0; 3];
    while at[2] == 0.0 {
        queue.drain(Some(Duration::from_secs(60)), 1024, &mut events).expect("the only poller");
        for event in events.drain(..) {
            let EventKind::Load(fraction) = event.kind else { panic!("loading failed") };
            let now = began.elapsed().as_secs_f64();
            fractions.push(fraction);
            match fraction {
                0.0 => at[0] = now,
                1.0 => at[2] = now,
                _ => at[1] = now,
            }
        }
    }
    assert!(fractions.is_sorted(), "{fractions:?}");
    engine.submit(request(prompt(1, 32), 1), queue).expect("room");
    support::wait(queue, 1);
    let first = began.elapsed().as_secs_f64();
    let info = engine.info().expect("it is ready");
    // What one prompt touches of the pool is next to nothing.
    let weights = weight_mib(format);
    let allowed = weights + 200.0 + info["block_size"].as_f64().unwrap_or(0.0) * 4.0 / 1024.0;
    let [tokenizer, packed, ready] = at;
    println!(
        "tokenizer={tokenizer} pack={} ready={ready} first={first} peak={} allowed={allowed}",
        packed - tokenizer,
        status_mib("VmHWM"),
    );
}

/// MiB of the shape's weights: all are matrices, but for some vectors.
fn weight_mib(format: &str) -> f64 {
    const TABLE: f64 = 151_936.0 * 1024.0;
    const HIDDEN: f64 = 596_049_920.0 - TABLE;
    let (table_bits, hidden_bits) = match format {
        "int8" => (8.0, 8.0),
        "int4" => (8.0, 4.5),
        _ => (16.0, 16.0),
    };
    (TABLE * table_bits + HIDDEN * hidden_bits) / 8.0 / f64::from(1 << 20)
}

/// Seeded weights of the shape, as one file.
fn write_checkpoint(folder: &Path) {
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![151_936, 1024])];
    for layer in 0..28 {
        let of_layer: [(&str, &[usize]); 11] = [
            ("input_layernorm", &[1024]),
            ("self_attn.q_proj", &[2048, 1024]),
            ("self_attn.k_proj", &[1024, 1024]),
            ("self_attn.v_proj", &[1024, 1024]),
            ("self_attn.o_proj", &[1024, 2048]),
            ("self_attn.q_norm", &[128]),
            ("self_attn.k_norm", &[128]),
            ("post_attention_layernorm", &[1024]),
            ("mlp.gate_proj", &[3072, 1024]),
            ("mlp.up_proj", &[3072, 1024]),
            ("mlp.down_proj", &[1024, 3072]),
        ];
        shapes.extend(of_layer.map(|(n, s)| (format!("model.layers.{layer}.{n}"), s.to_vec())));
    }
    shapes.push(("model.norm".to_owned(), vec![1024]));
    let mut state = 1u64;
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let bytes = (0..count).flat_map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let spread = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
                let value = if shape.len() == 1 { 1.0 } else { 0.07 * spread };
                half::bf16::from_f32(value).to_le_bytes()
            });
            let bytes = bytes.collect();
            (format!("{name}.weight"), shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("sizes");
        (name.as_str(), view)
    });
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).expect("room for a checkpoint");
}
