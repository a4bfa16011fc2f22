//! How speed grows: with threads, with the number of streams, with the context. Qwen3-0.6B's
//! shape with dummy weights, bfloat16; greedy, the end of text ignored.
//!
//! `cargo bench --bench growth [-- [--only threads|streams|context|many] [FOLDER]]` prints four
//! tables, or one; FOLDER takes charts of three. `many` is 32 streams of 1,024 positions, beside
//! what the machine allows: for each op the longer of its bytes and its arithmetic, summed.
//!
//! A decode figure is `streams * (TOKENS - 1) / (time for TOKENS tokens - time for 1)`, both with
//! the prompt found in the prefix cache; a prefill figure is the prompt's first time.

#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark prints")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::Value;
use support::chart::{Line, chart};
use support::{Folder, QWEN3_0_6B, dummy, median, ready, request, spread, time, wait};
use vrust::config::KvCacheDType;
use vrust::engine::Engine;
use vrust::ids::TokenId;

const TOKENS: u32 = 25;
const ROUNDS: usize = 3;
const CONTEXT: usize = 128;
const POOL_BYTES: u64 = 2 << 30;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let only = args.iter().position(|a| a == "--only").map(|at| {
        args.remove(at);
        args.remove(at)
    });
    let wants = |part: &str| only.as_deref().is_none_or(|o| o == part);
    let charts = args.first().map(Path::new);
    let folder = Folder::new(QWEN3_0_6B);
    let all = thread::available_parallelism().map_or(1, usize::from);
    if wants("threads") {
        with_threads(&folder, all, charts);
    }
    if wants("streams") {
        with_streams(&engine(&folder, all), all, charts);
    }
    if wants("context") {
        with_context(&engine(&folder, all), all, charts);
    }
    if wants("many") {
        for dtype in [KvCacheDType::Auto, KvCacheDType::Int8] {
            many(&engine_with(&folder, all, 2 * POOL_BYTES, dtype), all, dtype);
        }
    }
}

fn engine(folder: &Folder, threads: usize) -> Engine {
    engine_with(folder, threads, POOL_BYTES, KvCacheDType::Auto)
}

fn engine_with(folder: &Folder, threads: usize, pool: u64, dtype: KvCacheDType) -> Engine {
    let mut options = dummy(folder);
    options.kv_cache_memory_bytes = Some(pool);
    options.kv_cache_dtype = dtype;
    options.max_model_len = Some(8448);
    options.max_num_seqs = 64;
    options.cpu_threads = Some(threads);
    ready(options)
}

/// From one thread to all; the chart shows multiples of one thread's figures.
fn with_threads(folder: &Folder, all: usize, charts: Option<&Path>) {
    let counts: Vec<usize> = (1..=all).collect();
    let names = ["decode, 1 stream", "decode, 16 streams", "prefill of 512"];
    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    for &threads in &counts {
        let engine = engine(folder, threads);
        let one = decode(&engine, 1, CONTEXT);
        let many = decode(&engine, 16, CONTEXT);
        let prefill = prefill(&engine, 512, ROUNDS);
        for (i, mut values) in [one, many, prefill].into_iter().enumerate() {
            println!("{threads} threads, {}: {} tokens/s", names[i], spread(&mut values, 1));
            figures[i].push(median(&mut values));
        }
    }
    let lines: Vec<Line<'_>> = (names.iter().zip(&figures))
        .map(|(name, f)| Line { name, values: f.iter().map(|v| v / f[0]).collect() })
        .collect();
    draw(charts, "threads", "Speed with threads, one thread = 1", "threads", &counts, &lines);
}

