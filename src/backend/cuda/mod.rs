//! NVIDIA GPUs, through the driver alone: kernels are compiled when an engine starts, libraries
//! are found at run time, and nothing of CUDA is needed to build.
//!
//! ```text
//!  probe ─► Context, Stream ─► Kernels (compile ─► Module) ─► Arena ◄─ Linear, vectors, KvPool
//!                                                                │
//!  begin_step ─► Staging ──copy──►  described ops ─► Launcher ───┴─► stream, or a graph of it
//! ```
//!
//! One thread, the engine's worker, makes every call. A step's ops are only noted down; at the
//! synchronisation point they are launched on the engine's own stream, or replayed as a graph
//! where the step is a decode of a size seen before. A step whose tokens are drawn on the device
//! is only submitted: the host prepares the next one beside it, whose input takes those tokens
//! where they lie. Nothing is allocated on the device after
//! `allocate`. The primary context is shared with the host and never reset.

mod attention;
mod boxes;
mod compile;
mod draws;
mod driver;
mod gemm;
mod graphs;
mod kernels;
mod kv;
mod launch;
mod library;
mod linear;
mod memory;
mod op;
mod prebuilt;
mod probe;
mod product;
mod room;
mod rows;
mod run;
mod step;
mod submit;
mod tune;
mod upload;
mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BlockCopy, BlockId};

use super::{
    ActId, Activation, Attention, Backend, BackendCounters, ComputeType, DrawRule, Drawn, KvSpec,
    LinearId, LinearRole, LinearSpec, RopeId, RopeSpec, RopeWrite, SeqInput, StepInput, StepLimits,
    VectorId,
};

use draws::Draws;
use driver::{Context, DevicePtr, Pinned, Stream};
use gemm::Gemm;
use graphs::Graphs;
use kernels::Kernels;
use kv::KvPool;
use linear::{Linear, Packer};
use memory::Arena;
use op::Op;
use probe::Device;
use step::{Layout, Staging};
use upload::Uploader;
use work::WorkLists;

/// What a CUDA backend is made with.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Precision.
    pub compute: ComputeType,
    /// Which of the devices that the driver shows.
    pub ordinal: u32,
    /// Share of the memory that was free when the engine started which it may use.
    pub memory_utilization: f64,
    /// Replays decode steps as CUDA graphs.
    pub graphs: bool,
    /// Uses only kernels whose result for a row does not depend on what else the step computes,
    /// nor on how a prompt is cut. In float32 all are of that kind.
    pub batch_invariant: bool,
}

impl CudaOptions {
    /// Device 0, most of its memory, graphs.
    pub fn new(compute: ComputeType) -> Self {
        Self { compute, ordinal: 0, memory_utilization: 0.92, graphs: true, batch_invariant: false }
    }
}

/// The CUDA backend. Fields are dropped in this order, after the stream has been waited for.
pub struct CudaBackend {
    graphs: Graphs,
    /// In bfloat16.
    gemm: Option<Gemm>,
    /// Until `allocate`.
    uploader: Option<Uploader>,
    /// From `allocate` on.
    memory: Option<StepMemory>,
    kernels: Kernels,
    stream: Stream,
    arena: Arena,
    context: Context,
    device: Device,
    options: CudaOptions,
    /// Bytes that were free at the start.
    free_at_start: u64,
    linears: Vec<Linear>,
    /// Rows of the widest logits, and the widest input of a linear layer.
    widest: Widest,
    vectors: Vec<Vector>,
    ropes: Vec<RopeTable>,
    activations: Vec<ActivationMemory>,
    kv: Option<KvPool>,
    limits: Option<StepLimits>,
    step: Step,
    work: WorkLists,
    counters: BackendCounters,
}

#[derive(Clone, Copy, Default)]
struct Widest {
    /// Rows of the tallest matrix that may be a head.
    vocabulary: usize,
    /// Columns of the widest layer.
    input: usize,
}

/// A small parameter.
#[derive(Clone, Copy)]
struct Vector {
    memory: DevicePtr,
    len: usize,
}

/// `[max_positions, rotary_dim]`: cosines, then sines.
#[derive(Clone, Copy)]
struct RopeTable {
    memory: DevicePtr,
    rotary_dim: usize,
    max_positions: usize,
}

/// `[padded max_tokens, width]` of f32; in part of bf16 where only linear layers read it.
#[derive(Clone, Copy)]
struct ActivationMemory {
    memory: DevicePtr,
    width: usize,
}

/// What steps need beside activations.
struct StepMemory {
    staging: Staging,
    /// Inputs of linear layers in bf16.
    scratch: DevicePtr,
    /// Rows that logits are asked for.
    gathered: DevicePtr,
    /// `[max_logits_rows, vocabulary]`.
    logits: DevicePtr,
    /// Partial sums of products, and partial results of attention.
    partial: DevicePtr,
    /// A word that blocks of skinny products draw units of work by; 0 between launches.
    tickets: DevicePtr,
    /// As `logits`, after changes.
    edited: DevicePtr,
    /// As `logits`, on the host.
    logits_host: Pinned,
    draws: Draws,
}

