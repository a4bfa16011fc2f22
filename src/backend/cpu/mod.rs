//! The fast CPU backend.
//!
//! ```text
//!  mod (ops enqueue) ─► program (phases, barriers) ─► kernels (one table per instruction path)
//!                            │                            │
//!                     thread_pool, barrier      linear · attention · norm · rope · elementwise
//!                                                         │
//!                       memory · pack · kv             simd · math
//! ```
//! Ops only describe work; `map_logits` and `finish_step` run the description on a persistent
//! pool of which the caller is thread 0. Results are the same bits whatever the number of threads,
//! rows or chunks: every output has one order of accumulation per instruction path.
#![allow(unsafe_code, reason = "hands buffers to kernels")]

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::{
    ActId, Activation, Attention, Backend, BackendCounters, ComputeType, KvSpec, LinearId,
    LinearSpec, RopeId, RopeSpec, RopeWrite, StepInput, StepLimits, VectorId,
};
use crate::config::{CpuIsa, Quantization};
use crate::error::Result;
use crate::ids::BlockId;

mod affinity;
mod amx;
mod attention;
pub mod barrier;
mod commit;
mod elementwise;
mod enqueue;
mod fill;
mod float_env;
mod input;
pub mod isa;
mod kept;
mod kernels;
mod kv;
mod leases;
mod leftover;
mod linear;
mod math;
mod memory;
#[cfg(all(test, feature = "shuttle"))]
mod models;
mod norm;
mod pack;
mod program;
mod quantize;
mod rope;
mod simd;
mod thread_pool;
mod upcoming;

use attention::plan::Plan;
use elementwise::{ActivateArgs, GatedArgs};
use input::Input;
use kernels::Kernels;
use kv::KvCache;
use leases::Leases;
use leftover::Leftover;
use linear::InputForm;
use memory::Buffer;
use pack::{Packed, Precision};
use program::{AttentionOp, Op, ThreadScratch, Workspace};
use rope::{RopeArgs, RopeTable};
use thread_pool::{PoolOptions, ThreadPool};

/// What a CPU backend is made with.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Precision of linear layers and of the KV cache.
    pub compute: ComputeType,
    /// Rounding of weights to integers, instead, if any.
    pub quantization: Option<Quantization>,
    /// Whether keys and values are rounded to int8 instead, with a scale for each token and head.
    pub int8_kv: bool,
    /// Whether a thread commits the KV cache's pages once it is allocated; they are committed as
    /// they are touched else.
    pub commit_kv: bool,
    /// Compute threads, the caller included; one for each physical core that the process may use
    /// when absent.
    pub threads: Option<usize>,
    /// Instruction path; the best one when absent.
    pub isa: Option<CpuIsa>,
    /// Binds each thread, the caller too, to one core.
    pub pin: bool,
    /// How long a thread that waits for others looks before it sleeps.
    pub spin: Duration,
}

impl CpuOptions {
    /// The best path on all cores, nothing quantized or pinned.
    pub fn new(compute: ComputeType) -> Self {
        let spin = thread_pool::SPIN;
        Self {
            compute,
            quantization: None,
            int8_kv: false,
            commit_kv: false,
            threads: None,
            isa: None,
            pin: false,
            spin,
        }
    }
}

/// The CPU backend.
pub struct CpuBackend {
    pool: ThreadPool,
    isa: CpuIsa,
    kernels: Kernels,
    precision: Precision,
    int8_kv: bool,
    commit_kv: bool,
    linears: Vec<Packed>,
    vectors: Vec<Buffer<f32>>,
    ropes: Vec<RopeTable>,
    acts: Vec<Act>,
    limits: Option<StepLimits>,
    kv: KvCache,
    input: Input,
    workspace: Workspace,
    ops: Vec<Op>,
    cursors: Vec<AtomicUsize>,
    leftover: Leftover,
    plans: Vec<Plan>,
    /// Plans that this step has made already.
    planned: usize,
    logits_width: usize,
    /// See `program::Context`.
    block_rows: usize,
    counters: BackendCounters,
}

struct Act {
    width: usize,
    rows: Option<Buffer<f32>>,
}