fn with_streams(engine: &Engine, threads: usize, charts: Option<&Path>) {
    let counts = [1, 2, 4, 8, 16, 32, 64];
    let mut values = Vec::new();
    for streams in counts {
        let mut rates = decode(engine, streams, CONTEXT);
        println!("{streams} streams, context {CONTEXT}: {} tokens/s", spread(&mut rates, 1));
        values.push(median(&mut rates));
    }
    let lines = [Line { name: "decode, tokens/s", values }];
    let title = format!("Decode with streams, {threads} threads, context {CONTEXT}");
    draw(charts, "streams", &title, "streams", &counts, &lines);
}

fn with_context(engine: &Engine, threads: usize, charts: Option<&Path>) {
    let counts = [128, 256, 512, 1024, 2048, 4096, 8192];
    let (mut decodes, mut prefills) = (Vec::new(), Vec::new());
    for context in counts {
        // Long prompts are computed once, for both.
        let (first, mut decode) = first_and_decode(engine, 1, context);
        let long = context > 2048;
        let rate = context as f64 / first;
        let mut prefill = if long { vec![rate] } else { prefill(engine, context, ROUNDS) };
        println!("context {context}: decode {} tokens/s", spread(&mut decode, 1));
        println!("context {context}: prefill {} tokens/s", spread(&mut prefill, 0));
        decodes.push(median(&mut decode));
        prefills.push(median(&mut prefill));
    }
    // On one scale: each as a share of its own best.
    let shares = |values: Vec<f64>| {
        let best = values.iter().copied().fold(0.0, f64::max);
        values.into_iter().map(|v| 100.0 * v / best).collect()
    };
    let lines = [
        Line { name: "decode, 1 stream", values: shares(decodes) },
        Line { name: "prefill", values: shares(prefills) },
    ];
    let title = format!("Speed with context, {threads} threads, % of the best");
    draw(charts, "context", &title, "positions", &counts, &lines);
}

/// A decode step of 32 streams at 1,024 positions, against the limit where the machine's rates are
/// known. Memory's rate drifts: it is measured anew beside each round, on both sides of it.
fn many(engine: &Engine, threads: usize, dtype: KvCacheDType) {
    const STREAMS: usize = 32;
    const LENGTH: usize = 1024;
    // A weight takes two bytes and two operations a row; a position's keys and values 2 * 1,024
    // numbers in each of 28 layers, and a query four operations with each of its 16 heads' 128.
    let positions = (STREAMS * (LENGTH + TOKENS as usize / 2)) as f64;
    let number = if dtype == KvCacheDType::Int8 { 1.0 } else { 2.0 };
    let (weights, cache) = (1.192e9, positions * 28.0 * 2048.0 * number);
    let limit = |read: f64, dots: f64| {
        let linear = f64::max(weights / read, STREAMS as f64 * weights / dots);
        let attention = f64::max(cache / read, positions * 28.0 * 4.0 * 2048.0 / dots);
        1e3 * (linear + attention)
    };
    let machine = Machine::new(threads);
    let dots = machine.as_ref().and_then(Machine::dots);
    let read = || machine.as_ref().and_then(Machine::read);
    let prompts: Vec<Vec<TokenId>> = (0..STREAMS).map(|s| fresh(s, LENGTH)).collect();
    run(engine, &prompts, 1);
    let (mut steps, mut limits, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = read();
    for _ in 0..ROUNDS {
        let step = 1e3 * STREAMS as f64 / decode_rate(engine, &prompts);
        let after = read();
        steps.push(step);
        if let (Some(before), Some(after), Some(dots)) = (before, after, dots) {
            limits.push(limit((before + after) / 2.0, dots));
            shares.push(limits[limits.len() - 1] / step);
        }
        before = after;
    }
    let steps = spread(&mut steps, 1);
    println!("{STREAMS} streams, context {LENGTH}, KV {dtype:?}: {steps} ms a step");
    if shares.is_empty() {
        println!("what the machine allows is not known: it wants a C compiler and x86-64");
    } else {
        println!("  limit {} ms: share {}", spread(&mut limits, 1), spread(&mut shares, 2));
    }
}

/// benches/peers/machine.c, compiled: what the machine's memory and registers do.
struct Machine {
    program: PathBuf,
    threads: usize,
}

impl Machine {
    /// None where there is no compiler for it.
    fn new(threads: usize) -> Option<Machine> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/machine.c");
        let name = format!("vrust-machine-{}", std::process::id());
        let machine = Machine { program: std::env::temp_dir().join(name), threads };
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-pthread", "-o"]).arg(&machine.program).arg(source);
        compiler.status().is_ok_and(|status| status.success()).then_some(machine)
    }

    /// Operations a second of all threads' best dot product of bfloat16 or f32.
    fn dots(&self) -> Option<f64> {
        self.best("GFLOP/s", &[])
    }

    /// Bytes a second of the best of all threads' readers, each averaged over some seconds.
    fn read(&self) -> Option<f64> {
        self.best("GB/s", &["read"])
    }

    fn best(&self, unit: &str, arguments: &[&str]) -> Option<f64> {
        let mut program = Command::new(&self.program);
        let output = program.arg(self.threads.to_string()).args(arguments).output().ok()?;
        let figures: Value = serde_json::from_slice(&output.stdout).ok()?;
        let wanted = format!("{unit}, {} thread", self.threads);
        let figures = figures.as_object()?.iter().filter(|(name, _)| name.contains(&wanted));
        figures.filter_map(|(_, value)| value.as_f64()).map(|v| v * 1e9).reduce(f64::max)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.program);
    }
}

