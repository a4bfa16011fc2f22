//! How near are linear layers to the machine's limits? The shapes of Qwen3-0.6B's layers, or of
//! Llama-3.2-1B's, each weight format, on the path that this machine takes.
//!
//! Prints, for each number of rows, billions of multiplications and additions a second, and the
//! gigabytes of weights read a second: one row is bound by memory, many rows by arithmetic. Then
//! attention with that model's heads, over a cache that no CPU cache holds.
//!
//! `cargo bench --bench kernels [-- [llama|OUTPUTSxINPUTS] [ROWS,ROWS,..]]`

#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark prints")]

mod support;

use std::ops::Range;

use support::{spread, time};
use vrust::backend::cpu::{CpuBackend, CpuOptions};
use vrust::backend::{
    ActId, Attention, Backend, ComputeType, DType, Heads, KvGroup, KvSpec, LinearId, LinearPart,
    LinearRole, LinearSpec, RopeWrite, RowSource, SeqInput, StepInput, StepLimits,
};
use vrust::config::Quantization;
use vrust::error::Result;
use vrust::ids::{BlockId, TokenId};

/// Outputs and inputs of a layer's matrices: QKV, output, gate and up, down.
type Shapes = [(usize, usize); 4];
const QWEN: Shapes = [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)];
const LLAMA: Shapes = [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)];
/// Enough of them that no cache holds the weights.
const LAYERS: usize = 12;
const ROUNDS: usize = 9;
const MAX_ROWS: usize = 2048;

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
        for (i, to) in out.chunks_exact_mut(2).enumerate() {
            let mixed = (rows.start * self.1 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let value = mixed as f32 / (1 << 24) as f32 - 0.5;
            to.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
        }
        Ok(())
    }
}

struct Bench {
    backend: CpuBackend,
    layers: Vec<[LinearId; 4]>,
    acts: [(ActId, ActId); 4],
}

impl Bench {
    fn new(shapes: Shapes, quantization: Option<Quantization>, role: LinearRole) -> Self {
        let options = CpuOptions { quantization, ..CpuOptions::new(ComputeType::Bf16) };
        let mut backend = CpuBackend::new(options).expect("a backend");
        let mut pack = |(n, k)| {
            let parts = vec![LinearPart { weight: Box::new(Noise(n, k)), bias: None }];
            let spec = LinearSpec { parts, role };
            backend.pack_linear(spec).expect("memory")
        };
        let layers = (0..LAYERS).map(|_| shapes.map(&mut pack)).collect();
        let acts = shapes.map(|(n, k)| (backend.activation(k), backend.activation(n)));
        let limits = StepLimits {
            max_tokens: MAX_ROWS,
            max_seqs: 1,
            max_logits_rows: 1,
            max_block_table: 1,
        };
        let group = KvGroup { layers: vec![0], num_kv_heads: 1, head_dim: 16 };
        let kv = KvSpec { groups: vec![group], block_size: 16 };
        backend.allocate(limits, &kv, 2).expect("memory");
        Self { backend, layers, acts }
    }

    /// Seconds of all layers once.
    fn run(&mut self, rows: usize) -> f64 {
        let ids = vec![TokenId(0); rows];
        let positions = vec![0; rows];
        time(|| {
            self.backend.begin_step(&StepInput {
                token_ids: &ids,
                positions: &positions,
                seqs: &[],
                block_tables: &[Vec::new()],
                slot_mapping: &[vec![0; rows]],
                block_copies: &[],
                wanted: None,
            });
            for layer in &self.layers {
                for (weight, (x, out)) in layer.iter().zip(self.acts) {
                    self.backend.linear(*weight, x, out);
                }
            }
            self.backend.finish_step().expect("it runs");
        })
    }
}

fn main() {
    let (mut shapes, mut rows) = (QWEN, "1,2,4,8,16,32,64,128,512,2048".to_owned());
    for arg in std::env::args().skip(1) {
        let number = |text: &str| text.parse().expect("a number");
        match arg.split_once('x') {
            _ if arg == "llama" => shapes = LLAMA,
            Some((n, k)) => shapes = [(number(n), number(k)); 4],
            None if arg.starts_with(|c: char| c.is_ascii_digit()) => rows = arg,
            None => {}
        }
    }
    let rows: Vec<usize> = rows.split(',').map(|r| r.parse().expect("a number of rows")).collect();
    let parameters = LAYERS * shapes.iter().map(|(n, k)| n * k).sum::<usize>();
    [false, true].into_iter().for_each(attention);
    let (int8, int4) = (Some(Quantization::Int8), Some(Quantization::Int4));
    let (hidden, vocabulary) = (LinearRole::Hidden, LinearRole::Vocabulary);
    let formats =
        [(None, hidden, 16.0), (int8, hidden, 8.0), (int4, hidden, 4.25), (int4, vocabulary, 6.25)];
    for (quantization, role, bits) in formats {
        let mut bench = Bench::new(shapes, quantization, role);
        println!("{}, {role:?}, {bits} bits a weight", bench.backend.describe());
        for &rows in &rows {
            bench.run(rows);
            let operations = 2.0 * (parameters * rows) as f64;
            let bytes = parameters as f64 * bits / 8.0;
            let seconds: Vec<f64> = (0..ROUNDS).map(|_| bench.run(rows)).collect();
            let mut speed: Vec<f64> = seconds.iter().map(|s| operations / s / 1e9).collect();
            let mut read: Vec<f64> = seconds.iter().map(|s| bytes / s / 1e9).collect();
            let (speed, read) = (spread(&mut speed, 0), spread(&mut read, 1));
            println!("{rows:5} rows {speed:>24} Gop/s {read:>22} GB/s");
        }
    }
}

