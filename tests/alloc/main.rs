//! Steady decoding allocates nothing on the compute path. A binary of its own, because it counts
//! with its own global allocator, and without the test harness, because the count is the process's:
//! the harness allocates when a test takes a minute, to say so.
//!
//! Counted is every allocation and reallocation of every thread, from `begin_step` over the model's
//! forward pass to the end of `map_logits`, sampling on the compute threads included. What the
//! engine does around it (batches, events) is counted apart, and has a bound.

#![allow(clippy::print_stdout, reason = "says what it counted")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use vrust::backend::cpu::{CpuBackend, CpuOptions, isa};
use vrust::backend::{Backend, ComputeType, SeqInput, StepInput, StepLimits};
use vrust::config::{CpuIsa, EngineOptions, LoadFormat, Quantization};
use vrust::engine::Engine;
use vrust::error::ErrorKind;
use vrust::ids::{BlockId, TokenId};
use vrust::model::{self, LoadOptions, Model, ModelConfig};
use vrust::request::{Input, Limits, Request, SamplingDefaults, SamplingParams};
use vrust::sampling::SequenceSampler;

/// The system's allocator, and how often it was asked.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps GlobalAlloc's rules.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's rules.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps GlobalAlloc's rules.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps GlobalAlloc's rules.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const STREAMS: usize = 4;
/// Steps before counting starts: they make the step's plans and each thread's scratch.
const WARM_UP: usize = 4;
const STEPS: usize = 1_000;
/// Fewer where each takes long.
const EMULATED_STEPS: usize = 50;
const BLOCK_SIZE: usize = 16;
const VOCAB: usize = 300;
/// Two layers of grouped heads with norms, all shapes odd to a vector's length.
const CONFIG: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 72,
    "intermediate_size": 104, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 20, "vocab_size": 300, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "tie_word_embeddings": true,
    "hidden_act": "silu", "attention_bias": false, "eos_token_id": 0, "torch_dtype": "bfloat16"
}"#;
/// What the engine may allocate around a step of `STREAMS` sequences, the host's polling included.
const AROUND_A_STEP: f64 = 6.0 + 4.0 * STREAMS as f64;

fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

fn main() {
    steady_decoding_allocates_nothing_on_the_compute_path();
    println!("test result: ok. 1 passed; 0 failed");
}

fn steady_decoding_allocates_nothing_on_the_compute_path() {
    let before = allocations();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(allocations() - before, 1, "the counter counts");

    let folder = Folder::new();
    let emulated = emulate_amx();
    for isa in isa::ALL {
        let steps = if emulated && isa == CpuIsa::Amx { EMULATED_STEPS } else { STEPS };
        for quantization in [None, Some(Quantization::Int8), Some(Quantization::Int4)] {
            for threads in if quantization.is_none() { 1..=2 } else { 2..=2 } {
                let options = CpuOptions {
                    quantization,
                    threads: Some(threads),
                    isa: Some(isa),
                    ..CpuOptions::new(ComputeType::Bf16)
                };
                match CpuBackend::new(options) {
                    Ok(backend) => count_compute_path(&folder, backend, threads, steps),
                    Err(e) if e.kind() == ErrorKind::Unsupported => println!("skipped: {e}"),
                    Err(e) => panic!("{isa:?}: {e}"),
                }
            }
        }
    }
    count_engine(&folder);
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "../amx/emulator.rs"]
mod amx_emulator;

/// Makes the path amx run on a machine that lacks it but could run the rest of the path; says
/// whether that was needed.
fn emulate_amx() -> bool {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if !isa::is_available(CpuIsa::Amx) && isa::is_available(CpuIsa::Avx512) {
        println!("this machine has no AMX: the path amx runs emulated");
        amx_emulator::install();
        // SAFETY: the emulator is there, for all threads.
        unsafe { isa::assume_amx() };
        return true;
    }
    false
}

