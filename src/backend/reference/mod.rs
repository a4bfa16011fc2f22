//! Plain loops, run at once in each op: the oracle that other backends are compared with.
//!
//! Nothing here is fast; every sum is taken in f64 and rounded to f32 once. In `ComputeType::Bf16`
//! weights, inputs of linear layers, keys and values are rounded to bf16, as the trait says;
//! `with_int8_kv` rounds keys and values to int8 instead, with a scale for each token and head.

mod attention;
mod kv;
mod math;
mod weights;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BlockId, TokenId};

use super::{
    ActId, Activation, Attention, Backend, BackendCounters, ComputeType, KvSpec, LinearId,
    LinearSpec, RopeId, RopeSpec, RopeWrite, SeqInput, StepInput, StepLimits, VectorId,
};

use kv::KvCache;
use weights::Linear;

/// The reference backend.
pub struct ReferenceBackend {
    compute: ComputeType,
    int8_kv: bool,
    linears: Vec<Linear>,
    vectors: Vec<Vec<f32>>,
    ropes: Vec<RopeSpec>,
    activations: Vec<Matrix>,
    kv: Option<KvCache>,
    limits: Option<StepLimits>,
    step: Step,
    /// `[rows of the last logits call, vocab]`.
    logits: Matrix,
    counters: BackendCounters,
}

/// An activation `[rows, width]`; only the rows of the step are in use.
#[derive(Default)]
struct Matrix {
    width: usize,
    data: Vec<f32>,
}

impl Matrix {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.width..(row + 1) * self.width]
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        let len = rows.checked_mul(self.width).ok_or_else(too_large)?;
        self.data.try_reserve_exact(len)?;
        self.data.resize(len, 0.0);
        Ok(())
    }
}

/// A copy of the step's input.
#[derive(Default)]
struct Step {
    token_ids: Vec<TokenId>,
    positions: Vec<u32>,
    seqs: Vec<SeqInput>,
    block_tables: Vec<Vec<BlockId>>,
    slot_mapping: Vec<Vec<u64>>,
}

impl ReferenceBackend {
    /// A backend of this precision, with nothing loaded.
    pub fn new(compute: ComputeType) -> Self {
        Self {
            compute,
            int8_kv: false,
            linears: Vec::new(),
            vectors: Vec::new(),
            ropes: Vec::new(),
            activations: Vec::new(),
            kv: None,
            limits: None,
            step: Step::default(),
            logits: Matrix::default(),
            counters: BackendCounters::default(),
        }
    }

    /// A backend of this precision whose KV cache is rounded to int8.
    pub fn with_int8_kv(compute: ComputeType) -> Self {
        Self { int8_kv: true, ..Self::new(compute) }
    }

    fn act(&mut self, id: ActId) -> &mut Matrix {
        &mut self.activations[id.0 as usize]
    }

    /// Runs `f(backend, row, x[row], out[row])` for each row of the step. The two activations are
    /// taken out meanwhile, so that `f` can read everything else.
    fn rows(&mut self, x: ActId, out: ActId, f: impl Fn(&Self, usize, &[f32], &mut [f32])) {
        assert_ne!(x, out, "an op does not read what it writes");
        let input = std::mem::take(self.act(x));
        let mut output = std::mem::take(self.act(out));
        for row in 0..self.step.token_ids.len() {
            f(self, row, input.row(row), output.row_mut(row));
        }
        *self.act(x) = input;
        *self.act(out) = output;
    }

    /// Runs `f(backend, row, x[row])` for each row of the step.
    fn rows_in_place(&mut self, x: ActId, f: impl Fn(&Self, usize, &mut [f32])) {
        let mut matrix = std::mem::take(self.act(x));
        for row in 0..self.step.token_ids.len() {
            f(self, row, matrix.row_mut(row));
        }
        *self.act(x) = matrix;
    }

    fn linear_of(&self, id: LinearId) -> &Linear {
        &self.linears[id.0 as usize]
    }

