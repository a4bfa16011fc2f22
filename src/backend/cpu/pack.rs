//! Weights, packed once at load into panels of sixteen outputs that all paths read.
//!
//! ```text
//!  bf16 compute   [N/16][K/2][16][2] bf16    a row of sixteen pairs is one vdpbf16ps operand, and
//!                                            sixteen such rows are one AMX B tile
//!  f32 compute    [N/16][K][16] f32|f16|bf16 widened exactly when used
//!  quantized      see `linear::quantized`
//! ```
//! N is padded to whole panels, K (of pairs) to whole AMX tiles of 32, with zeros. Panels of gate
//! and of up take turns, so that one tile has both sides of a gated activation.
#![allow(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

use std::ops::Range;

use super::fill::{Panels, fill};
use super::linear::InputForm;
use super::linear::quantized::{Format, Int4, Int6, Int8, WHOLE, row_bytes};
use super::memory::Buffer;
use super::simd::bf16_value;
use super::thread_pool::ThreadPool;
use super::{linear, quantize};
use crate::backend::{ComputeType, DType, LinearPart, LinearRole, LinearSpec};
use crate::config::Quantization;
use crate::error::{Error, ErrorKind, Result};

/// Layout and element type of packed weights; the number is the index of its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// `[N/16][K/2][16][2]`, bf16 compute.
    Bf16Pairs = 0,
    /// `[N/16][K][16]`, f32 compute.
    F32 = 1,
    /// `[N/16][K][16]`, f32 compute.
    F16 = 2,
    /// `[N/16][K][16]`, f32 compute.
    Bf16 = 3,
    /// `linear::quantized::Int8`.
    Int8 = 4,
    /// `linear::quantized::Int4`.
    Int4 = 5,
    /// `linear::quantized::Int6`.
    Int6 = 6,
}

/// How a backend keeps its weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Precision {
    /// Of layers that are not quantized.
    pub(crate) compute: ComputeType,
    /// Of those that are, if any.
    pub(crate) quantization: Option<Quantization>,
}

/// A packed linear layer.
pub(crate) struct Packed {
    /// Layout.
    pub(crate) storage: Storage,
    /// Outputs.
    pub(crate) n: usize,
    /// Inputs.
    pub(crate) k: usize,
    /// Inputs, padded as the layout wants.
    pub(crate) k_padded: usize,
    /// Gate and up, each of half the outputs, panel by panel in turn.
    pub(super) gated: bool,
    data: Buffer<u8>,
    bias: Option<Buffer<f32>>,
    /// Quantized outputs' scales, padded to whole panels; else empty.
    scales: Buffer<f32>,
}

impl Storage {
    /// Bytes of a panel of `k` inputs.
    fn panel_bytes(self, k: usize) -> usize {
        let k = self.padded(k);
        let bytes = |each: usize| k.saturating_mul(16 * each);
        match self {
            Self::F32 => bytes(4),
            Self::Bf16Pairs | Self::F16 | Self::Bf16 => bytes(2),
            Self::Int8 => bytes(1),
            Self::Int4 => k / WHOLE * Int4::TOGETHER_BYTES,
            Self::Int6 => k / WHOLE * Int6::TOGETHER_BYTES,
        }
    }

    /// K, padded as the layout wants.
    fn padded(self, k: usize) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => k,
            Self::Bf16Pairs => k.next_multiple_of(32),
            Self::Int8 | Self::Int4 | Self::Int6 => k.next_multiple_of(WHOLE),
        }
    }

    /// Whether its outputs have scales.
    fn quantized(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::Int6)
    }

    /// K elements that one step of a kernel takes.
    fn step(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Bf16Pairs => 2,
            Self::Int8 => Int8::GROUP,
            Self::Int4 => Int4::GROUP,
            Self::Int6 => Int6::GROUP,
        }
    }

    /// The form of inputs that its kernel reads, on a path with bf16 products or without.
    pub(crate) fn input_form(self, bf16_inputs: bool) -> InputForm {
        match self {
            Self::Bf16Pairs if bf16_inputs => InputForm::Bf16,
            Self::Bf16Pairs => InputForm::RoundedF32,
            Self::F32 | Self::F16 | Self::Bf16 => InputForm::F32,
            Self::Int8 => InputForm::Int8 { group: Int8::GROUP, zero: Int8::ZERO },
            Self::Int4 => InputForm::Int8 { group: Int4::GROUP, zero: Int4::ZERO },
            Self::Int6 => InputForm::Int8 { group: Int6::GROUP, zero: Int6::ZERO },
        }
    }
}

