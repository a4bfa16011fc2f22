//! The CPU backend from outside: a small transformer whose logits must be the same bits whatever
//! the chunks, the batch and the number of threads, on each instruction path.

use std::ops::Range;
use std::sync::Mutex;

use vrust::backend::cpu::{CpuBackend, CpuOptions, isa};
use vrust::backend::{
    ActId, Activation, Attention, Backend, ComputeType, DType, Heads, KvGroup, KvSpec, LinearId,
    LinearPart, LinearRole, LinearSpec, RopeId, RopeSpec, RopeWrite, RowSource, SeqInput,
    StepInput, StepLimits, VectorId,
};
use vrust::config::{CpuIsa, Quantization};
use vrust::error::{ErrorKind, Result};
use vrust::ids::{BlockId, TokenId};

use crate::support::backends::{available_cpu_paths, cpu_paths};

const HEADS: Heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 24 };
const HIDDEN: usize = 72;
const INNER: usize = 100;
const VOCAB: usize = 203;
const LAYERS: usize = 2;
const BLOCK: usize = 16;

struct Noise {
    seed: u64,
    rows: usize,
    cols: usize,
}

impl RowSource for Noise {
    fn name(&self) -> &str {
        "noise"
    }

    fn dtype(&self) -> DType {
        DType::Bf16
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let start = rows.start * self.cols;
        for (i, to) in out.chunks_exact_mut(2).enumerate() {
            let mut x = (self.seed << 32 | (start + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let value = (x >> 40) as f32 / (1 << 23) as f32 - 1.0;
            to.copy_from_slice(&half::bf16::from_f32(value * 0.3).to_le_bytes());
        }
        Ok(())
    }
}

struct Layer {
    qkv: LinearId,
    out: LinearId,
    gate_up: LinearId,
    down: LinearId,
}

/// How weights and activations are kept, and whether keys and values are int8.
type Kind = (ComputeType, Option<Quantization>, bool);

const KINDS: [Kind; 7] = [
    (ComputeType::F32, None, false),
    (ComputeType::F32, None, true),
    (ComputeType::Bf16, None, false),
    (ComputeType::Bf16, None, true),
    (ComputeType::Bf16, Some(Quantization::Int8), false),
    (ComputeType::Bf16, Some(Quantization::Int4), true),
    (ComputeType::F32, Some(Quantization::Int4), false),
];

/// The rows that a step says it will ask for.
#[derive(Clone, Copy, PartialEq)]
enum Wants {
    /// It does not say.
    Anything,
    /// The last of each part.
    Last,
    /// The first two and the last of each part.
    Some,
    Nothing,
}

struct Model {
    wants: Wants,
    backend: CpuBackend,
    layers: Vec<Layer>,
    head: LinearId,
    norm: VectorId,
    head_norm: VectorId,
    rope: RopeId,
    acts: [ActId; 6],
}

impl Model {
    fn new((compute, quantization, int8_kv): Kind, isa: CpuIsa, threads: usize) -> Self {
        let (isa, pin) = (Some(isa), threads == 2);
        let options = CpuOptions {
            quantization,
            int8_kv,
            threads: Some(threads),
            isa,
            pin,
            ..CpuOptions::new(compute)
        };
        let mut backend = CpuBackend::new(options).unwrap();
        let mut seed = 0;
        let mut pack_as = |rows, cols, role| {
            seed += 1;
            let weight = Box::new(Noise { seed, rows, cols });
            let parts = vec![LinearPart { weight, bias: None }];
            backend.pack_linear(LinearSpec { parts, role }).unwrap()
        };
        let head = pack_as(VOCAB, HIDDEN, LinearRole::Vocabulary);
        let mut pack = |rows, cols| pack_as(rows, cols, LinearRole::Hidden);
        let layers = (0..LAYERS)
            .map(|_| Layer {
                qkv: pack(HEADS.qkv_width(), HIDDEN),
                out: pack(HIDDEN, HEADS.q_width()),
                gate_up: pack(2 * INNER, HIDDEN),
                down: pack(HIDDEN, INNER),
            })
            .collect();
        let norm = backend.vector(vec![1.1; HIDDEN]).unwrap();
        let head_norm = backend.vector(vec![1.5; HEADS.head_dim]).unwrap();
        let inv_freq = (0..HEADS.head_dim / 2).map(|i| 0.4f64.powi(i as i32)).collect();
        let spec = RopeSpec { inv_freq, magnitude: 1.0, max_positions: 1024 };
        let rope = backend.rope_table(&spec).unwrap();
        let widths = [HIDDEN, HIDDEN, HEADS.qkv_width(), HEADS.q_width(), 2 * INNER, INNER];
        let acts = widths.map(|width| backend.activation(width));
        let limits =
            StepLimits { max_tokens: 700, max_seqs: 8, max_logits_rows: 8, max_block_table: 256 };
        let group = KvGroup {
            layers: (0..LAYERS).collect(),
            num_kv_heads: HEADS.num_kv_heads,
            head_dim: HEADS.head_dim,
        };
        let kv = KvSpec { groups: vec![group], block_size: BLOCK };
        backend.allocate(limits, &kv, 128).unwrap();
        let all: Vec<BlockId> = (0..128).map(BlockId).collect();
        backend.fill_blocks(&all, f32::NAN);
        Self { wants: Wants::Anything, backend, layers, head, norm, head_norm, rope, acts }
    }

    /// Runs `(sequence, context, tokens)` parts in one step; logits of each part's last row, or of
    /// those that are wanted.
    fn step(&mut self, parts: &[(usize, usize, &[u32])]) -> Vec<Vec<u32>> {
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let (mut seqs, mut table, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for &(seq, context, tokens) in parts {
            // Sequence s has blocks s, s + 3, s + 6, ...
            let block_of = |p: usize| (p / BLOCK) * 3 + seq;
            let num_blocks = (context + tokens.len()).div_ceil(BLOCK);
            seqs.push(SeqInput {
                query_start: ids.len(),
                query_len: tokens.len(),
                context_len: context,
                block_table_start: table.len(),
                num_blocks,
            });
            table.extend((0..num_blocks).map(|b| BlockId((b * 3 + seq) as u32)));
            ids.extend(tokens.iter().map(|t| TokenId(*t)));
            for p in context..context + tokens.len() {
                positions.push(p as u32);
                slots.push((block_of(p) * BLOCK + p % BLOCK) as u64);
            }
            let last = ids.len() as u32 - 1;
            if self.wants == Wants::Some {
                let first = ids.len() - tokens.len();
                rows.extend((first as u32..last).take(2));
            }
            if self.wants != Wants::Nothing {
                rows.push(last);
            }
        }
        self.backend.begin_step(&StepInput {
            token_ids: &ids,
            positions: &positions,
            seqs: &seqs,
            block_tables: &[table],
            slot_mapping: &[slots],
            block_copies: &[],
            wanted: (self.wants != Wants::Anything).then_some(&rows[..]),
        });
        self.forward();
        let [x, normed, ..] = self.acts;
        self.backend.rms_norm(x, self.norm, 1e-6, normed);
        self.backend.logits(self.head, normed, &rows);
        let seen = Mutex::new(vec![Vec::new(); rows.len()]);
        let keep = |row: usize, logits: &mut [f32]| {
            assert!(logits.iter().all(|v| v.is_finite()), "row {row}");
            seen.lock().unwrap()[row] = logits.iter().map(|v| v.to_bits()).collect();
        };
        self.backend.map_logits(&keep).unwrap();
        seen.into_inner().unwrap()
    }

    fn forward(&mut self) {
        let [x, normed, qkv, attended, gate_up, inner] = self.acts;
        let b = &mut self.backend;
        b.embed(self.head, x);
        let qk_norm = Some((self.head_norm, self.head_norm, 1e-6));
        let write = RopeWrite { heads: HEADS, qk_norm, rope: Some(self.rope) };
        let attention = Attention { heads: HEADS, scale: 0.2, sliding_window: None };
        for (i, layer) in self.layers.iter().enumerate() {
            b.rms_norm(x, self.norm, 1e-6, normed);
            b.linear(layer.qkv, normed, qkv);
            b.rope_write_kv(i, qkv, &write);
            if i + 1 == LAYERS {
                b.keep_rows(&[qkv, x]);
            }
            b.paged_attention(i, qkv, &attention, attended);
            b.linear_add(layer.out, attended, x);
            b.rms_norm(x, self.norm, 1e-6, normed);
            b.linear(layer.gate_up, normed, gate_up);
            b.gated_activation(gate_up, Activation::Silu, inner);
            b.linear_add(layer.down, inner, x);
        }
    }
}

fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 37 + seed * 11) % VOCAB) as u32).collect()
}

