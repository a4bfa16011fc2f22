//! Sequences that decode side by side: blocks of all KV heads are read as they lie, head by head
//! alone.

use super::*;

const BLOCK_SIZE: usize = 16;
/// Positions of each sequence before the step.
const CONTEXTS: [usize; 7] = [0, 1, 31, 255, 256, 290, 530];

struct Case {
    backend: CpuBackend,
    heads: Heads,
    window: Option<usize>,
    x: ActId,
    out: ActId,
    tables: Vec<Vec<BlockId>>,
    numbers: Numbers,
}

impl Case {
    /// The caches of all sequences are written.
    fn new(options: CpuOptions, heads: Heads, window: Option<usize>) -> Self {
        let mut backend = CpuBackend::new(options).unwrap();
        let (x, out) = (backend.activation(heads.qkv_width()), backend.activation(heads.q_width()));
        // The sequences take blocks in turn, so that none has two that are neighbours.
        let most = CONTEXTS.iter().max().unwrap() / BLOCK_SIZE + 1;
        let count = CONTEXTS.len();
        let blocks = count * most;
        allocate(&mut backend, blocks * BLOCK_SIZE, heads, (BLOCK_SIZE, blocks));
        let all: Vec<BlockId> = (0..blocks as u32).map(BlockId).collect();
        backend.fill_blocks(&all, f32::NAN);
        let table = |seq| (0..most).map(|i| all[i * count + seq]).collect();
        let tables = (0..count).map(table).collect();
        let mut case = Self { backend, heads, window, x, out, tables, numbers: Numbers::new(3) };
        for (seq, context) in CONTEXTS.into_iter().enumerate().filter(|(_, c)| *c > 0) {
            let rows = case.numbers.take(context * heads.qkv_width());
            case.begin(&rows, &[(seq, 0, context)]);
            // Nobody asks what the prompts attend to, which takes longest.
            case.backend.finish_step().unwrap();
        }
        case
    }

    /// Begins a step that writes the cache. Sequences, each with its context and how many positions
    /// it has in the step.
    fn begin(&mut self, rows: &[f32], seqs: &[(usize, usize, usize)]) {
        let (mut inputs, mut table, mut slots, mut positions) = (vec![], vec![], vec![], vec![]);
        for &(seq, context_len, query_len) in seqs {
            let blocks = &self.tables[seq];
            let num_blocks = (context_len + query_len).div_ceil(BLOCK_SIZE);
            inputs.push(SeqInput {
                query_start: positions.len(),
                query_len,
                context_len,
                block_table_start: table.len(),
                num_blocks,
            });
            table.extend_from_slice(&blocks[..num_blocks]);
            for p in context_len..context_len + query_len {
                positions.push(p as u32);
                slots.push((blocks[p / BLOCK_SIZE].index() * BLOCK_SIZE + p % BLOCK_SIZE) as u64);
            }
        }
        let heads = self.heads;
        write(&self.backend, self.x, rows);
        self.backend.begin_step(&StepInput {
            token_ids: &vec![TokenId(0); positions.len()],
            positions: &positions,
            seqs: &inputs,
            block_tables: &[table],
            slot_mapping: &[slots],
            block_copies: &[],
            wanted: None,
        });
        self.backend.rope_write_kv(0, self.x, &RopeWrite { heads, qk_norm: None, rope: None });
    }

    /// A whole step of one position for each sequence.
    fn step(&mut self, rows: &[f32], seqs: &[(usize, usize, usize)]) -> Vec<f32> {
        self.begin(rows, seqs);
        let spec = Attention { heads: self.heads, scale: 0.3, sliding_window: self.window };
        self.backend.paged_attention(0, self.x, &spec, self.out);
        self.backend.finish_step().unwrap();
        read(&self.backend, self.out, seqs.len())
    }
}

#[test]
fn decode_side_by_side_is_decode_alone() {
    let heads = |num_heads, num_kv_heads, head_dim| Heads { num_heads, num_kv_heads, head_dim };
    for isa in paths() {
        for (compute, int8_kv) in
            [(ComputeType::F32, false), (ComputeType::Bf16, false), (ComputeType::Bf16, true)]
        {
            for (heads, window) in [
                (heads(4, 2, 128), None),
                (heads(6, 2, 20), None),
                (heads(3, 3, 80), Some(40)),
                (heads(8, 2, 64), Some(270)),
                // More vectors than a tile has: heads go by parts.
                (heads(40, 20, 16), None),
                // More for a KV head than are few.
                (heads(10, 2, 32), None),
            ] {
                let options =
                    CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::new(compute) };
                let mut case = Case::new(CpuOptions { int8_kv, ..options }, heads, window);
                let width = heads.qkv_width();
                let rows = case.numbers.take(CONTEXTS.len() * width);
                let seqs: Vec<_> = CONTEXTS
                    .into_iter()
                    .enumerate()
                    .map(|(seq, context)| (seq, context, 1))
                    .collect();
                let mut alone = Vec::new();
                for (seq, rows) in seqs.iter().zip(rows.chunks(width)) {
                    alone.extend(case.step(rows, &[*seq]));
                }
                assert!(alone.iter().all(|x| x.is_finite()));
                let what = format!("{isa:?} {compute:?} int8 {int8_kv} {heads:?} {window:?}");
                assert!(bits(&alone) == bits(&case.step(&rows, &seqs)), "{what}");
            }
        }
    }
}