impl CpuBackend {
    /// Starts the threads. Fails with UNSUPPORTED when the machine lacks the wanted instruction
    /// path, and when threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let isa = isa::choose(options.isa)?;
        let threads = options.threads.unwrap_or_else(affinity::default_threads).max(1);
        let (pin, spin, leases) = (options.pin, options.spin, Leases::of_process());
        let empty = KvSpec { groups: Vec::new(), block_size: 16 };
        Ok(Self {
            pool: ThreadPool::new(PoolOptions { threads, pin, spin, leases })?,
            isa,
            kernels: kernels::of(isa),
            precision: Precision { compute: options.compute, quantization: options.quantization },
            int8_kv: options.int8_kv,
            commit_kv: options.commit_kv,
            linears: Vec::new(),
            vectors: Vec::new(),
            ropes: Vec::new(),
            acts: Vec::new(),
            limits: None,
            kv: KvCache::new(&empty, options.compute, options.int8_kv, 0)?,
            input: Input::default(),
            workspace: Workspace {
                inputs: Buffer::zeroed(0, "")?,
                partials: Buffer::zeroed(0, "")?,
                logits_rows: Vec::new(),
                logits: Buffer::zeroed(0, "")?,
                rows: Vec::new(),
                scratch: Vec::new(),
            },
            ops: Vec::new(),
            cursors: Vec::new(),
            leftover: Leftover::default(),
            plans: Vec::new(),
            planned: 0,
            logits_width: 0,
            block_rows: LEAST_BLOCK_ROWS,
            counters: BackendCounters::default(),
        })
    }
}

impl Backend for CpuBackend {
    fn describe(&self) -> String {
        let threads = self.pool.threads();
        let plural = if threads == 1 { "" } else { "s" };
        let quantized = match self.precision.quantization {
            None => "",
            Some(Quantization::Int8) => ", int8",
            Some(Quantization::Int4) => ", int4",
        };
        let kv = if self.int8_kv { ", int8 KV" } else { "" };
        format!("cpu ({}, {threads} thread{plural}{quantized}{kv})", isa::name(self.isa))
    }