#[test]
fn logits_do_not_depend_on_chunks_batches_or_threads() {
    for isa in available_cpu_paths() {
        for compute in KINDS {
            let (long, short) = (tokens(563, 1), tokens(21, 2));
            let alone = Model::new(compute, isa, 1).step(&[(0, 0, &long)]);
            let other = Model::new(compute, isa, 1).step(&[(1, 0, &short)]);
            for threads in 1..=3 {
                let what = format!("{isa:?} {compute:?} {threads} threads");
                let mut model = Model::new(compute, isa, threads);
                let [first, second, rest] = match threads {
                    1 => [Wants::Anything; 3],
                    _ => [Wants::Nothing, Wants::Some, Wants::Last],
                };
                model.wants = first;
                model.step(&[(0, 0, &long[..300]), (1, 0, &short[..5])]);
                model.wants = second;
                model.step(&[(1, 5, &short[5..20]), (0, 300, &long[300..557])]);
                model.wants = rest;
                for i in 557..562 {
                    model.step(&[(2, i - 557, &short[..1]), (0, i, &long[i..i + 1])]);
                }
                let last = model.step(&[(0, 562, &long[562..]), (1, 20, &short[20..])]);
                assert!(last[0] == alone[0], "{what}: the long sequence");
                assert!(last[1] == other[0], "{what}: the short sequence");
                assert!(model.backend.describe().contains(isa::name(isa)));
            }
        }
    }
}

#[test]
fn rows_that_are_left_out_change_no_other() {
    for isa in available_cpu_paths() {
        let mut model = Model::new(KINDS[2], isa, 2);
        let (long, short) = (tokens(600, 1), tokens(21, 2));
        let whole = model.step(&[(0, 0, &long), (1, 0, &short)]);
        model.wants = Wants::Some;
        let some = model.step(&[(0, 0, &long), (1, 0, &short)]);
        assert_eq!(some.len(), 6);
        assert!([&some[2], &some[5]] == [&whole[0], &whole[1]], "{isa:?}: the last rows");
        for (i, row) in some.iter().take(2).enumerate() {
            model.wants = Wants::Anything;
            let alone = model.step(&[(2, 0, &long[..i + 1])]);
            assert!(*row == alone[0], "{isa:?}: row {i}");
        }
    }
}

#[test]
fn a_path_that_the_machine_lacks_is_unsupported() {
    for isa in cpu_paths().into_iter().filter(|isa| !isa::is_available(*isa)) {
        let options = CpuOptions { isa: Some(isa), ..CpuOptions::new(ComputeType::F32) };
        let error = CpuBackend::new(options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains(isa::name(isa)), "{error}");
    }
}