/// Counts `count` steps of `STREAMS` sequences: `STEPS` go through more than three spans of
/// attention.
fn count_compute_path(folder: &Folder, mut backend: CpuBackend, threads: usize, count: usize) {
    let mut steps = Steps::new(folder, &mut backend);
    for _ in 0..WARM_UP {
        steps.step(&mut backend);
        steps.warm_samplers(&mut backend, threads);
    }
    let mut allocated = Vec::with_capacity(count);
    for _ in 0..count {
        allocated.push(steps.step(&mut backend));
    }
    let name = backend.describe();
    let guilty: Vec<usize> = (0..count).filter(|step| allocated[*step] > 0).collect();
    let total: u64 = allocated.iter().sum();
    println!("{name}: {total} allocations in {count} steps of {STREAMS} sequences");
    assert_eq!(total, 0, "{name}: steps {guilty:?} allocate");
    let distinct = steps.tokens.iter().any(|t| *t != steps.tokens[0]);
    assert!(distinct || steps.seen > 1, "{name}: the model says nothing");
}

/// A model, sequences that decode in step, and room for all that describes them.
struct Steps {
    model: Box<dyn Model>,
    samplers: Vec<Mutex<SequenceSampler>>,
    tokens: Vec<TokenId>,
    chosen: Vec<Mutex<TokenId>>,
    positions: Vec<u32>,
    seqs: Vec<SeqInput>,
    tables: Vec<Vec<BlockId>>,
    slots: Vec<Vec<u64>>,
    rows: Vec<u32>,
    /// Times that some sequence's token changed from one step to the next.
    seen: usize,
}

impl Steps {
    fn new(folder: &Folder, backend: &mut CpuBackend) -> Self {
        let config = ModelConfig::from_dir(&folder.0).unwrap();
        let load = LoadOptions {
            dir: &folder.0,
            load_format: LoadFormat::Dummy,
            seed: 1,
            max_model_len: None,
        };
        let model = model::load(&config, &load, backend, |_| Ok(())).unwrap();
        let blocks = (WARM_UP + STEPS).div_ceil(BLOCK_SIZE);
        let limits = StepLimits {
            max_tokens: 64,
            max_seqs: STREAMS,
            max_logits_rows: STREAMS,
            max_block_table: STREAMS * blocks,
        };
        let kv = config.kv_spec(BLOCK_SIZE);
        backend.allocate(limits, &kv, STREAMS * blocks + 1).unwrap();
        let seq = |i: usize| SeqInput {
            query_start: i,
            query_len: 1,
            context_len: 0,
            block_table_start: i * blocks,
            num_blocks: blocks,
        };
        Self {
            model,
            samplers: (0..STREAMS).map(|i| Mutex::new(sampler(i))).collect(),
            tokens: (1..=STREAMS as u32).map(TokenId).collect(),
            chosen: (0..STREAMS).map(|_| Mutex::new(TokenId(0))).collect(),
            positions: vec![0; STREAMS],
            seqs: (0..STREAMS).map(seq).collect(),
            tables: vec![(1..=(STREAMS * blocks) as u32).map(BlockId).collect()],
            slots: vec![vec![0; STREAMS]],
            rows: (0..STREAMS as u32).collect(),
            seen: 0,
        }
    }

    /// One token for each sequence; returns what the compute path allocated.
    fn step(&mut self, backend: &mut CpuBackend) -> u64 {
        for (i, seq) in self.seqs.iter().enumerate() {
            let position = self.positions[i] as usize;
            let block = self.tables[0][seq.block_table_start + position / BLOCK_SIZE];
            self.slots[0][i] = (block.index() * BLOCK_SIZE + position % BLOCK_SIZE) as u64;
        }
        let before = allocations();
        backend.begin_step(&StepInput {
            token_ids: &self.tokens,
            positions: &self.positions,
            seqs: &self.seqs,
            block_tables: &self.tables,
            slot_mapping: &self.slots,
            block_copies: &[],
            wanted: None,
        });
        self.model.forward(backend);
        backend.logits(self.model.head(), self.model.hidden(), &self.rows);
        let (samplers, chosen, positions) = (&self.samplers, &self.chosen, &self.positions);
        let sample = |i: usize, logits: &mut [f32]| {
            let mut sampler = samplers[i].lock().unwrap_or_else(PoisonError::into_inner);
            let token = sampler.sample(logits, positions[i] as usize + 1).unwrap().token;
            *chosen[i].lock().unwrap() = token;
        };
        backend.map_logits(&sample).unwrap();
        let allocated = allocations() - before;
        for i in 0..STREAMS {
            let token = *self.chosen[i].lock().unwrap();
            // A history of tokens grows by doubling; the engine appends to it with its output.
            self.samplers[i].lock().unwrap().accept(token);
            self.seen += usize::from(token != self.tokens[i]);
            self.tokens[i] = token;
            self.positions[i] += 1;
            self.seqs[i].context_len += 1;
        }
        allocated
    }

