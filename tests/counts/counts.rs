//! Fixed pieces of work for callgrind: `counts WORK`. `run.sh` counts the instructions of the
//! functions called `counted_*` and compares them with `expected.txt`: a slower algorithm shows,
//! whatever else the machine does. Valgrind hides AVX-512, so that the backend chooses AVX2.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints")]

use std::hint::black_box;
use std::ops::Range;

use vrust::backend::cpu::{CpuBackend, CpuOptions};
use vrust::backend::{
    ActId, Attention, Backend, ComputeType, DType, Heads, KvGroup, KvSpec, LinearId, LinearPart,
    LinearRole, LinearSpec, RopeWrite, RowSource, SeqInput, StepInput, StepLimits,
};
use vrust::config::{CpuIsa, Quantization, SchedulingPolicy};
use vrust::error::Result;
use vrust::ids::{BlockId, SeqId, TokenId};
use vrust::request::{Limits, SamplingDefaults, SamplingParams};
use vrust::sampling::SequenceSampler;
use vrust::scheduler::{NewSequence, SampledToken, Scheduler, SchedulerConfig};

/// All that is counted.
const WORKS: &[(&str, fn())] = &[
    ("scheduler", scheduler),
    ("greedy", || sampling(SamplingParams { temperature: Some(0.0), ..Default::default() })),
    ("top_k", || {
        let (top_k, top_p) = (Some(50), Some(0.95));
        sampling(SamplingParams { temperature: Some(0.8), top_k, top_p, ..Default::default() });
    }),
    ("top_p", || sampling(SamplingParams { top_p: Some(0.9), ..Default::default() })),
    ("bf16_1_row", || linear(None, 1)),
    ("bf16_32_rows", || linear(None, 32)),
    ("int8_1_row", || linear(Some(Quantization::Int8), 1)),
    ("int8_32_rows", || linear(Some(Quantization::Int8), 32)),
    ("int4_1_row", || linear(Some(Quantization::Int4), 1)),
    ("int4_32_rows", || linear(Some(Quantization::Int4), 32)),
    ("attention_decode", || attention(1023, 1)),
    ("attention_prefill", || attention(256, 64)),
];

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    match WORKS.iter().find(|(name, _)| *name == wanted) {
        Some((_, work)) => work(),
        None if wanted == "isa" => {
            let backend = CpuBackend::new(CpuOptions::new(ComputeType::Bf16)).expect("a backend");
            println!("{}", backend.describe());
        }
        None => WORKS.iter().for_each(|(name, _)| println!("{name}")),
    }
}

/// 64 sequences, 100 steps.
fn scheduler() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_num_seqs: 64,
        max_num_batched_tokens: 2048,
        max_model_len: 1024,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        enable_chunked_prefill: true,
        enable_prefix_caching: true,
        block_size: 16,
        num_blocks: 2048,
        num_groups: 1,
        watermark: 0.0,
        shuffle_blocks: None,
    })
    .expect("a good configuration");
    for i in 0..64 {
        let new = NewSequence {
            id: SeqId(i),
            prompt: (0..100).map(|n| TokenId(n * 64 + i as u32)).collect(),
            max_tokens: 500,
            min_tokens: 0,
            eos: None,
            stop_token_ids: Vec::new(),
            priority: 0,
            arrival: i,
            cache_salt: None,
            skip_cache_read: false,
        };
        scheduler.add(new).expect("room");
    }
    counted_scheduler(&mut scheduler);
}

#[inline(never)]
fn counted_scheduler(scheduler: &mut Scheduler) {
    for step in 0..100 {
        let batch = scheduler.schedule().expect("sequences that run");
        let sampled: Vec<SampledToken> = batch
            .seqs
            .iter()
            .filter(|s| s.samples)
            .map(|s| SampledToken { id: s.id, token: TokenId(step) })
            .collect();
        black_box(scheduler.postprocess(batch.step, &sampled));
    }
}

/// 20 rows of a vocabulary of 32,000, roughly normal.
fn sampling(params: SamplingParams) {
    let limits = Limits { vocab_size: 32_000, max_model_len: 4096, max_logprobs: 20 };
    let params = params.resolve(&SamplingDefaults::default(), &limits, false, 1).expect("valid");
    let mut sampler = SequenceSampler::new(&params, &[TokenId(1)], &[], Vec::new(), 7);
    let mut noise = Lcg(1);
    let mut row = || -> Vec<f32> {
        (0..32_000).map(|_| 2.5 * ((0..6).map(|_| noise.next()).sum::<f32>() - 3.0)).collect()
    };
    let mut rows: Vec<Vec<f32>> = (0..21).map(|_| row()).collect();
    sampler.sample(&mut rows[20], 0).expect("finite logits");
    counted_sampling(&mut sampler, &mut rows[..20]);
}