/// Sequences, their context and the rows that each computes.
const ATTENTION: [(usize, usize, usize); 6] =
    [(1, 0, 512), (1, 0, 2048), (1, 1536, 512), (32, 1024, 1), (1, 8192, 1), (32, 256, 1)];
const HEADS: Heads = Heads { num_heads: 16, num_kv_heads: 8, head_dim: 128 };

/// Attention and the writing of keys and values: operations a second over the visible positions,
/// and gigabytes of cache that a reader of each position once would read.
fn attention(int8_kv: bool) {
    let options = CpuOptions { int8_kv, ..CpuOptions::new(ComputeType::Bf16) };
    let mut b = CpuBackend::new(options).expect("a backend");
    println!("{}", b.describe());
    let (qkv, out) = (b.activation(HEADS.qkv_width()), b.activation(HEADS.q_width()));
    let blocks = 32 * 1040 / 16 + 1;
    let limits = StepLimits {
        max_tokens: MAX_ROWS,
        max_seqs: 32,
        max_logits_rows: 1,
        max_block_table: blocks,
    };
    let (num_kv_heads, head_dim) = (HEADS.num_kv_heads, HEADS.head_dim);
    let group = KvGroup { layers: (0..LAYERS).collect(), num_kv_heads, head_dim };
    let kv = KvSpec { groups: vec![group], block_size: 16 };
    b.allocate(limits, &kv, blocks).expect("memory");
    b.fill_blocks(&(0..blocks as u32).map(BlockId).collect::<Vec<_>>(), 0.5);
    for (seqs, context, rows) in ATTENTION {
        let mut write = Vec::new();
        let mut attend = Vec::new();
        for _ in 0..ROUNDS {
            write.push(run_attention(&mut b, (qkv, out), (seqs, context, rows), false));
            attend.push(run_attention(&mut b, (qkv, out), (seqs, context, rows), true));
        }
        let visible = rows * context + rows * (rows + 1) / 2;
        let operations = (4 * LAYERS * seqs * visible * HEADS.q_width()) as f64;
        let per_head = if int8_kv { 2 * (HEADS.head_dim + 4) } else { 4 * HEADS.head_dim };
        let bytes = (LAYERS * seqs * (context + rows) * HEADS.num_kv_heads * per_head) as f64;
        let (write, attend) = (support::median(&mut write), support::median(&mut attend));
        let (speed, read) = (operations / attend / 1e9, bytes / attend / 1e9);
        let us = write / LAYERS as f64 * 1e6;
        println!("{seqs:2} x {rows:4} rows after {context:4}: {speed:7.0} Gop/s {read:5.1} GB/s");
        println!("    keys and values written in {us:.1} us a layer");
    }
}

/// Seconds of attention, or of what comes before it, in all layers.
fn run_attention(
    b: &mut CpuBackend,
    (qkv, out): (ActId, ActId),
    (count, context, rows): (usize, usize, usize),
    attend: bool,
) -> f64 {
    let per_seq = (context + rows).div_ceil(16);
    let seqs: Vec<SeqInput> = (0..count)
        .map(|i| SeqInput {
            query_start: i * rows,
            query_len: rows,
            context_len: context,
            block_table_start: i * per_seq,
            num_blocks: per_seq,
        })
        .collect();
    let positions: Vec<u32> =
        (0..count).flat_map(|_| context as u32..(context + rows) as u32).collect();
    let table: Vec<BlockId> = (1..=(count * per_seq) as u32).map(BlockId).collect();
    let slot = |(row, p): (usize, &u32)| {
        u64::from(table[row / rows * per_seq + *p as usize / 16].0) * 16 + u64::from(*p) % 16
    };
    let slots: Vec<u64> = positions.iter().enumerate().map(slot).collect();
    b.begin_step(&StepInput {
        token_ids: &vec![TokenId(0); count * rows],
        positions: &positions,
        seqs: &seqs,
        block_tables: &[table],
        slot_mapping: &[slots],
        block_copies: &[],
        wanted: None,
    });
    let spec = Attention { heads: HEADS, scale: 0.1, sliding_window: None };
    for layer in 0..LAYERS {
        if attend {
            b.paged_attention(layer, qkv, &spec, out);
        } else {
            b.rope_write_kv(layer, qkv, &RopeWrite { heads: HEADS, qk_norm: None, rope: None });
        }
    }
    time(|| b.finish_step().expect("it runs"))
}