    fn pack_linear(&mut self, spec: LinearSpec) -> Result<LinearId> {
        self.linears.try_reserve(1)?;
        self.linears.push(Packed::new(&spec, self.precision, &mut self.pool)?);
        Ok(LinearId(self.linears.len() as u32 - 1))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<VectorId> {
        let mut buffer = Buffer::zeroed(values.len(), "parameter")?;
        buffer.as_mut_slice().copy_from_slice(&values);
        self.vectors.try_reserve(1)?;
        self.vectors.push(buffer);
        Ok(VectorId(self.vectors.len() as u32 - 1))
    }

    fn rope_table(&mut self, spec: &RopeSpec) -> Result<RopeId> {
        self.ropes.try_reserve(1)?;
        self.ropes.push(RopeTable::new(spec, &mut self.pool)?);
        Ok(RopeId(self.ropes.len() as u32 - 1))
    }

    fn activation(&mut self, width: usize) -> ActId {
        self.acts.push(Act { width, rows: None });
        ActId(self.acts.len() as u32 - 1)
    }

    fn kv_block_bytes(&self, spec: &KvSpec) -> usize {
        KvCache::block_bytes(spec, self.precision.compute, self.int8_kv)
    }

    fn allocate(&mut self, limits: StepLimits, kv: &KvSpec, num_blocks: usize) -> Result<()> {
        for act in &mut self.acts {
            let len = limits.max_tokens.saturating_mul(act.width);
            act.rows = Some(Buffer::zeroed(len, "activation")?);
        }
        self.kv = KvCache::new(kv, self.precision.compute, self.int8_kv, num_blocks)?;
        let groups = kv.groups.len();
        let rows = limits.max_tokens.max(limits.max_logits_rows);
        let row = self.linears.iter().map(|l| pack::input_row_bytes(l.k)).max().unwrap_or(0);
        let inputs = rows.saturating_mul(row.div_ceil(4));
        self.workspace.inputs = Buffer::zeroed(inputs, "inputs of linear layers")?;
        self.workspace.partials = Buffer::zeroed(PARTIALS, "partial results of attention")?;
        self.workspace.logits_rows.try_reserve(limits.max_logits_rows)?;
        let dim = kv.groups.iter().map(|g| g.head_dim.next_multiple_of(16)).max().unwrap_or(16);
        let widest_act = self.acts.iter().map(|a| a.width).max().unwrap_or(0);
        self.block_rows = (BLOCK_FLOATS / widest_act.max(1)).max(LEAST_BLOCK_ROWS);
        for _ in 0..self.pool.threads() {
            self.workspace.rows.push(Buffer::zeroed(widest_act, "a row of activations")?);
            let scratch = attention::Scratch::new(dim)?;
            self.workspace.scratch.push(ThreadScratch(UnsafeCell::new(scratch)));
        }
        let (tokens, seqs) = (limits.max_tokens, limits.max_seqs);
        // Any linear layer may turn out to be the head; pages are committed as they are touched.
        let widest = self.linears.iter().map(|l| l.n).max().unwrap_or(0);
        let logits = limits.max_logits_rows.saturating_mul(widest);
        self.workspace.logits = Buffer::zeroed(logits, "logits")?;
        self.input.reserve(tokens, seqs, limits.max_block_table, groups)?;
        self.ops.try_reserve(OPS)?;
        self.cursors.try_reserve(OPS)?;
        self.leftover.reserve(self.pool.threads(), OPS)?;
        self.limits = Some(limits);
        if self.commit_kv {
            self.kv.commit();
        }
        Ok(())
    }

    fn begin_step(&mut self, input: &StepInput<'_>) {
        self.check_input(input);
        self.counters.steps += 1;
        self.ops.clear();
        self.planned = 0;
        self.input.take(input);
        if !input.block_copies.is_empty() {
            self.push(Op::CopyBlocks);
        }
    }

    fn embed(&mut self, table: LinearId, out: ActId) {
        let (out, width) = self.act(out);
        assert_eq!(width, self.linears[table.0 as usize].k, "width of an embedding");
        self.counters.token_rows += self.rows() as u64;
        self.push(Op::Embed { table, out });
    }

    fn add_position(&mut self, table: LinearId, x: ActId) {
        let (x, width) = self.act(x);
        assert_eq!(width, self.linears[table.0 as usize].k, "width of an embedding");
        self.push(Op::AddPosition { table, x });
    }

    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId) {
        self.push_norm(x, weight, None, eps, out);
    }

    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId) {
        self.push_norm(x, weight, Some(bias), eps, out);
    }

    fn linear(&mut self, weight: LinearId, x: ActId, out: ActId) {
        let out = self.act(out);
        self.push_linear(weight, x, out, false);
    }

    fn linear_add(&mut self, weight: LinearId, x: ActId, residual: ActId) {
        let residual = self.act(residual);
        self.push_linear(weight, x, residual, true);
    }

    fn rope_write_kv(&mut self, layer: usize, qkv: ActId, spec: &RopeWrite) {
        let (qkv, width) = self.act(qkv);
        let heads = spec.heads;
        assert_eq!(width, heads.qkv_width(), "width of qkv");
        let (group, kv) = self.kv.layer(layer);
        assert!(self.input.kept.seqs().is_none(), "keys and values of rows that were left out");
        assert_eq!((kv.heads, kv.dim), (heads.num_kv_heads, heads.head_dim), "heads of the cache");
        let null = std::ptr::null();
        let (q_norm, k_norm, eps) = match spec.qk_norm {
            Some((q, k, eps)) => (self.param(q, kv.dim), self.param(k, kv.dim), eps),
            None => (null, null, 0.0),
        };
        let (mut table, mut half) = (null, 0);
        if let Some(rope) = spec.rope {
            let rope = &self.ropes[rope.0 as usize];
            assert!(2 * rope.half <= kv.dim, "rotary_dim exceeds head_dim");
            let covered = |p: &u32| (*p as usize) < rope.positions;
            assert!(self.input.positions.iter().all(covered), "position beyond the rope table");
            (table, half) = (rope.as_ptr(), rope.half);
        }
        let positions = self.input.positions.as_ptr();
        let slots = self.input.slot_mapping[group].as_ptr();
        self.push(Op::RopeWrite(RopeArgs {
            qkv,
            heads,
            q_norm,
            k_norm,
            eps,
            table,
            half,
            positions,
            slots,
            kv,
            narrow: false,
        }));
    }

    fn paged_attention(&mut self, layer: usize, qkv: ActId, spec: &Attention, out: ActId) {
        let ((qkv, width), (out, out_width)) = (self.act(qkv), self.act(out));
        let heads = spec.heads;
        assert_eq!(width, heads.qkv_width(), "width of qkv");
        assert_eq!(out_width, heads.q_width(), "width of the attention's output");
        assert_eq!(heads.num_heads % heads.num_kv_heads, 0, "query heads per KV head");
        let (group, kv) = self.kv.layer(layer);
        assert_eq!((kv.heads, kv.dim), (heads.num_kv_heads, heads.head_dim), "heads of the cache");
        for seq in &self.input.seqs {
            let (end, blocks) = (seq.context_len + seq.query_len, seq.num_blocks);
            assert!(blocks * kv.block_size >= end, "{blocks} blocks for {end} positions");
            let table = &self.input.block_tables[group];
            assert!(seq.block_table_start + blocks <= table.len(), "block table ends early");
        }
        let window = spec.sliding_window.unwrap_or(usize::MAX);
        let plan = self.plan(spec, window, kv.dim_padded);
        let narrow = self.narrow_queries(qkv, &kv);
        self.push(Op::Attention(AttentionOp {
            qkv,
            narrow,
            out,
            ldo: heads.q_width(),
            form: InputForm::F32,
            heads,
            scale: spec.scale,
            window,
            kv,
            group,
            plan,
        }));
    }

    fn gated_activation(&mut self, gate_up: ActId, kind: Activation, out: ActId) {
        let ((gate_up, both), (out, width)) = (self.act(gate_up), self.act(out));
        assert_eq!(both, 2 * width, "width of gate and up");
        self.push_gated(GatedArgs { gate_up, out, width, kind });
    }

    fn activate(&mut self, x: ActId, kind: Activation) {
        let (x, width) = self.act(x);
        let len = self.rows() * width;
        self.push(Op::Activate(ActivateArgs { x, len, width, kind }));
    }

    fn keep_rows(&mut self, acts: &[ActId]) {
        self.push_keep_rows(acts);
    }

    fn logits(&mut self, head: LinearId, x: ActId, rows: &[u32]) {
        let limits = self.limits.expect("a backend is allocated before its first step");
        assert!(rows.len() <= limits.max_logits_rows, "more rows than max_logits_rows");
        let tokens = self.input.token_ids.len();
        assert!(rows.iter().all(|row| (*row as usize) < tokens), "row out of range");
        self.workspace.logits_rows.clear();
        let places = rows.iter().map(|row| self.input.kept.place(*row));
        self.workspace.logits_rows.extend(places);
        self.counters.logits_rows += rows.len() as u64;
        self.logits_width = self.linears[head.0 as usize].n;
        let wanted = limits.max_logits_rows.saturating_mul(self.logits_width);
        assert!(self.workspace.logits.len() >= wanted, "the head was packed after `allocate`");
        if rows.is_empty() {
            return;
        }
        let x = self.act(x);
        let out = (self.workspace.logits.as_ptr(), self.logits_width);
        let index = self.workspace.logits_rows.as_ptr();
        self.push_linear_rows(head, x, rows.len(), index, out, false);
    }

    fn map_logits(&mut self, f: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Result<()> {
        self.run_program(Some(f));
        Ok(())
    }

    fn finish_step(&mut self) -> Result<()> {
        self.run_program(None);
        Ok(())
    }

    fn counters(&self) -> BackendCounters {
        self.counters
    }

    fn fill_blocks(&mut self, blocks: &[BlockId], value: f32) {
        self.kv.fill(blocks, value);
    }
}

/// Thread `thread`'s part of `units`, contiguous and as even as can be.
fn share(units: usize, thread: usize, threads: usize) -> Range<usize> {
    units * thread / threads..units * (thread + 1) / threads
}

/// Floats of partial results: 16 MiB, committed as they are touched.
const PARTIALS: usize = 4 << 20;
/// Floats of the widest activation in one block of rows: 8 MiB.
const BLOCK_FLOATS: usize = 2 << 20;
/// Weights are read once for each block of rows: fewer rows would make that felt.
const LEAST_BLOCK_ROWS: usize = 256;
/// Ops of a step that are reserved for; a deeper model grows the program once.
const OPS: usize = 4096;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