/// Bytes of workspace that one row of `k` inputs needs at most, in any form.
pub(crate) fn input_row_bytes(k: usize) -> usize {
    let plain = k.next_multiple_of(32) * 4;
    let least_group = Int8::GROUP.min(Int4::GROUP).min(Int6::GROUP);
    plain.max(row_bytes(k.next_multiple_of(WHOLE), least_group))
}

impl Packed {
    /// Reads, converts and packs a layer's parts on all threads.
    pub(crate) fn new(
        spec: &LinearSpec,
        precision: Precision,
        pool: &mut ThreadPool,
    ) -> Result<Self> {
        let first = spec.parts.first().expect("a linear layer has at least one part");
        let (name, k) = (first.weight.name(), first.weight.cols());
        let n = spec.parts.iter().map(|p| p.weight.rows()).sum::<usize>();
        if let Some(part) = spec.parts.iter().find(|p| p.weight.cols() != k) {
            let (other, cols) = (part.weight.name(), part.weight.cols());
            let message = format!("{other} has {cols} columns, but {name} beside it has {k}");
            return Err(Error::new(ErrorKind::ModelFormat, message));
        }
        let storage = storage_of(spec, precision);
        let k_padded = storage.padded(k);
        let gated = spec.role == LinearRole::GateUp;
        if let (true, [gate, up]) = (gated, &spec.parts[..])
            && gate.weight.rows() != up.weight.rows()
        {
            let (name, other) = (gate.weight.name(), up.weight.name());
            let (rows, others) = (gate.weight.rows(), up.weight.rows());
            let message = format!("{name} has {rows} outputs, but {other} beside it has {others}");
            return Err(Error::new(ErrorKind::ModelFormat, message));
        }
        let mut packed = Self {
            storage,
            n,
            k,
            k_padded,
            gated,
            data: Buffer::zeroed(0, name)?,
            bias: None,
            scales: Buffer::zeroed(0, name)?,
        };
        let bytes = storage.panel_bytes(k).saturating_mul(packed.panels());
        packed.data = Buffer::zeroed(bytes, name)?;
        packed.bias = packed.pack_bias(&spec.parts)?;
        if storage.quantized() {
            packed.scales = Buffer::zeroed(16 * packed.panels(), "scales of weights")?;
        }
        fill(&packed, &spec.parts, pool)?;
        Ok(packed)
    }

    /// Where to pack to: all panels, or those of one side of gated ones.
    pub(super) fn target(&self, side: Option<usize>) -> Panels {
        let at = side.unwrap_or(0);
        Panels {
            storage: self.storage,
            k: self.k,
            data: self.data.as_ptr().wrapping_add(at * self.panel_bytes()),
            scales: self.scales.as_ptr().wrapping_add(at * 16),
            apart: if side.is_some() { 2 } else { 1 },
            bytes: self.panel_bytes(),
        }
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.storage.panel_bytes(self.k)
    }

    /// Panels of sixteen outputs.
    fn panels(&self) -> usize {
        if self.gated { 2 * (self.n / 2).div_ceil(16) } else { self.n.div_ceil(16) }
    }

    /// Where output `row` stands among the panels' outputs.
    #[inline(always)]
    fn place(&self, row: usize) -> usize {
        if !self.gated {
            return row;
        }
        let half = self.n / 2;
        let (side, row) = (row / half, row % half);
        (2 * (row / 16) + side) * 16 + row % 16
    }

    /// The arguments of a kernel over this layer; the caller adds inputs and outputs.
    pub(crate) fn args(&self) -> linear::LinearArgs {
        linear::LinearArgs {
            x: std::ptr::null(),
            ldx: 0,
            rows: 0,
            weights: self.data.as_ptr(),
            panel_bytes: self.panel_bytes(),
            steps: self.k_padded / self.storage.step(),
            scales: if self.scales.len() == 0 { std::ptr::null() } else { self.scales.as_ptr() },
            n: self.n,
            panels: self.panels(),
            gated: self.gated,
            gate: None,
            form: InputForm::F32,
            bias: self.bias.as_ref().map_or(std::ptr::null(), |b| b.as_ptr().cast_const()),
            out: std::ptr::null_mut(),
            ldo: 0,
            add: false,
        }
    }

