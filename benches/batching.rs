//! Does it batch, does it page? Qwen3-0.6B's shape with dummy weights, bfloat16.
//!
//! Prints decode speed of one stream and of 32, their ratio, the share of the machine's read
//! bandwidth that one stream moves, peak memory against weights + pool, and what two engines in one
//! process reach together.
//!
//! `cargo bench --bench batching [-- sharing]`; `sharing` is about other engines and busy hosts.

#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark prints")]

mod support;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use support::{Folder, QWEN3_0_6B, dummy, prompt, ready, request, spread, status_mib, time, wait};
use vrust::config::EngineOptions;
use vrust::engine::Engine;

const STREAMS: usize = 32;
const PROMPT: usize = 32;
const ROUNDS: usize = 5;
const POOL_BYTES: u64 = 512 << 20;
/// Parameters of the shape, two bytes each; embeddings are tied.
const PARAMETERS: usize = 596_049_920;

fn main() {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let folder = Folder::new(QWEN3_0_6B);
    let mut options = dummy(&folder);
    options.kv_cache_memory_bytes = Some(POOL_BYTES);
    options.max_model_len = Some(4096);
    if std::env::args().any(|a| a == "sharing") {
        two_engines(&ready(options.clone()), options.clone());
        return with_a_busy_host(&options);
    }
    let began = Instant::now();
    let engine = ready(options.clone());
    let info = engine.info().expect("it is ready");
    println!("backend {}, loaded in {:.1} s", info["backend"], began.elapsed().as_secs_f64());

    let (mut one, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let single = decode(&engine, 1, 24, round);
        let batched = decode(&engine, STREAMS, 24, round + 100);
        one.push(single);
        many.push(batched);
        ratios.push(batched / single);
    }
    let mut prefills: Vec<f64> = (0..ROUNDS).map(|round| prefill(&engine, 512, round)).collect();
    let peak = status_mib("VmHWM");
    two_engines(&engine, options);
    drop(engine);
    let after = status_mib("VmRSS");

    let mut bandwidth: Vec<f64> = (0..7).map(|_| read_bandwidth(threads)).collect();
    let weights = PARAMETERS as f64 * 2.0;
    let middle = support::median(&mut one);
    let moved = middle * weights / 1e9;
    println!("one stream          {} tokens/s", spread(&mut one, 1));
    println!("{STREAMS} streams          {} tokens/s", spread(&mut many, 1));
    println!("ratio               {} (target at least 6)", spread(&mut ratios, 2));
    println!("prefill of 512      {} tokens/s", spread(&mut prefills, 0));
    println!("read bandwidth      {} GB/s, {threads} threads", spread(&mut bandwidth, 1));
    let best = bandwidth[bandwidth.len() - 1];
    let share = 100.0 * moved / best;
    println!("one stream moves    {moved:.1} GB/s, {share:.0} % of the best read (target 50 %)");
    let allowed = weights / 1048576.0 + POOL_BYTES as f64 / 1048576.0 + 300.0;
    println!("peak resident       {peak:.0} MiB of {allowed:.0} (weights + pool + 300)");
    println!("resident after drop {after:.0} MiB");
}

/// What spinning and pinning cost or bring, alone and while a thread of the host's keeps a core.
fn with_a_busy_host(options: &EngineOptions) {
    for (spin, pin) in [(0, false), (50, false), (1000, false), (10_000, false), (10_000, true)] {
        let mut options = options.clone();
        (options.cpu_spin_us, options.cpu_pin_threads) = (spin, pin);
        let engine = ready(options);
        let mut alone: Vec<f64> = (0..ROUNDS).map(|r| decode(&engine, 1, 24, r + 500)).collect();
        let stop = AtomicBool::new(false);
        let mut beside: Vec<f64> = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let rates = (0..ROUNDS).map(|r| decode(&engine, 1, 24, r + 600)).collect();
            stop.store(true, Ordering::Relaxed);
            rates
        });
        let (alone, beside) = (spread(&mut alone, 1), spread(&mut beside, 1));
        let pinned = if pin { ", pinned" } else { "" };
        println!("spin {spin} us{pinned}: {alone} tokens/s, beside a busy thread {beside}");
    }
}

