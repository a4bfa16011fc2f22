//! From ops to launches: addresses, sizes and grids as kernels/README.md has them.

use std::ffi::c_void;

use super::driver::{DevicePtr, Grid};
use super::gemm::{Product, Size, padded_rows};
use super::linear::Linear;
use super::op::{Op, feeds_linears_only};
use super::step::Layout;
use super::{CudaBackend, StepMemory};
use crate::backend::{ActId, Activation, Attention, ComputeType, LinearId, RopeWrite, VectorId};
use crate::error::Result;

/// Threads of a block, for most kernels.
const BLOCK: u32 = 256;
/// Elements that a block of the element-wise kernels takes.
const ELEMENTS: usize = 1024;
/// Rows and columns of the output that a block of `gemm_T` computes.
const TILE: usize = 64;

/// Pointers to a kernel's parameters. Only of variables: they must outlive the launch.
macro_rules! params {
    ($($x:ident),* $(,)?) => {
        &mut [$(std::ptr::from_ref(&$x).cast_mut().cast::<c_void>()),*]
    };
}

/// The parameter of `rope_write_kv_T`.
#[repr(C)]
struct RopeArgs {
    qkv: DevicePtr,
    kv: DevicePtr,
    positions: DevicePtr,
    slots: DevicePtr,
    q_norm: DevicePtr,
    k_norm: DevicePtr,
    rope: DevicePtr,
    block_stride: u64,
    k_offset: u64,
    v_offset: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    block_size: u32,
    eps: f32,
}

/// The parameter of `paged_attention_T_O`.
#[repr(C)]
struct AttentionArgs {
    out: DevicePtr,
    qkv: DevicePtr,
    kv: DevicePtr,
    block_table: DevicePtr,
    seqs: DevicePtr,
    row_seq: DevicePtr,
    sinks: DevicePtr,
    work: DevicePtr,
    num_work: DevicePtr,
    partial: DevicePtr,
    block_stride: u64,
    k_offset: u64,
    v_offset: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    block_size: u32,
    qkv_width: u32,
    window: u32,
    scale: f32,
    softcap: f32,
}

const _: () = assert!(size_of::<RopeArgs>() == 104 && size_of::<AttentionArgs>() == 136);

/// Launches a step's ops.
pub(super) struct Launcher<'a> {
    backend: &'a CudaBackend,
    memory: &'a StepMemory,
    layout: Layout,
    /// By activation: whether it holds bf16 now.
    holds_bf16: Vec<bool>,
}

impl<'a> Launcher<'a> {
    pub(super) fn new(backend: &'a CudaBackend, layout: Layout) -> Self {
        let holds_bf16 = vec![false; backend.activations.len()];
        Self { backend, memory: backend.step_memory(), layout, holds_bf16 }
    }

    /// Launches op `at` of `ops`.
    pub(super) fn launch(&mut self, ops: &[Op], at: usize) -> Result<()> {
        match ops[at] {
            Op::Embed { table, out } => self.embed(table, out),
            Op::AddPosition { table, x } => self.add_position(table, x),
            Op::RmsNorm { x, weight, eps, out } => {
                let bf16 = self.may_be_bf16(ops, at, out);
                self.rms_norm(x, weight, eps, out, bf16)
            }
            Op::LayerNorm { x, weight, bias, eps, out } => {
                let bf16 = self.may_be_bf16(ops, at, out);
                self.layer_norm(x, (weight, bias), eps, out, bf16)
            }
            Op::Linear { weight, x, out, accumulate } => self.linear(weight, x, out, accumulate),
            Op::RopeWrite { layer, qkv, spec } => self.rope_write(layer, qkv, &spec),
            Op::Attention { layer, qkv, spec, out } => {
                let bf16 = self.may_be_bf16(ops, at, out);
                self.attention(layer, qkv, &spec, out, bf16)
            }
            Op::GatedActivation { gate_up, kind, out } => {
                let bf16 = self.may_be_bf16(ops, at, out);
                self.gated_activation(gate_up, kind, out, bf16)
            }
            Op::Activate { x, kind } => self.activate(x, kind),
        }
    }

