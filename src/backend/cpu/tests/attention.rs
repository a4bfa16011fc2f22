//! Attention against f64 and the reference, and the ways in which its bits must not depend on
//! anything.

use super::*;
use crate::backend::reference::ReferenceBackend;

/// One sequence's whole run: `total` positions computed in chunks, results by position.
struct Case {
    heads: Heads,
    compute: ComputeType,
    int8: bool,
    isa: CpuIsa,
    block_size: usize,
    window: Option<usize>,
    total: usize,
    threads: usize,
}

impl Case {
    fn row(&self) -> usize {
        self.heads.qkv_width()
    }

    /// Query, key and value rows of all positions.
    fn qkv(&self) -> Vec<f32> {
        let mut qkv = Numbers::new(7).take(self.total * self.row());
        for v in &mut qkv {
            *v = half::bf16::from_f32(*v * 2.0).to_f32();
        }
        qkv
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    fn backend(&self) -> CpuBackend {
        let (threads, isa) = (Some(self.threads), Some(self.isa));
        let options = CpuOptions { threads, isa, ..CpuOptions::new(self.compute) };
        CpuBackend::new(CpuOptions { int8_kv: self.int8, ..options }).unwrap()
    }

    /// Runs positions chunk after chunk, beside a second sequence when `beside`.
    fn run(&self, chunks: &[usize], beside: bool) -> Vec<f32> {
        let mut b = self.backend();
        let (x, out) = (b.activation(self.row()), b.activation(self.heads.q_width()));
        let blocks = self.total.div_ceil(self.block_size);
        allocate(&mut b, self.total + 3, self.heads, (self.block_size, 2 * blocks + 3));
        let all: Vec<BlockId> = (0..2 * blocks as u32 + 3).map(BlockId).collect();
        b.fill_blocks(&all, f32::NAN);
        // Blocks descend, so that no block lies behind its predecessor.
        let mut table: Vec<BlockId> = (1..=blocks as u32).rev().map(BlockId).collect();
        table.push(BlockId(2 * blocks as u32 + 2));
        let (qkv, mut done, mut results) = (self.qkv(), 0, Vec::new());
        for &len in chunks {
            let other = usize::from(beside) * 3;
            let mut rows = qkv[..other * self.row()].to_vec();
            rows.extend_from_slice(&qkv[done * self.row()..(done + len) * self.row()]);
            write(&b, x, &rows);
            self.step(&mut b, (x, out), &table, (done, len, other));
            results.extend_from_slice(&read(&b, out, other + len)[other * self.heads.q_width()..]);
            done += len;
        }
        assert_eq!(done, self.total);
        results
    }

    fn step(
        &self,
        b: &mut CpuBackend,
        (x, out): (ActId, ActId),
        table: &[BlockId],
        (done, len, other): (usize, usize, usize),
    ) {
        let size = self.block_size as u64;
        let blocks = table.len() - 1;
        let mut positions: Vec<u32> = (0..other as u32).collect();
        positions.extend(done as u32..(done + len) as u32);
        let slots = positions.iter().enumerate().map(|(row, p)| {
            let block =
                if row < other { table[blocks] } else { table[*p as usize / size as usize] };
            u64::from(block.0) * size + u64::from(*p) % size
        });
        let mut seqs = Vec::new();
        if other > 0 {
            seqs.push(SeqInput {
                query_start: 0,
                query_len: other,
                context_len: 0,
                block_table_start: blocks,
                num_blocks: 1,
            });
        }
        seqs.push(SeqInput {
            query_start: other,
            query_len: len,
            context_len: done,
            block_table_start: 0,
            num_blocks: (done + len).div_ceil(self.block_size),
        });
        let slots = vec![slots.collect()];
        b.begin_step(&StepInput {
            token_ids: &vec![TokenId(0); other + len],
            positions: &positions,
            seqs: &seqs,
            block_tables: &[table.to_vec()],
            slot_mapping: &slots,
            block_copies: &[],
            wanted: None,
        });
        self.ops(b, x, out);
        b.finish_step().unwrap();
    }

    /// What the reference makes of all positions.
    fn reference(&self) -> Vec<f32> {
        let (total, width) = (self.total, self.heads.q_width());
        let mut b = match self.int8 {
            true => ReferenceBackend::with_int8_kv(ComputeType::F32),
            false => ReferenceBackend::new(ComputeType::F32),
        };
        // Rows enter by a table and leave by an identity.
        let mut pack = |rows, cols, values| {
            let part = Matrix { dtype: DType::F32, rows, cols, values }.part(None);
            b.pack_linear(LinearSpec { parts: vec![part], role: LinearRole::Hidden }).unwrap()
        };
        let table = pack(total, self.row(), self.qkv());
        let identity = (0..width * width).map(|i| f32::from(i % (width + 1) == 0)).collect();
        let identity = pack(width, width, identity);
        let (x, out) = (b.activation(self.row()), b.activation(width));
        let blocks = total.div_ceil(self.block_size);
        let limits = StepLimits {
            max_tokens: total,
            max_seqs: 1,
            max_logits_rows: total,
            max_block_table: blocks,
        };
        b.allocate(limits, &spec(self.heads, self.block_size), blocks).unwrap();
        let ids: Vec<u32> = (0..total as u32).collect();
        b.begin_step(&StepInput {
            token_ids: &ids.iter().map(|id| TokenId(*id)).collect::<Vec<_>>(),
            positions: &ids,
            seqs: &[SeqInput {
                query_start: 0,
                query_len: total,
                context_len: 0,
                block_table_start: 0,
                num_blocks: blocks,
            }],
            block_tables: &[(0..blocks as u32).map(BlockId).collect()],
            slot_mapping: &[(0..total as u64).collect()],
            block_copies: &[],
            wanted: None,
        });
        b.embed(table, x);
        self.ops(&mut b, x, out);
        b.logits(identity, out, &ids);
        let results = std::sync::Mutex::new(vec![0.0; total * width]);
        b.map_logits(&|row, logits| {
            results.lock().unwrap()[row * width..(row + 1) * width].copy_from_slice(logits);
        })
        .unwrap();
        results.into_inner().unwrap()
    }

    /// Writes the cache and attends.
    fn ops(&self, b: &mut dyn Backend, x: ActId, out: ActId) {
        b.rope_write_kv(0, x, &RopeWrite { heads: self.heads, qk_norm: None, rope: None });
        let spec =
            Attention { heads: self.heads, scale: self.scale(), sliding_window: self.window };
        b.paged_attention(0, x, &spec, out);
    }

    /// In f64, of what `qkv` gave.
    fn exact(&self, qkv: &[f32], position: usize) -> Vec<f64> {
        let h = self.heads;
        let at = |p: usize, i: usize| f64::from(qkv[p * self.row() + i]);
        let low = (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
        let mut out = Vec::new();
        for head in 0..h.num_heads {
            let kv = head / (h.num_heads / h.num_kv_heads);
            let (k0, v0) =
                ((h.num_heads + kv) * h.head_dim, (h.num_heads + h.num_kv_heads + kv) * h.head_dim);
            let score = |p: usize| {
                let products =
                    (0..h.head_dim).map(|i| at(position, head * h.head_dim + i) * at(p, k0 + i));
                products.sum::<f64>() * f64::from(self.scale())
            };
            let scores: Vec<f64> = (low..=position).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..h.head_dim).map(|i| {
                let terms = weights.iter().enumerate().map(|(j, w)| w * at(low + j, v0 + i));
                terms.sum::<f64>() / sum
            }));
        }
        out
    }
}

