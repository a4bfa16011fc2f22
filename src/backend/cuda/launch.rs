//! From ops to launches: addresses, sizes and grids as kernels/README.md has them.

use super::driver::{DevicePtr, Grid};
use super::linear::Linear;
use super::op::{Op, feeds_linears_only};
use super::step::Layout;
use super::{CudaBackend, StepMemory};
use crate::backend::{ActId, Activation, ComputeType, LinearId, VectorId};
use crate::error::Result;

/// Threads of a block, for most kernels.
pub(super) const BLOCK: u32 = 256;
/// Elements that a block of the element-wise kernels takes.
pub(super) const ELEMENTS: usize = 1024;

/// Pointers to a kernel's parameters. Only of variables: they must outlive the launch.
macro_rules! params {
    ($($x:ident),* $(,)?) => {
        &mut [$(std::ptr::from_ref(&$x).cast_mut().cast::<std::ffi::c_void>()),*]
    };
}
pub(super) use params;

/// Launches a step's ops.
pub(super) struct Launcher<'a> {
    pub(super) backend: &'a CudaBackend,
    pub(super) memory: &'a StepMemory,
    pub(super) layout: Layout,
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

    pub(super) fn ptr(&self, act: ActId) -> DevicePtr {
        self.backend.activations[act.0 as usize].memory
    }

    pub(super) fn width(&self, act: ActId) -> usize {
        self.backend.activations[act.0 as usize].width
    }

    pub(super) fn word(&self, word: usize) -> DevicePtr {
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

/// The kernels' number of an activation function.
fn number_of(kind: Activation) -> u32 {
    match kind {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
        Activation::Relu => 3,
    }
}