    /// The logits of `count` rows of `x`, whose numbers lie at `rows`.
    pub(super) fn logits(
        &self,
        head: &Linear,
        x: ActId,
        rows: DevicePtr,
        count: usize,
    ) -> Result<()> {
        let (out, from, width) = (self.memory.gathered, self.ptr(x), head.cols as u32);
        let bf16 = self.backend.compute() == ComputeType::Bf16;
        let gather = self.backend.kernels.gather_rows.of(bf16);
        // SAFETY: the gathered rows have room for the widest head; `rows` are rows of the step.
        unsafe {
            let params = params![out, from, rows, width];
            self.backend.stream.launch(gather, Grid::new(count, 1, BLOCK), params)?;
        }
        self.multiply(head, out, self.memory.logits, count, false)
    }

    fn may_be_bf16(&mut self, ops: &[Op], at: usize, out: ActId) -> bool {
        let bf16 = self.backend.compute() == ComputeType::Bf16 && feeds_linears_only(ops, at, out);
        self.holds_bf16[out.0 as usize] = bf16;
        bf16
    }

    fn ptr(&self, act: ActId) -> DevicePtr {
        self.backend.activations[act.0 as usize].memory
    }

    fn width(&self, act: ActId) -> usize {
        self.backend.activations[act.0 as usize].width
    }

    fn word(&self, word: usize) -> DevicePtr {
        self.memory.staging.address(word)
    }

    fn embed(&self, table: LinearId, out: ActId) -> Result<()> {
        let (table, ids) = (self.backend.linear_of(table), self.word(self.layout.token_ids()));
        assert_eq!(self.width(out), table.cols, "a table's rows are as wide as the activation");
        self.look_up(self.backend.kernels.embed.of(table.dtype), table, out, ids)
    }

    fn add_position(&self, table: LinearId, x: ActId) -> Result<()> {
        let (table, ids) = (self.backend.linear_of(table), self.word(self.layout.positions()));
        assert_eq!(self.width(x), table.cols, "a table's rows are as wide as the activation");
        self.look_up(self.backend.kernels.add_position.of(table.dtype), table, x, ids)
    }

    fn look_up(
        &self,
        kernel: super::driver::Function,
        table: &Linear,
        out: ActId,
        ids: DevicePtr,
    ) -> Result<()> {
        let (out, weight) = (self.ptr(out), table.weight);
        let (width, table_rows) = (table.cols as u32, table.rows as u32);
        let grid = Grid::new(self.layout.rows, 1, BLOCK);
        // SAFETY: the activation has the layout's rows, the table is `[table_rows, width]`.
        unsafe {
            self.backend.stream.launch(kernel, grid, params![out, weight, ids, width, table_rows])
        }
    }

    fn rms_norm(&self, x: ActId, w: VectorId, eps: f32, out: ActId, bf16: bool) -> Result<()> {
        let kernel = self.backend.kernels.rms_norm.of(bf16);
        let width = self.norm_width(x, w, out);
        let (out, x, weight) = (self.ptr(out), self.ptr(x), self.backend.vector_of(w).memory);
        let grid = Grid::new(self.layout.rows, 1, BLOCK);
        // SAFETY: both activations have the layout's rows of `width`, as has the weight.
        unsafe { self.backend.stream.launch(kernel, grid, params![out, x, weight, width, eps]) }
    }

    fn layer_norm(
        &self,
        x: ActId,
        (w, b): (VectorId, VectorId),
        eps: f32,
        out: ActId,
        bf16: bool,
    ) -> Result<()> {
        let kernel = self.backend.kernels.layer_norm.of(bf16);
        let width = self.norm_width(x, w, out);
        assert_eq!(self.backend.vector_of(b).len, width as usize, "a bias is as wide as the rows");
        let (out, x) = (self.ptr(out), self.ptr(x));
        let (weight, bias) = (self.backend.vector_of(w).memory, self.backend.vector_of(b).memory);
        let grid = Grid::new(self.layout.rows, 1, BLOCK);
        // SAFETY: both activations have the layout's rows of `width`, as have weight and bias.
        unsafe {
            self.backend.stream.launch(kernel, grid, params![out, x, weight, bias, width, eps])
        }
    }

