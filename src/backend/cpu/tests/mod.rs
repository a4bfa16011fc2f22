//! The CPU backend against plain f64 loops, on every instruction path that this machine has.

use super::*;
use crate::backend::{DType, Heads, KvGroup, LinearPart, LinearRole, RowSource, SeqInput};
use crate::ids::TokenId;

mod amx;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "../../../../tests/amx/emulator.rs"]
mod amx_emulator;
mod attention;
mod blocks;
mod decode;
mod gated;
mod handed_on;
mod linear;
mod ops;
mod quantized;

/// Seeded numbers, about uniform in -1..1.
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub(super) fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// The machine's paths, AMX emulated if need be, or those of them that `VRUST_TEST_ISA` lists. The
/// others are named, not silently left out.
pub(super) fn paths() -> Vec<CpuIsa> {
    amx::emulate();
    let listed = std::env::var("VRUST_TEST_ISA");
    let wanted = |isa| listed.as_ref().map_or(true, |l| l.split(',').any(|n| n == isa::name(isa)));
    let (here, missing): (Vec<_>, Vec<_>) =
        isa::ALL.into_iter().filter(|i| wanted(*i)).partition(|isa| isa::is_available(*isa));
    for isa in missing {
        let note = format!("skipped: this machine cannot run {}\n", isa::name(isa));
        std::io::Write::write_all(&mut std::io::stderr(), note.as_bytes()).unwrap();
    }
    assert!(!here.is_empty(), "VRUST_TEST_ISA={listed:?} names no path of this machine");
    here
}

pub(super) fn backend(compute: ComputeType, isa: CpuIsa, threads: usize) -> CpuBackend {
    quantized(compute, None, isa, threads)
}

pub(super) fn quantized(
    compute: ComputeType,
    quantization: Option<Quantization>,
    isa: CpuIsa,
    threads: usize,
) -> CpuBackend {
    let (threads, isa) = (Some(threads), Some(isa));
    CpuBackend::new(CpuOptions { quantization, threads, isa, ..CpuOptions::new(compute) }).unwrap()
}

/// A matrix in memory, `[rows, cols]`, given in f32 and stored as `dtype`.
pub(super) struct Matrix {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) values: Vec<f32>,
}

impl Matrix {
    /// Random values that `dtype` holds exactly.
    pub(super) fn random(dtype: DType, rows: usize, cols: usize, seed: u64) -> Self {
        let mut values = Numbers::new(seed).take(rows * cols);
        for v in &mut values {
            *v = match dtype {
                DType::F32 => *v,
                DType::F16 => half::f16::from_f32(*v).to_f32(),
                DType::Bf16 => half::bf16::from_f32(*v).to_f32(),
            };
        }
        Self { dtype, rows, cols, values }
    }

    pub(super) fn part(self, bias: Option<Vec<f32>>) -> LinearPart {
        LinearPart { weight: Box::new(self), bias }
    }
}

impl RowSource for Matrix {
    fn name(&self) -> &str {
        "matrix"
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let values = &self.values[rows.start * self.cols..rows.end * self.cols];
        for (to, v) in out.chunks_exact_mut(self.dtype.size()).zip(values) {
            match self.dtype {
                DType::F32 => to.copy_from_slice(&v.to_le_bytes()),
                DType::F16 => to.copy_from_slice(&half::f16::from_f32(*v).to_le_bytes()),
                DType::Bf16 => to.copy_from_slice(&half::bf16::from_f32(*v).to_le_bytes()),
            }
        }
        Ok(())
    }
}

/// Limits and a cache that small tests fit in; layer 0 with `heads`.
pub(super) fn allocate(b: &mut CpuBackend, tokens: usize, heads: Heads, kv: (usize, usize)) {
    let (block_size, num_blocks) = kv;
    let limits =
        StepLimits { max_tokens: tokens, max_seqs: 64, max_logits_rows: 64, max_block_table: 4096 };
    b.allocate(limits, &spec(heads, block_size), num_blocks).unwrap();
}

/// Layer 0 alone.
pub(super) fn spec(heads: Heads, block_size: usize) -> KvSpec {
    let group =
        KvGroup { layers: vec![0], num_kv_heads: heads.num_kv_heads, head_dim: heads.head_dim };
    KvSpec { groups: vec![group], block_size }
}

pub(super) const TINY: Heads = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 16 };

/// Begins a step of `rows` rows that belong to no sequence.
pub(super) fn begin(b: &mut CpuBackend, rows: usize) {
    let ids = vec![TokenId(0); rows];
    let positions: Vec<u32> = (0..rows as u32).collect();
    let (tables, slots) = (vec![Vec::new()], vec![vec![0u64; rows]]);
    b.begin_step(&StepInput {
        token_ids: &ids,
        positions: &positions,
        seqs: &[],
        block_tables: &tables,
        slot_mapping: &slots,
        block_copies: &[],
        wanted: None,
    });
}

/// Begins a step that is one prompt of up to 48 rows, in blocks 1, 2, 3 of 16.
pub(super) fn begin_prompt(b: &mut CpuBackend, rows: usize) {
    let token_ids: Vec<TokenId> = (0..rows as u32).map(|i| TokenId(i * 7 % 50)).collect();
    let positions: Vec<u32> = (0..rows as u32).collect();
    let seq = SeqInput {
        query_start: 0,
        query_len: rows,
        context_len: 0,
        block_table_start: 0,
        num_blocks: 3,
    };
    b.begin_step(&StepInput {
        token_ids: &token_ids,
        positions: &positions,
        seqs: &[seq],
        block_tables: &[vec![BlockId(1), BlockId(2), BlockId(3)]],
        slot_mapping: &[positions.iter().map(|p| 16 + u64::from(*p)).collect()],
        block_copies: &[],
        wanted: None,
    });
}

pub(super) fn write(b: &CpuBackend, id: ActId, values: &[f32]) {
    let act = b.acts[id.0 as usize].rows.as_ref().unwrap();
    assert!(values.len() <= act.len());
    // SAFETY: the activation is at least that long, and no program runs.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), act.as_ptr(), values.len()) };
}

pub(super) fn read(b: &CpuBackend, id: ActId, rows: usize) -> Vec<f32> {
    let (rows_ptr, width) = b.act(id);
    // SAFETY: `rows` is below the step's limit, and no program runs.
    unsafe { std::slice::from_raw_parts(rows_ptr, rows * width).to_vec() }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