/// The step that is being described or run.
#[derive(Default)]
struct Step {
    layout: Layout,
    /// Rows that were asked for, without those that fill up a graph's batch.
    num_tokens: usize,
    /// Every sequence has one row.
    is_decode: bool,
    /// Lengths of the block tables.
    tables: Vec<usize>,
    seqs: Vec<SeqInput>,
    copies: Vec<BlockCopy>,
    /// Described, not yet launched.
    ops: Vec<Op>,
    /// The input is not yet on the device.
    is_new: bool,
    /// Rows whose tokens are those that the step before drew.
    num_fed: usize,
    /// The last `logits` call: head, activation and rows; launched with the ops.
    logits: Option<(LinearId, ActId)>,
    logits_rows: Vec<u32>,
    /// Something was launched, and not as a whole step, that nobody has waited for.
    in_flight: bool,
}

impl CudaBackend {
    /// A backend on a device, with nothing loaded. Whatever is missing is an error: driver,
    /// device, compiler, memory.
    pub fn new(options: CudaOptions) -> Result<Self> {
        // cudarc panics where a library lacks a function that nobody looked for.
        catch_unwind(AssertUnwindSafe(|| Self::bring_up(options))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let message = format!("device: cuda:{}: {}", options.ordinal, text.unwrap_or("panic"));
            Err(Error::new(ErrorKind::Device, message).with("field", "device"))
        })
    }

    fn bring_up(options: CudaOptions) -> Result<Self> {
        let device = probe::device(options.ordinal)?;
        let context = Context::retain(device.handle)?;
        let (free_at_start, _) = context.memory()?;
        let stream = Stream::new(device.overlaps())?;
        let kernels = Kernels::load(&device, options.compute)?;
        let mut arena = Arena::default();
        let gemm = match options.compute {
            ComputeType::F32 => None,
            ComputeType::Bf16 => {
                let workspace = arena.take(&context, gemm::WORKSPACE, "cuBLASLt's workspace")?;
                Some(Gemm::new(workspace, &device.name)?)
            }
        };
        let work = WorkLists::new(device.is_hopper());
        Ok(Self {
            graphs: Graphs::default(),
            gemm,
            uploader: Some(Uploader::new()?),
            memory: None,
            kernels,
            stream,
            arena,
            context,
            device,
            options,
            free_at_start,
            linears: Vec::new(),
            widest: Widest::default(),
            vectors: Vec::new(),
            ropes: Vec::new(),
            activations: Vec::new(),
            kv: None,
            limits: None,
            step: Step::default(),
            work,
            counters: BackendCounters::default(),
        })
    }

    fn compute(&self) -> ComputeType {
        self.options.compute
    }

    fn linear_of(&self, id: LinearId) -> &Linear {
        &self.linears[id.0 as usize]
    }

    fn vector_of(&self, id: VectorId) -> Vector {
        self.vectors[id.0 as usize]
    }

    fn kv_pool(&self) -> &KvPool {
        self.kv.as_ref().expect("the engine allocates before the first step")
    }

    fn step_memory(&self) -> &StepMemory {
        self.memory.as_ref().expect("the engine allocates before the first step")
    }

    fn packer(&mut self) -> Packer<'_> {
        Packer {
            context: &self.context,
            arena: &mut self.arena,
            uploader: self.uploader.as_mut().expect("layers are packed before allocate"),
            stream: &self.stream,
            compute: self.options.compute,
        }
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // What the stream still reads must not be freed. A lost device cannot be waited for.
        let _ = self.stream.synchronize();
    }
}

impl Backend for CudaBackend {
    fn describe(&self) -> String {
        let Device { name, capability: (major, minor), .. } = &self.device;
        let compute = match self.compute() {
            ComputeType::F32 => "f32",
            ComputeType::Bf16 => "bf16",
        };
        format!("cuda:{} ({name}, sm_{major}{minor}, {compute})", self.options.ordinal)
    }