    fn norm_width(&self, x: ActId, weight: VectorId, out: ActId) -> u32 {
        let width = self.width(x);
        let weight = self.backend.vector_of(weight).len;
        assert!(x != out, "an op does not read what it writes");
        assert!(width == self.width(out) && width == weight, "rows of one width");
        width as u32
    }

    fn linear(&self, weight: LinearId, x: ActId, out: ActId, accumulate: bool) -> Result<()> {
        let linear = self.backend.linear_of(weight);
        assert!(x != out, "an op does not read what it writes");
        let widths = (self.width(x), self.width(out));
        assert_eq!(widths, (linear.cols, linear.rows), "widths are the layer's");
        let mut input = self.ptr(x);
        if self.backend.compute() == ComputeType::Bf16 && !self.holds_bf16[x.0 as usize] {
            let (from, to) = (input, self.memory.scratch);
            let count = (self.layout.rows * linear.cols) as u64;
            let grid = Grid::new((count as usize).div_ceil(ELEMENTS), 1, BLOCK);
            let convert = self.backend.kernels.convert_bf16;
            // SAFETY: the scratch has room for the layout's rows of the widest input.
            unsafe { self.backend.stream.launch(convert, grid, params![to, from, count])? };
            input = to;
        }
        self.multiply(linear, input, self.ptr(out), self.layout.rows, accumulate)
    }

    /// `y = x W^T + b`, or `y +=`; `x` has `rows` rows, of bf16 in that precision.
    fn multiply(
        &self,
        linear: &Linear,
        x: DevicePtr,
        y: DevicePtr,
        rows: usize,
        accumulate: bool,
    ) -> Result<()> {
        let (weight, bias) = (linear.weight, linear.bias);
        let (m, n, k) = (rows as u32, linear.rows as u32, linear.cols as u32);
        if let Some(gemm) = &self.backend.gemm {
            let size = product_size(linear, rows);
            // SAFETY: inputs and outputs have room for padded rows; the weight is `[n, k]`.
            unsafe {
                gemm.multiply(&self.backend.stream, &Product { x, weight, y, size, accumulate })?;
            }
            if bias == 0 {
                return Ok(());
            }
            let grid = Grid::new(linear.rows.div_ceil(ELEMENTS), rows, BLOCK);
            let add_bias = self.backend.kernels.add_bias;
            // SAFETY: `y` is `[rows, n]`, the bias `[n]`.
            return unsafe { self.backend.stream.launch(add_bias, grid, params![y, bias, n]) };
        }
        let kernel = self.backend.kernels.gemm.of(linear.dtype);
        let grid = Grid::new(linear.rows.div_ceil(TILE), rows.div_ceil(TILE), BLOCK);
        let accumulate = u32::from(accumulate);
        // SAFETY: `y` is `[rows, n]`, `x` `[rows, k]`, the weight `[n, k]`, the bias `[n]` or none.
        unsafe {
            let params = params![y, x, weight, bias, m, n, k, accumulate];
            self.backend.stream.launch(kernel, grid, params)
        }
    }

    fn rope_write(&self, layer: usize, qkv: ActId, spec: &RopeWrite) -> Result<()> {
        let (kv, heads) = (self.backend.kv_pool(), spec.heads);
        assert_eq!(self.width(qkv), heads.qkv_width(), "a row is queries, keys and values");
        let place = kv.layers[layer];
        let norm = |vector: VectorId| {
            let vector = self.backend.vector_of(vector);
            assert_eq!(vector.len, heads.head_dim, "a head's norm is as wide as the head");
            vector.memory
        };
        let (q_norm, k_norm, eps) =
            spec.qk_norm.map_or((0, 0, 0.0), |(q, k, eps)| (norm(q), norm(k), eps));
        let rope = spec.rope.map(|rope| self.backend.ropes[rope.0 as usize]);
        let args = RopeArgs {
            qkv: self.ptr(qkv),
            kv: kv.memory,
            positions: self.word(self.layout.positions()),
            slots: self.word(self.layout.slots(place.group)),
            q_norm,
            k_norm,
            rope: rope.map_or(0, |rope| rope.memory),
            block_stride: kv.block_elements as u64,
            k_offset: place.k_offset as u64,
            v_offset: place.v_offset as u64,
            heads: heads.num_heads as u32,
            kv_heads: heads.num_kv_heads as u32,
            head_dim: heads.head_dim as u32,
            rotary_dim: rope.map_or(0, |rope| rope.rotary_dim as u32),
            block_size: kv.block_size as u32,
            eps,
        };
        let heads = heads.num_heads + 2 * heads.num_kv_heads;
        let grid = Grid::new(heads.div_ceil(4), self.layout.rows, 128);
        let kernel = self.backend.kernels.rope_write_kv;
        // SAFETY: `qkv` has the layout's rows; slots are within the pool or say that nothing is
        // written; positions are within the table (`begin_step` checks both).
        unsafe { self.backend.stream.launch(kernel, grid, params![args]) }
    }