#[inline(never)]
fn counted_sampling(sampler: &mut SequenceSampler, rows: &mut [Vec<f32>]) {
    for (position, row) in rows.iter_mut().enumerate() {
        black_box(sampler.sample(row, position).expect("finite logits"));
    }
}

/// Numbers in `0..1`.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// A weight matrix of noise.
struct Noise(usize, usize);

impl RowSource for Noise {
    fn name(&self) -> &str {
        "noise"
    }

    fn dtype(&self) -> DType {
        DType::Bf16
    }

    fn rows(&self) -> usize {
        self.0
    }

    fn cols(&self) -> usize {
        self.1
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let mut noise = Lcg(rows.start as u64);
        for to in out.chunks_exact_mut(2) {
            to.copy_from_slice(&half::bf16::from_f32(noise.next() - 0.5).to_le_bytes());
        }
        Ok(())
    }
}

/// Heads of the attention that is counted: four query heads to a KV head.
const HEADS: Heads = Heads { num_heads: 8, num_kv_heads: 2, head_dim: 64 };
const BLOCK_SIZE: usize = 16;
const POSITIONS: usize = 1024;
/// Inputs and outputs of the linear layer.
const K: usize = 512;
const N: usize = 512;

struct World {
    backend: CpuBackend,
    weight: LinearId,
    acts: [ActId; 4],
}

impl World {
    fn new(quantization: Option<Quantization>) -> Self {
        let options = CpuOptions {
            quantization,
            threads: Some(1),
            isa: Some(CpuIsa::Avx2),
            ..CpuOptions::new(ComputeType::Bf16)
        };
        let mut backend = CpuBackend::new(options).expect("a machine with AVX2");
        let parts = vec![LinearPart { weight: Box::new(Noise(N, K)), bias: None }];
        let spec = LinearSpec { parts, role: LinearRole::Hidden };
        let weight = backend.pack_linear(spec).expect("memory");
        let widths = [K, N, HEADS.qkv_width(), HEADS.q_width()];
        let acts = widths.map(|width| backend.activation(width));
        let limits = StepLimits {
            max_tokens: POSITIONS,
            max_seqs: 1,
            max_logits_rows: 1,
            max_block_table: POSITIONS / BLOCK_SIZE,
        };
        let group =
            KvGroup { layers: vec![0], num_kv_heads: HEADS.num_kv_heads, head_dim: HEADS.head_dim };
        let kv = KvSpec { groups: vec![group], block_size: BLOCK_SIZE };
        backend.allocate(limits, &kv, POSITIONS / BLOCK_SIZE + 1).expect("memory");
        Self { backend, weight, acts }
    }

    /// Begins a step of `rows` rows of one sequence after `context` positions.
    fn begin(&mut self, context: usize, rows: usize) {
        let blocks = (POSITIONS / BLOCK_SIZE) as u32;
        let positions: Vec<u32> = (context as u32..(context + rows) as u32).collect();
        let seq = SeqInput {
            query_start: 0,
            query_len: rows,
            context_len: context,
            block_table_start: 0,
            num_blocks: blocks as usize,
        };
        self.backend.begin_step(&StepInput {
            token_ids: &vec![TokenId(0); rows],
            positions: &positions,
            seqs: &[seq],
            block_tables: &[(1..=blocks).map(BlockId).collect()],
            slot_mapping: &[positions.iter().map(|p| u64::from(*p) + 16).collect()],
            block_copies: &[],
            wanted: None,
        });
    }
}

fn linear(quantization: Option<Quantization>, rows: usize) {
    let mut world = World::new(quantization);
    for warm in [true, false] {
        world.begin(0, rows);
        world.backend.linear(world.weight, world.acts[0], world.acts[1]);
        if warm {
            world.backend.finish_step().expect("it runs");
        }
    }
    counted_run(&mut world.backend);
}

fn attention(context: usize, rows: usize) {
    let mut world = World::new(None);
    let (qkv, out) = (world.acts[2], world.acts[3]);
    let write = RopeWrite { heads: HEADS, qk_norm: None, rope: None };
    let spec = Attention { heads: HEADS, scale: 0.125, sliding_window: None };
    for (context, rows) in [(0, POSITIONS), (context, rows)] {
        world.begin(context, rows);
        world.backend.rope_write_kv(0, qkv, &write);
        if rows == POSITIONS {
            world.backend.finish_step().expect("it runs");
        }
    }
    world.backend.paged_attention(0, qkv, &spec, out);
    counted_run(&mut world.backend);
}

#[inline(never)]
fn counted_run(backend: &mut CpuBackend) {
    backend.finish_step().expect("it runs");
}