    /// Row `row` of the weights, widened, to (or added to) `out`, `[k]`.
    pub(crate) fn gather(&self, row: usize, out: &mut [f32], add: bool) {
        assert!(row < self.n, "row {row} of a table of {} rows", self.n);
        assert_eq!(out.len(), self.k, "a row of a table of {} columns", self.k);
        let scale = match self.storage {
            // SAFETY: a scale for each row, and nobody writes to them after packing.
            storage if storage.quantized() => unsafe { *self.scales.as_ptr().add(self.place(row)) },
            _ => 1.0,
        };
        let place = self.place(row);
        let (panel, lane) = (place / 16 * self.panel_bytes(), place % 16);
        for (i, value) in out.iter_mut().enumerate() {
            let at = self.index(row, i);
            // SAFETY: `index` stays within the buffer for row < n and i < k; after packing nobody
            // writes to it.
            let weight = unsafe {
                let data = self.data.as_ptr().cast_const();
                match self.storage {
                    Storage::F32 => *data.cast::<f32>().add(at),
                    Storage::F16 => half::f16::from_bits(*data.cast::<u16>().add(at)).to_f32(),
                    Storage::Bf16 | Storage::Bf16Pairs => bf16_value(*data.cast::<u16>().add(at)),
                    Storage::Int8 => scale * quantize::read_int8(data.add(panel), lane, i),
                    Storage::Int6 => scale * quantize::read_int6(data.add(panel), lane, i),
                    Storage::Int4 => unreachable!("tables have 6 bits at least"),
                }
            };
            *value = if add { *value + weight } else { weight };
        }
    }

    /// Where element (row, column) lies.
    #[inline(always)]
    fn index(&self, row: usize, column: usize) -> usize {
        let place = self.place(row);
        let (panel, lane) = (place / 16 * 16 * self.k_padded, place % 16);
        match self.storage {
            Storage::Bf16Pairs => panel + column / 2 * 32 + lane * 2 + column % 2,
            _ => panel + column * 16 + lane,
        }
    }

    /// The parts' biases, zero where a part has none, one for each output of the panels; none when
    /// no part has one.
    fn pack_bias(&self, parts: &[LinearPart]) -> Result<Option<Buffer<f32>>> {
        if parts.iter().all(|p| p.bias.is_none()) {
            return Ok(None);
        }
        let mut bias = Buffer::zeroed(16 * self.panels(), "bias")?;
        let mut row = 0;
        for part in parts {
            let rows = part.weight.rows();
            let values = part.bias.as_deref().unwrap_or_default();
            if part.bias.is_some() && values.len() != rows {
                let (name, len) = (part.weight.name(), values.len());
                let message = format!("{name} has {rows} outputs, but its bias has {len}");
                return Err(Error::new(ErrorKind::ModelFormat, message));
            }
            for (i, value) in values.iter().enumerate() {
                bias.as_mut_slice()[self.place(row + i)] = *value;
            }
            row += rows;
        }
        Ok(Some(bias))
    }
}

fn storage_of(spec: &LinearSpec, precision: Precision) -> Storage {
    match (precision.quantization, spec.role) {
        (None, _) | (_, LinearRole::Positions) => {}
        (Some(Quantization::Int4), LinearRole::Hidden | LinearRole::GateUp) => {
            return Storage::Int4;
        }
        (Some(Quantization::Int4), LinearRole::Vocabulary) => return Storage::Int6,
        (Some(Quantization::Int8), _) => return Storage::Int8,
    }
    if precision.compute == ComputeType::Bf16 {
        return Storage::Bf16Pairs;
    }
    let parts = &spec.parts;
    let dtype = parts[0].weight.dtype();
    if parts.iter().any(|p| p.weight.dtype() != dtype) {
        return Storage::F32;
    }
    match dtype {
        DType::F32 => Storage::F32,
        DType::F16 => Storage::F16,
        DType::Bf16 => Storage::Bf16,
    }
}

/// The rows that a gather, embed or position table is asked for, thread by thread.
pub(crate) fn gather_rows(
    table: &Packed,
    ids: impl Fn(usize) -> usize,
    out: *mut f32,
    rows: Range<usize>,
    add: bool,
) {
    for row in rows {
        // SAFETY: `out` is `[tokens, k]`, the rows are below tokens, each has one thread.
        let row_out = unsafe { std::slice::from_raw_parts_mut(out.add(row * table.k), table.k) };
        table.gather(ids(row), row_out, add);
    }
}