    fn attention(
        &self,
        layer: usize,
        qkv: ActId,
        spec: &Attention,
        out: ActId,
        bf16: bool,
    ) -> Result<()> {
        let (kv, heads) = (self.backend.kv_pool(), spec.heads);
        let widths = (self.width(qkv), self.width(out));
        assert_eq!(widths, (heads.qkv_width(), heads.q_width()), "widths are the heads'");
        let place = kv.layers[layer];
        let args = AttentionArgs {
            out: self.ptr(out),
            qkv: self.ptr(qkv),
            kv: kv.memory,
            block_table: self.word(self.layout.block_table(place.group)),
            seqs: self.word(self.layout.seqs()),
            row_seq: self.word(self.layout.row_seq()),
            sinks: 0,
            work: 0,
            num_work: 0,
            partial: 0,
            block_stride: kv.block_elements as u64,
            k_offset: place.k_offset as u64,
            v_offset: place.v_offset as u64,
            heads: heads.num_heads as u32,
            kv_heads: heads.num_kv_heads as u32,
            head_dim: heads.head_dim as u32,
            block_size: kv.block_size as u32,
            qkv_width: heads.qkv_width() as u32,
            window: spec.sliding_window.map_or(0, |w| u32::try_from(w).unwrap_or(u32::MAX)),
            scale: spec.scale,
            softcap: 0.0,
        };
        let shared = 16 * (heads.head_dim as u32 + 2);
        let grid = Grid { shared, ..Grid::new(heads.num_heads, self.layout.rows, 128) };
        let kernel = self.backend.kernels.paged_attention.of(bf16);
        // SAFETY: activations have the layout's rows; block tables name blocks of the pool.
        unsafe { self.backend.stream.launch(kernel, grid, params![args]) }
    }

    fn gated_activation(
        &self,
        gate_up: ActId,
        kind: Activation,
        out: ActId,
        bf16: bool,
    ) -> Result<()> {
        let width = self.width(out);
        assert_eq!(self.width(gate_up), 2 * width, "a row is gate, then up");
        let grid = Grid::new(width.div_ceil(ELEMENTS), self.layout.rows, BLOCK);
        let kernel = self.backend.kernels.gated_activation.of(bf16);
        let (out, gate_up) = (self.ptr(out), self.ptr(gate_up));
        let (width, kind) = (width as u32, number_of(kind));
        // SAFETY: `gate_up` has the layout's rows of two widths, `out` of one.
        unsafe { self.backend.stream.launch(kernel, grid, params![out, gate_up, width, kind]) }
    }

    fn activate(&self, x: ActId, kind: Activation) -> Result<()> {
        let count = (self.layout.rows * self.width(x)) as u64;
        let grid = Grid::new((count as usize).div_ceil(ELEMENTS), 1, BLOCK);
        let kernel = self.backend.kernels.activate.of(false);
        let (x, kind) = (self.ptr(x), number_of(kind));
        // SAFETY: `x` has the layout's rows, and f32 may be changed in place.
        unsafe { self.backend.stream.launch(kernel, grid, params![x, x, count, kind]) }
    }
}

/// The size that a product of `rows` is computed with.
pub(super) fn product_size(linear: &Linear, rows: usize) -> Size {
    Size { rows: padded_rows(rows), n: linear.rows, k: linear.cols }
}

/// The kernels' number of an activation function.
fn number_of(kind: Activation) -> u32 {
    match kind {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
        Activation::Relu => 3,
    }
}