    fn pack_linear(&mut self, spec: LinearSpec) -> Result<LinearId> {
        let role = spec.role;
        let linear = self.packer().pack(spec)?;
        let invariant = self.options.batch_invariant && self.compute() == ComputeType::Bf16;
        if invariant && !linear.cols.is_multiple_of(8) {
            let message = format!(
                "batch_invariant: a layer with {} inputs; in bfloat16 on CUDA they must be a \
                 multiple of 8",
                linear.cols
            );
            let error = Error::new(ErrorKind::Unsupported, message);
            return Err(error.with("field", "batch_invariant"));
        }
        if role == LinearRole::Vocabulary {
            self.widest.vocabulary = self.widest.vocabulary.max(linear.rows);
        }
        self.widest.input = self.widest.input.max(linear.cols);
        self.linears.push(linear);
        Ok(LinearId(self.linears.len() as u32 - 1))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<VectorId> {
        let memory = self.packer().floats(&values, "a vector")?;
        self.vectors.push(Vector { memory, len: values.len() });
        Ok(VectorId(self.vectors.len() as u32 - 1))
    }

    fn rope_table(&mut self, spec: &RopeSpec) -> Result<RopeId> {
        let rotary_dim = 2 * spec.inv_freq.len();
        let len = spec.max_positions.checked_mul(rotary_dim);
        let len = len.ok_or_else(|| memory::too_large("a table of rotations"))?;
        let mut table = Vec::new();
        table.try_reserve_exact(len)?;
        for position in 0..spec.max_positions {
            let angles = spec.inv_freq.iter().map(|frequency| position as f64 * frequency);
            let magnitude = f64::from(spec.magnitude);
            table.extend(angles.clone().map(|angle| (angle.cos() * magnitude) as f32));
            table.extend(angles.map(|angle| (angle.sin() * magnitude) as f32));
        }
        let memory = self.packer().floats(&table, "a table of rotations")?;
        self.ropes.push(RopeTable { memory, rotary_dim, max_positions: spec.max_positions });
        Ok(RopeId(self.ropes.len() as u32 - 1))
    }

    fn activation(&mut self, width: usize) -> ActId {
        self.activations.push(ActivationMemory { memory: 0, width });
        ActId(self.activations.len() as u32 - 1)
    }

    fn kv_block_bytes(&self, spec: &KvSpec) -> usize {
        kv::block_bytes(spec, self.compute())
    }

    fn kv_memory(&self, limits: &StepLimits, kv: &KvSpec) -> Result<Option<u64>> {
        self.memory_for_kv(limits, kv).map(Some)
    }

    fn allocate(&mut self, limits: StepLimits, kv: &KvSpec, num_blocks: usize) -> Result<()> {
        self.allocate_all(limits, kv, num_blocks)
    }

    fn begin_step(&mut self, input: &StepInput<'_>) {
        self.begin(input);
    }

    fn embed(&mut self, table: LinearId, out: ActId) {
        self.counters.token_rows += self.step.num_tokens as u64;
        self.step.ops.push(Op::Embed { table, out });
    }

    fn add_position(&mut self, table: LinearId, x: ActId) {
        self.step.ops.push(Op::AddPosition { table, x });
    }

    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId) {
        self.step.ops.push(Op::RmsNorm { x, weight, eps, out });
    }

    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId) {
        self.step.ops.push(Op::LayerNorm { x, weight, bias, eps, out });
    }

    fn linear(&mut self, weight: LinearId, x: ActId, out: ActId) {
        self.step.ops.push(Op::Linear { weight, x, out, accumulate: false });
    }

    fn linear_add(&mut self, weight: LinearId, x: ActId, residual: ActId) {
        self.step.ops.push(Op::Linear { weight, x, out: residual, accumulate: true });
    }

    fn rope_write_kv(&mut self, layer: usize, qkv: ActId, spec: &RopeWrite) {
        self.step.ops.push(Op::RopeWrite { layer, qkv, spec: *spec });
    }

    fn paged_attention(&mut self, layer: usize, qkv: ActId, spec: &Attention, out: ActId) {
        self.step.ops.push(Op::Attention { layer, qkv, spec: *spec, out });
    }

    fn gated_activation(&mut self, gate_up: ActId, kind: Activation, out: ActId) {
        self.step.ops.push(Op::GatedActivation { gate_up, kind, out });
    }

    fn activate(&mut self, x: ActId, kind: Activation) {
        self.step.ops.push(Op::Activate { x, kind });
    }

    fn logits(&mut self, head: LinearId, x: ActId, rows: &[u32]) {
        let limits = self.limits.expect("the engine allocates before the first step");
        assert!(rows.len() <= limits.max_logits_rows, "logits are asked for within their limit");
        let height = self.linear_of(head).rows;
        assert!(height <= self.widest.vocabulary, "a head has the vocabulary's role");
        self.step.logits = Some((head, x));
        self.step.logits_rows.clear();
        self.step.logits_rows.extend_from_slice(rows);
        self.counters.logits_rows += rows.len() as u64;
    }

    fn map_logits(&mut self, f: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Result<()> {
        self.run()?;
        let (count, width) = self.run_logits()?;
        let Some(memory) = &mut self.memory else { return Ok(()) };
        rows::for_each(&mut memory.logits_host.floats_mut()[..count * width], width, f);
        Ok(())
    }

    fn finish_step(&mut self) -> Result<()> {
        self.run()?;
        self.wait()
    }

    fn draws(&self) -> bool {
        true
    }

    fn submit(
        &mut self,
        head: LinearId,
        x: ActId,
        rows: &[u32],
        rules: &[DrawRule],
    ) -> Result<bool> {
        self.run_submit(head, x, rows, rules)
    }

    fn feed(&mut self, places: &[(u32, u32)]) {
        self.feed_rows(places);
    }

    fn collect(&mut self) -> Result<Vec<Drawn>> {
        let memory = self.memory.as_mut().expect("the engine allocates before the first step");
        memory.draws.collect()
    }

    fn counters(&self) -> BackendCounters {
        self.counters
    }

    fn fill_blocks(&mut self, blocks: &[BlockId], value: f32) {
        // An aid for tests: the next step says what went wrong, if anything did.
        if let Err(e) = self.fill(blocks, value) {
            tracing::error!("blocks were not filled: {e}");
        }
    }
}