/// Compute type, and whether the cache is of int8.
const KINDS: [(ComputeType, bool); 4] = [
    (ComputeType::F32, false),
    (ComputeType::F32, true),
    (ComputeType::Bf16, false),
    (ComputeType::Bf16, true),
];
const GQA: Heads = Heads { num_heads: 6, num_kv_heads: 2, head_dim: 20 };

/// Positions, and the chunks that they come in. Work grows with their square: an emulated machine
/// has a span that is full and the begin of another, others a third one between.
fn positions_and_chunks() -> (usize, [usize; 3]) {
    match std::env::var_os("VRUST_TEST_SHORT") {
        Some(_) => (330, [200, 1, 129]),
        None => (600, [200, 1, 399]),
    }
}

#[test]
fn attention_is_softmax_of_the_visible() {
    let (total, chunks) = positions_and_chunks();
    for isa in paths() {
        for compute in [ComputeType::F32, ComputeType::Bf16] {
            for (block_size, window, heads) in [
                (8, None, GQA),
                (16, Some(40), GQA),
                (24, None, GQA),
                (32, Some(300), Heads { num_heads: 2, num_kv_heads: 2, head_dim: 64 }),
                (16, None, Heads { num_heads: 40, num_kv_heads: 1, head_dim: 16 }),
                (16, Some(70), Heads { num_heads: 4, num_kv_heads: 2, head_dim: 80 }),
                (8, None, Heads { num_heads: 2, num_kv_heads: 1, head_dim: 37 }),
            ] {
                let (int8, threads) = (false, 2);
                let case = Case { heads, compute, int8, isa, block_size, window, total, threads };
                let got = case.run(&chunks, false);
                // bf16 products round each probability by up to 2^-9 of itself; values are below 2.
                let rounds = compute == ComputeType::Bf16 && kernels::plain(isa).bf16_inputs;
                let bound = if rounds { 2.0 / 512.0 } else { 2e-6 };
                let (width, qkv) = (heads.q_width(), case.qkv());
                let looked_at = [0, 1, 15, 39, 40, 200, 255, 256, 300, 511, 512, total - 1];
                for position in looked_at.into_iter().filter(|p| *p < total) {
                    let want = case.exact(&qkv, position);
                    for (i, want) in want.iter().enumerate() {
                        let got = f64::from(got[position * width + i]);
                        let what = format!("{isa:?} {compute:?} {block_size} {window:?}");
                        assert!((got - want).abs() < bound, "{what} {position}: {got} {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn int8_is_what_the_reference_makes_of_it() {
    for (block_size, window, heads) in [
        (16, None, GQA),
        (8, None, Heads { num_heads: 3, num_kv_heads: 3, head_dim: 9 }),
        (24, Some(40), Heads { num_heads: 14, num_kv_heads: 2, head_dim: 50 }),
        (32, Some(270), Heads { num_heads: 4, num_kv_heads: 2, head_dim: 128 }),
        (256, None, Heads { num_heads: 40, num_kv_heads: 1, head_dim: 16 }),
    ] {
        let (total, threads, int8) = (330, 2, true);
        let case =
            |isa, compute| Case { heads, compute, int8, isa, block_size, window, total, threads };
        // The reference has neither paths nor types, and takes longest: once for all of them.
        let want = case(CpuIsa::Portable, ComputeType::F32).reference();
        for isa in paths() {
            for compute in [ComputeType::F32, ComputeType::Bf16] {
                let got = case(isa, compute).run(&[201, 1, 127, 1], false);
                // Each probability is rounded by up to 2^-8 of itself; values are below 2.
                let rounds = compute == ComputeType::Bf16 && kernels::plain(isa).bf16_inputs;
                let bound = if rounds { 2.0 / 256.0 } else { 2e-6 };
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let position = i / heads.q_width();
                    let what = format!("{isa:?} {compute:?} {block_size} {window:?} {heads:?}");
                    assert!((got - want).abs() < bound, "{what} {position}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn int8_takes_half_of_bf16_and_its_scales() {
    let of = |compute, int8, heads| KvCache::block_bytes(&spec(heads, 16), compute, int8);
    let heads = Heads { num_heads: 16, num_kv_heads: 8, head_dim: 128 };
    assert_eq!(of(ComputeType::F32, false, heads), 16 * 8 * 128 * 2 * 4);
    assert_eq!(of(ComputeType::Bf16, false, heads), 16 * 8 * 128 * 2 * 2);
    for compute in [ComputeType::F32, ComputeType::Bf16] {
        assert_eq!(of(compute, true, heads), 16 * 8 * (128 + 4) * 2);
    }
    // Keys end with a whole pair, values with a whole vector.
    assert_eq!(of(ComputeType::Bf16, true, GQA), 16 * 2 * (20 + 4 + 32 + 4));
}

#[test]
fn what_is_no_number_is_not_hidden_by_int8() {
    for isa in paths() {
        for compute in [ComputeType::F32, ComputeType::Bf16] {
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for half in 0..2 {
                    let (heads, int8) = (GQA, true);
                    let (block_size, window, total, threads) = (16, None, 20, 1);
                    let case =
                        Case { heads, compute, int8, isa, block_size, window, total, threads };
                    let mut b = case.backend();
                    let (x, out) = (b.activation(case.row()), b.activation(heads.q_width()));
                    allocate(&mut b, total, heads, (block_size, 4));
                    let mut qkv = case.qkv();
                    // Of position 3, the second KV head.
                    let head = heads.num_heads + half * heads.num_kv_heads + 1;
                    qkv[3 * case.row() + head * heads.head_dim + 7] = wrong;
                    write(&b, x, &qkv);
                    case.step(&mut b, (x, out), &[1, 2, 3].map(BlockId), (0, total, 0));
                    for (row, out) in read(&b, out, total).chunks(heads.q_width()).enumerate() {
                        let (first, second) = out.split_at(heads.q_width() / 2);
                        assert!(first.iter().all(|x| x.is_finite()), "{isa:?} {row}");
                        let seen = second.iter().all(|x| x.is_nan());
                        assert_eq!(seen, row >= 3, "{isa:?} {wrong} {row}: {second:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_batches_and_threads_do_not_change_a_bit() {
    assert_same_bits(&[500, 7, 33, 130], 1..=3);
}

/// What of that an emulated machine does in seconds: two spans, one number of threads.
#[test]
fn chunks_and_batches_do_not_change_a_bit() {
    assert_same_bits(&[130, 7, 133], 2..=2);
}

/// A run at once, in `chunks` and then 30 single positions, and all but the last beside another.
fn assert_same_bits(chunks: &[usize], threads: std::ops::RangeInclusive<usize>) {
    for isa in paths() {
        for (compute, int8) in KINDS {
            for (block_size, window) in [(16, None), (8, Some(290)), (16, Some(17))] {
                let total = chunks.iter().sum::<usize>() + 30;
                let case = |threads| Case {
                    heads: GQA,
                    compute,
                    int8,
                    isa,
                    block_size,
                    window,
                    total,
                    threads,
                };
                let whole = bits(&case(1).run(&[total], false));
                let steps = [chunks, &[1; 30]].concat();
                for threads in threads.clone() {
                    let kind = format!("{isa:?} {compute:?} int8 {int8}");
                    let what = format!("{kind} {block_size} {window:?} {threads}");
                    assert!(whole == bits(&case(threads).run(&steps, false)), "chunks {what}");
                    assert!(
                        whole == bits(&case(threads).run(&[total - 1, 1], true)),
                        "batch {what}"
                    );
                }
            }
        }
    }
}

#[test]
fn block_copies_come_first() {
    for (compute, int8) in KINDS {
        let (isa, block_size, window, total) = (CpuIsa::Portable, 16, None, 17);
        let threads = 2;
        copy(&Case { heads: GQA, compute, int8, isa, block_size, window, total, threads });
    }
}

fn copy(case: &Case) {
    let want = case.run(&[16, 1], false);
    let mut b = case.backend();
    let (x, out) = (b.activation(case.row()), b.activation(case.heads.q_width()));
    allocate(&mut b, 16, case.heads, (16, 8));
    let qkv = case.qkv();
    write(&b, x, &qkv[..16 * case.row()]);
    case.step(&mut b, (x, out), &[3, 4, 7].map(BlockId), (0, 16, 0));
    write(&b, x, &qkv[16 * case.row()..]);
    let seq = SeqInput {
        query_start: 0,
        query_len: 1,
        context_len: 16,
        block_table_start: 0,
        num_blocks: 2,
    };
    b.begin_step(&StepInput {
        token_ids: &[TokenId(0)],
        positions: &[16],
        seqs: &[seq],
        block_tables: &[vec![BlockId(5), BlockId(6)]],
        slot_mapping: &[vec![6 * 16]],
        block_copies: &[crate::ids::BlockCopy { source: BlockId(3), destination: BlockId(5) }],
        wanted: None,
    });
    case.ops(&mut b, x, out);
    b.finish_step().unwrap();
    assert_eq!(bits(&read(&b, out, 1)), bits(&want[16 * case.heads.q_width()..]));
}