/// Do two engines share the cores? Tokens a second of one stream in each of two engines at once,
/// over those of one stream in one of them, and over those of two streams in one.
fn two_engines(first: &Engine, options: EngineOptions) {
    let second = ready(options);
    let (mut alone, mut double) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let one = decode(first, 1, 24, round + 200);
        let two = decode(first, 2, 24, round + 300);
        let both: f64 = thread::scope(|scope| {
            let run = |engine| scope.spawn(move || decode(engine, 1, 24, round + 400));
            [run(first), run(&second)].map(|t| t.join().expect("a decode")).iter().sum()
        });
        alone.push(both / one);
        double.push(both / two);
    }
    println!("two engines at once / one engine alone        {}", spread(&mut alone, 2));
    println!("two engines at once / one with two streams    {}", spread(&mut double, 2));
}

/// Tokens a second of `streams` streams, decode alone: from the first token of the last stream on.
fn decode(engine: &Engine, streams: usize, tokens: u32, seed: usize) -> f64 {
    let queue = engine.default_queue();
    for stream in 0..streams {
        let prompt = prompt(seed * 1000 + stream, PROMPT);
        engine.submit(request(prompt, tokens), queue).expect("room");
    }
    let mut events = Vec::new();
    let (mut started, mut ended) = (vec![false; 1 << 16], 0);
    let (mut running, mut counted, mut began) = (0, 0, None);
    while ended < streams {
        queue.drain(None, 1024, &mut events).expect("the only poller");
        for event in events.drain(..) {
            let slot = (event.request_id.0 % (1 << 16)) as usize;
            if let vrust::engine::EventKind::Delta(delta) = &event.kind {
                if !std::mem::replace(&mut started[slot], true) {
                    running += 1;
                }
                if began.is_some() {
                    counted += delta.token_ids.len();
                }
            }
            ended += usize::from(event.last);
        }
        if running == streams && began.is_none() {
            began = Some(Instant::now());
        }
    }
    counted as f64 / began.map_or(f64::MAX, |b| b.elapsed().as_secs_f64())
}

/// Prompt tokens a second of one prompt.
fn prefill(engine: &Engine, tokens: usize, seed: usize) -> f64 {
    let queue = engine.default_queue();
    let request = request(prompt(seed * 77 + 5000, tokens), 1);
    let took = time(|| {
        engine.submit(request, queue).expect("room");
        wait(queue, 1);
    });
    tokens as f64 / took
}

/// GB/s of reading 1 GiB of huge pages with all threads, four streams each: the best of readers
/// tried. One stream on small pages reads at half of that.
fn read_bandwidth(threads: usize) -> f64 {
    let words = HugeWords::new((1 << 30) / 8);
    let share = words.0.len() / threads;
    let read = || {
        thread::scope(|scope| {
            for part in words.0.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
    };
    read();
    let took = (0..3).map(|_| time(read)).fold(f64::MAX, f64::min);
    (words.0.len() * 8) as f64 / took / 1e9
}

/// Words on huge pages, where the kernel gives them, all touched.
struct HugeWords(&'static mut [u64]);

impl HugeWords {
    fn new(count: usize) -> Self {
        let (flags, bytes) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, count * 8);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping, checked before use; zeroes are valid words.
        let words = unsafe {
            let start = libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0);
            assert!(start != libc::MAP_FAILED, "no memory for the reader");
            libc::madvise(start, bytes, libc::MADV_HUGEPAGE);
            std::slice::from_raw_parts_mut(start.cast::<u64>(), count)
        };
        words.fill(1);
        Self(words)
    }
}

impl Drop for HugeWords {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing uses any more.
        unsafe { libc::munmap(self.0.as_mut_ptr().cast(), self.0.len() * 8) };
    }
}

/// Sums four quarters side by side.
fn sum(words: &[u64]) -> u64 {
    const STEP: usize = 16;
    let quarter = words.len() / 4;
    let mut sums = [0u64; STEP];
    for start in (0..quarter - STEP).step_by(STEP) {
        for stream in 0..4 {
            let at = stream * quarter + start;
            for (sum, word) in sums.iter_mut().zip(&words[at..at + STEP]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
