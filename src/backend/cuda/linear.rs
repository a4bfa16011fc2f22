//! Linear layers and tables as they lie on the device: `[rows, cols]`, row-major.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::driver::{Context, DevicePtr, Stream};
use super::memory::{Arena, too_large};
use super::rows::for_each;
use super::upload::{HALF, Uploader};
use crate::backend::{ComputeType, DType, LinearPart, LinearSpec, RowSource};
use crate::error::{Error, ErrorKind, Result};

/// A linear layer or table.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    /// `[rows, cols]` of `dtype`.
    pub(super) weight: DevicePtr,
    /// `[rows]` of f32; 0: none.
    pub(super) bias: DevicePtr,
    /// Output features.
    pub(super) rows: usize,
    /// Input features.
    pub(super) cols: usize,
    pub(super) dtype: DType,
}

/// What packing needs.
pub(super) struct Packer<'a> {
    pub(super) context: &'a Context,
    pub(super) arena: &'a mut Arena,
    pub(super) uploader: &'a mut Uploader,
    pub(super) stream: &'a Stream,
    pub(super) compute: ComputeType,
}

impl Packer<'_> {
    /// Stacks the parts along the rows.
    pub(super) fn pack(&mut self, spec: LinearSpec) -> Result<Linear> {
        let first = &spec.parts[0].weight;
        let (name, cols) = (first.name().to_owned(), first.cols());
        let rows: usize = spec.parts.iter().map(|p| p.weight.rows()).sum();
        let dtype = self.dtype_of(&spec.parts);
        if cols * size_of::<f32>() > HALF {
            let limit = HALF / size_of::<f32>();
            let message = format!("{name}: rows of {cols} columns; the CUDA backend has {limit}");
            let error = Error::new(ErrorKind::Unsupported, message);
            return Err(error.with("limit", limit).with("value", cols));
        }
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        let bytes = bytes.ok_or_else(|| too_large(&name))?;
        let weight = self.arena.take(self.context, bytes, &name)?;
        let mut at = weight;
        for part in &spec.parts {
            assert_eq!(part.weight.cols(), cols, "parts have one number of columns");
            self.upload_part(part, dtype, at)?;
            at += (part.weight.rows() * cols * dtype.size()) as u64;
        }
        let bias = self.bias(&spec.parts, rows, &name)?;
        Ok(Linear { weight, bias, rows, cols, dtype })
    }

    /// Keeps f32 values.
    pub(super) fn floats(&mut self, values: &[f32], what: &str) -> Result<DevicePtr> {
        let ptr = self.arena.take(self.context, size_of_val(values), what)?;
        // SAFETY: `ptr` was just taken for as many floats.
        unsafe { self.uploader.floats(self.stream, ptr, values)? };
        Ok(ptr)
    }

    /// bf16 in that precision; else the checkpoint's type, f32 where parts differ.
    fn dtype_of(&self, parts: &[LinearPart]) -> DType {
        let first = parts[0].weight.dtype();
        match self.compute {
            ComputeType::Bf16 => DType::Bf16,
            ComputeType::F32 if parts.iter().all(|p| p.weight.dtype() == first) => first,
            ComputeType::F32 => DType::F32,
        }
    }

    /// Uploads as many rows at a time as go into half of the staging memory, where several threads
    /// write them.
    fn upload_part(&mut self, part: &LinearPart, dtype: DType, to: DevicePtr) -> Result<()> {
        let source = part.weight.as_ref();
        let cols = source.cols();
        let step = (HALF / (cols * size_of::<f32>())).max(1);
        for start in (0..source.rows()).step_by(step) {
            let rows = start..(start + step).min(source.rows());
            let bytes = rows.len() * cols * dtype.size();
            let at = to + (start * cols * dtype.size()) as u64;
            let fill = |out: &mut [u8]| read_rows(source, rows, dtype, out);
            // SAFETY: the rows lie within what `pack` took for the layer.
            unsafe { self.uploader.upload(self.stream, at, bytes, fill)? };
        }
        Ok(())
    }

    fn bias(&mut self, parts: &[LinearPart], rows: usize, name: &str) -> Result<DevicePtr> {
        if parts.iter().all(|part| part.bias.is_none()) {
            return Ok(0);
        }
        let mut bias = Vec::new();
        bias.try_reserve_exact(rows)?;
        for part in parts {
            match &part.bias {
                Some(values) => bias.extend_from_slice(values),
                None => bias.resize(bias.len() + part.weight.rows(), 0.0),
            }
        }
        assert_eq!(bias.len(), rows, "a bias has an entry a row");
        self.floats(&bias, name)
    }
}

/// Reads rows as `dtype`, on several threads; of errors, the one of the first rows.
fn read_rows(
    source: &dyn RowSource,
    rows: Range<usize>,
    dtype: DType,
    out: &mut [u8],
) -> Result<()> {
    let row_bytes = source.cols() * dtype.size();
    let piece = (source.piece_bytes() / row_bytes.max(1)).max(1);
    let fault = Mutex::new(None::<(usize, Error)>);
    for_each(out, piece * row_bytes, &|i, out| {
        let first = rows.start + i * piece;
        if let Err(e) = read_piece(source, first..(first + piece).min(rows.end), dtype, out) {
            let mut fault = fault.lock().unwrap_or_else(PoisonError::into_inner);
            if fault.as_ref().is_none_or(|(other, _)| i < *other) {
                *fault = Some((i, e));
            }
        }
    });
    let fault = fault.into_inner().unwrap_or_else(PoisonError::into_inner);
    fault.map_or(Ok(()), |(_, e)| Err(e))
}

fn read_piece(
    source: &dyn RowSource,
    rows: Range<usize>,
    dtype: DType,
    out: &mut [u8],
) -> Result<()> {
    let given = source.dtype();
    if given == dtype {
        return source.read_rows(rows, out);
    }
    let len = rows.len() * source.cols();
    let (mut raw, mut wide) = (Vec::new(), Vec::new());
    raw.try_reserve_exact(len * given.size())?;
    raw.resize(len * given.size(), 0);
    wide.try_reserve_exact(len)?;
    wide.resize(len, 0.0);
    source.read_rows(rows, &mut raw)?;
    given.widen(&raw, &mut wide);
    narrow(&wide, dtype, out);
    Ok(())
}

/// Rounds f32 to `dtype`, f32 or bf16.
fn narrow(values: &[f32], dtype: DType, out: &mut [u8]) {
    match dtype {
        DType::F32 => {
            for (o, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *o = x.to_le_bytes();
            }
        }
        DType::Bf16 => {
            for (o, &x) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *o = half::bf16::from_f32(x).to_le_bytes();
            }
        }
        DType::F16 => unreachable!("no layer is narrowed to f16"),
    }
}