    fn cache(&self) -> &KvCache {
        self.kv.as_ref().expect("the engine allocates before the first step")
    }

    fn check_step(&self, input: &StepInput<'_>) {
        let limits = self.limits.expect("the engine allocates before the first step");
        let tokens = input.token_ids.len();
        assert!(tokens <= limits.max_tokens, "a step has at most max_tokens rows");
        assert!(input.seqs.len() <= limits.max_seqs, "a step has at most max_seqs sequences");
        assert_eq!(input.positions.len(), tokens, "each row has a position");
        for (table, slots) in input.block_tables.iter().zip(input.slot_mapping) {
            assert!(table.len() <= limits.max_block_table, "the block table is within its limit");
            assert_eq!(slots.len(), tokens, "each row has a slot");
        }
    }
}

impl Backend for ReferenceBackend {
    fn describe(&self) -> String {
        let compute = match self.compute {
            ComputeType::F32 => "f32",
            ComputeType::Bf16 => "bf16",
        };
        format!("reference ({compute}{})", if self.int8_kv { ", int8 KV" } else { "" })
    }

    fn pack_linear(&mut self, spec: LinearSpec) -> Result<LinearId> {
        self.linears.push(Linear::pack(spec, self.compute)?);
        Ok(LinearId(self.linears.len() as u32 - 1))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<VectorId> {
        self.vectors.push(values);
        Ok(VectorId(self.vectors.len() as u32 - 1))
    }

    fn rope_table(&mut self, spec: &RopeSpec) -> Result<RopeId> {
        self.ropes.push(spec.clone());
        Ok(RopeId(self.ropes.len() as u32 - 1))
    }

    fn activation(&mut self, width: usize) -> ActId {
        self.activations.push(Matrix { width, data: Vec::new() });
        ActId(self.activations.len() as u32 - 1)
    }

    fn kv_block_bytes(&self, spec: &KvSpec) -> usize {
        KvCache::block_bytes(spec)
    }

    fn allocate(&mut self, limits: StepLimits, kv: &KvSpec, num_blocks: usize) -> Result<()> {
        assert!(self.kv.is_none(), "allocate is called once");
        for activation in &mut self.activations {
            activation.reserve(limits.max_tokens)?;
        }
        self.kv = Some(KvCache::new(kv, num_blocks, self.compute, self.int8_kv)?);
        self.limits = Some(limits);
        Ok(())
    }

    fn begin_step(&mut self, input: &StepInput<'_>) {
        self.check_step(input);
        let kv = self.kv.as_mut().expect("check_step saw that allocate was called");
        for copy in input.block_copies {
            kv.copy_block(copy.source, copy.destination);
        }
        self.step = Step {
            token_ids: input.token_ids.to_vec(),
            positions: input.positions.to_vec(),
            seqs: input.seqs.to_vec(),
            block_tables: input.block_tables.to_vec(),
            slot_mapping: input.slot_mapping.to_vec(),
        };
        self.counters.steps += 1;
    }

    fn embed(&mut self, table: LinearId, out: ActId) {
        self.rows_in_place(out, |b, row, out| {
            out.copy_from_slice(b.linear_of(table).row(b.step.token_ids[row].index()));
        });
        self.counters.token_rows += self.step.token_ids.len() as u64;
    }

    fn add_position(&mut self, table: LinearId, x: ActId) {
        self.rows_in_place(x, |b, row, x| {
            let position = b.step.positions[row] as usize;
            math::add(x, b.linear_of(table).row(position));
        });
    }

    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId) {
        self.rows(x, out, |b, _, x, out| {
            math::rms_norm(x, &b.vectors[weight.0 as usize], eps, out);
        });
    }

    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId) {
        self.rows(x, out, |b, _, x, out| {
            let (weight, bias) = (&b.vectors[weight.0 as usize], &b.vectors[bias.0 as usize]);
            math::layer_norm(x, weight, bias, eps, out);
        });
    }

    fn linear(&mut self, weight: LinearId, x: ActId, out: ActId) {
        self.rows(x, out, |b, _, x, out| b.linear_of(weight).apply(x, out));
    }

    fn linear_add(&mut self, weight: LinearId, x: ActId, residual: ActId) {
        self.rows(x, residual, |b, _, x, residual| {
            let mut out = vec![0.0; residual.len()];
            b.linear_of(weight).apply(x, &mut out);
            math::add(residual, &out);
        });
    }

    fn rope_write_kv(&mut self, layer: usize, qkv: ActId, spec: &RopeWrite) {
        self.rows_in_place(qkv, |b, row, qkv| {
            attention::norm_and_rotate(b, spec, b.step.positions[row], qkv);
        });
        let matrix = std::mem::take(self.act(qkv));
        let kv = self.kv.as_mut().expect("the engine allocates before the first step");
        let group = kv.group_of(layer);
        for (row, &slot) in self.step.slot_mapping[group].iter().enumerate() {
            let (q_width, qkv) = (spec.heads.q_width(), matrix.row(row));
            assert_eq!(qkv.len(), spec.heads.qkv_width(), "a row is queries, keys and values");
            let (keys, values) = qkv[q_width..].split_at((qkv.len() - q_width) / 2);
            kv.write(layer, slot as usize, keys, values);
        }
        *self.act(qkv) = matrix;
    }

    fn paged_attention(&mut self, layer: usize, qkv: ActId, spec: &Attention, out: ActId) {
        let queries = std::mem::take(self.act(qkv));
        let mut output = std::mem::take(self.act(out));
        for seq in &self.step.seqs {
            let tables = &self.step.block_tables[self.cache().group_of(layer)];
            let blocks = &tables[seq.block_table_start..seq.block_table_start + seq.num_blocks];
            for i in 0..seq.query_len {
                let row = seq.query_start + i;
                let place = attention::Place { layer, blocks, position: seq.context_len + i };
                let (query, out) = (queries.row(row), output.row_mut(row));
                attention::attend(self.cache(), spec, place, query, out);
            }
        }
        *self.act(qkv) = queries;
        *self.act(out) = output;
    }

    fn gated_activation(&mut self, gate_up: ActId, kind: Activation, out: ActId) {
        self.rows(gate_up, out, |_, _, gate_up, out| {
            let (gate, up) = gate_up.split_at(out.len());
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *o = math::activate(kind, g) * u;
            }
        });
    }

    fn activate(&mut self, x: ActId, kind: Activation) {
        self.rows_in_place(x, |_, _, x| {
            x.iter_mut().for_each(|x| *x = math::activate(kind, *x));
        });
    }

    fn logits(&mut self, head: LinearId, x: ActId, rows: &[u32]) {
        let limits = self.limits.expect("the engine allocates before the first step");
        assert!(rows.len() <= limits.max_logits_rows, "logits are asked for within their limit");
        let width = self.linear_of(head).rows();
        let mut logits = Matrix { width, data: vec![0.0; rows.len() * width] };
        for (i, &row) in rows.iter().enumerate() {
            let x = self.activations[x.0 as usize].row(row as usize);
            self.linear_of(head).apply(x, logits.row_mut(i));
        }
        self.logits = logits;
        self.counters.logits_rows += rows.len() as u64;
    }

    fn map_logits(&mut self, f: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Result<()> {
        let width = self.logits.width.max(1);
        for (i, row) in self.logits.data.chunks_exact_mut(width).enumerate() {
            f(i, row);
        }
        Ok(())
    }

    fn finish_step(&mut self) -> Result<()> {
        Ok(())
    }

    fn counters(&self) -> BackendCounters {
        self.counters
    }

    fn fill_blocks(&mut self, blocks: &[BlockId], value: f32) {
        let kv = self.kv.as_mut().expect("the engine allocates before it fills blocks");
        for &block in blocks {
            kv.fill_block(block, value);
        }
    }
}

fn too_large() -> Error {
    Error::new(ErrorKind::OutOfMemory, "out of memory: a buffer would not fit the address space")
}