    /// Lets every thread sample in every way from logits of which none can be left out: which
    /// thread meets which row is chance, and scratch is each thread's own.
    fn warm_samplers(&mut self, backend: &mut CpuBackend, threads: usize) {
        let together = Barrier::new(threads);
        let sample = |_: usize, logits: &mut [f32]| {
            together.wait();
            for sampler in &self.samplers {
                logits.fill(0.0);
                sampler.lock().unwrap().sample(logits, 1).unwrap();
            }
        };
        backend.logits(self.model.head(), self.model.hidden(), &self.rows);
        backend.map_logits(&sample).unwrap();
    }
}

/// Greedy; a temperature; top-k with top-p; penalties with min-p: one kind for each sequence.
fn sampler(stream: usize) -> SequenceSampler {
    let mut params = SamplingParams { temperature: Some(0.0), ..Default::default() };
    match stream {
        0 => {}
        1 => params.temperature = Some(0.8),
        2 => {
            params.temperature = Some(1.1);
            (params.top_k, params.top_p) = (Some(40), Some(0.9));
        }
        _ => {
            params.temperature = Some(1.0);
            (params.min_p, params.repetition_penalty) = (Some(0.05), Some(1.1));
        }
    }
    let limits = Limits { vocab_size: VOCAB, max_model_len: 2048, max_logprobs: 20 };
    let params = params.resolve(&SamplingDefaults::default(), &limits, false, 1).unwrap();
    SequenceSampler::new(&params, &[TokenId(1)], &[], Vec::new(), 7)
}

/// The whole engine, its host polling: allocations around a step, not on the compute path.
fn count_engine(folder: &Folder) {
    let mut options = EngineOptions::new(&folder.0);
    options.load_format = LoadFormat::Dummy;
    options.skip_tokenizer = true;
    options.cpu_threads = Some(2);
    options.num_kv_blocks = Some(STREAMS * 128);
    let engine = Engine::create(options).unwrap();
    engine.wait_ready(None).unwrap();
    let queue = engine.default_queue();
    for stream in 0..STREAMS as u32 {
        let mut request = Request::new(Input::Tokens(vec![TokenId(1 + stream); 4]));
        request.params.temperature = Some(0.0);
        request.params.ignore_eos = true;
        // Far more than are counted: on a busy machine this host may look late.
        request.params.max_tokens = Some(2000);
        engine.submit(request, queue).unwrap();
    }
    let mut events = Vec::with_capacity(1024);
    let mut wait_for = |steps: u64| {
        while engine.stats().steps < steps {
            events.clear();
            queue.drain(Some(Duration::from_secs(60)), 1024, &mut events).unwrap();
            assert!(events.iter().all(|e| !e.last), "the requests ended before {steps} steps");
        }
        (engine.stats().steps, allocations())
    };
    let (first, before) = wait_for(50);
    let (last, after) = wait_for(first + STEPS as u64 / 2);
    let around = (after - before) as f64 / (last - first) as f64;
    println!("the engine around a step, {STREAMS} sequences: {around:.1} allocations");
    assert!(around < AROUND_A_STEP, "{around} allocations a step, limit {AROUND_A_STEP}");
    engine.abort_all();
}

/// A model folder with nothing but a config, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("vrust-alloc-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.json"), CONFIG).unwrap();
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