fn draw(
    charts: Option<&Path>,
    file: &str,
    title: &str,
    x_name: &str,
    counts: &[usize],
    lines: &[Line<'_>],
) {
    let Some(folder) = charts else { return };
    let labels: Vec<String> = counts.iter().map(usize::to_string).collect();
    std::fs::create_dir_all(folder).expect("a folder for charts");
    let path = folder.join(format!("growth-{file}.svg"));
    std::fs::write(&path, chart(title, x_name, &labels, lines)).expect("room for a chart");
}

/// Output tokens a second of `streams` streams after prompts of `context`, of each round.
fn decode(engine: &Engine, streams: usize, context: usize) -> Vec<f64> {
    first_and_decode(engine, streams, context).1
}

/// Seconds to the prompts' first tokens, and then as `decode`.
fn first_and_decode(engine: &Engine, streams: usize, context: usize) -> (f64, Vec<f64>) {
    let prompts: Vec<Vec<TokenId>> = (0..streams).map(|s| fresh(s, context)).collect();
    let first = run(engine, &prompts, 1);
    (first, (0..ROUNDS).map(|_| decode_rate(engine, &prompts)).collect())
}

/// Output tokens a second of prompts that the prefix cache has.
fn decode_rate(engine: &Engine, prompts: &[Vec<TokenId>]) -> f64 {
    let one = run(engine, prompts, 1);
    let seconds = run(engine, prompts, TOKENS) - one;
    prompts.len() as f64 * f64::from(TOKENS - 1) / seconds
}

/// Prompt tokens a second, of each round.
fn prefill(engine: &Engine, length: usize, rounds: usize) -> Vec<f64> {
    let rates = (0..rounds).map(|r| length as f64 / run(engine, &[fresh(1000 + r, length)], 1));
    rates.collect()
}

/// Seconds until all are done.
fn run(engine: &Engine, prompts: &[Vec<TokenId>], tokens: u32) -> f64 {
    let queue = engine.default_queue();
    time(|| {
        for prompt in prompts {
            engine.submit(request(prompt.clone(), tokens), queue).expect("room");
        }
        wait(queue, prompts.len());
    })
}

/// Random ids: a prompt shares no block with one of another stream or length.
fn fresh(stream: usize, length: usize) -> Vec<TokenId> {
    let mut state = (stream as u64) << 32 | length as u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            TokenId(300 + (state >> 33) as u32 % 100_000)
        })
        .collect()
}
