//! Row sources over a checkpoint's tensors.

use std::cell::RefCell;
use std::ops::Range;

use crate::backend::{DType, RowSource};
use crate::error::Result;

use super::checkpoint::Tensor;
use super::json::format_error;

/// A tensor `[rows, cols]` as it lies in the file; a vector is one row.
pub struct TensorRows {
    tensor: Tensor,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl TensorRows {
    /// Rows of `tensor`, which has one or two dimensions. Fails with `MODEL_FORMAT` when its
    /// element type is none that backends take.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let (rows, cols) = match tensor.shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => panic!("the caller compared the shape with one of one or two dimensions"),
        };
        Ok(Self { dtype: float_dtype(tensor)?, tensor: tensor.clone(), rows, cols })
    }
}

impl RowSource for TensorRows {
    fn name(&self) -> &str {
        &self.tensor.name
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        check_request(self, &rows, out);
        let first = rows.start * self.cols;
        let at = self.tensor.offset + (first * self.dtype.size()) as u64;
        read(&self.tensor, at, out)?;
        check_finite(&self.tensor, self.dtype, out, first)
    }
}

/// A tensor `[in, out]` served as rows `[out, in]`.
///
/// A stripe of output columns is read and turned at once, so that a backend that asks for a few
/// rows at a time does not cause a tiny read for each of them in each file row; with rows asked for
/// in order each element is read once.
pub struct TransposedRows {
    tensor: Tensor,
    dtype: DType,
    rows: usize,
    cols: usize,
    /// About the most bytes of a stripe.
    stripe_bytes: usize,
    stripe: RefCell<Stripe>,
}

/// Rows that were turned already.
#[derive(Default)]
struct Stripe {
    rows: Range<usize>,
    /// `[rows.len(), cols]`.
    data: Vec<u8>,
}

/// Value of `stripe_bytes`.
const STRIPE_BYTES: usize = 16 << 20;

impl TransposedRows {
    /// Columns of `tensor`, which has two dimensions, as rows. Fails as `TensorRows::new` does.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let [cols, rows] = tensor.shape[..] else {
            panic!("the caller compared the shape with one of two dimensions");
        };
        Ok(Self {
            dtype: float_dtype(tensor)?,
            tensor: tensor.clone(),
            rows,
            cols,
            stripe_bytes: STRIPE_BYTES,
            stripe: RefCell::default(),
        })
    }

    fn load_stripe(&self, rows: Range<usize>, stripe: &mut Stripe) -> Result<()> {
        let size = self.dtype.size();
        let (width, row_bytes) = (rows.len(), self.cols * size);
        // Nothing is valid should a read fail half way.
        stripe.rows = 0..0;
        if stripe.data.len() < width * row_bytes {
            stripe.data.try_reserve_exact(width * row_bytes - stripe.data.len())?;
            stripe.data.resize(width * row_bytes, 0);
        }
        let mut lines = Vec::new();
        lines.try_reserve_exact(LINES * width * size)?;
        lines.resize(LINES * width * size, 0);
        for col in (0..self.cols).step_by(LINES) {
            let count = LINES.min(self.cols - col);
            for (i, line) in lines.chunks_exact_mut(width * size).take(count).enumerate() {
                let first = (col + i) * self.rows + rows.start;
                read(&self.tensor, self.tensor.offset + (first * size) as u64, line)?;
                check_finite(&self.tensor, self.dtype, line, first)?;
            }
            let turned = &mut stripe.data[col * size..];
            match size {
                2 => turn::<2>(&lines, width, count, turned, row_bytes),
                _ => turn::<4>(&lines, width, count, turned, row_bytes),
            }
        }
        stripe.rows = rows;
        Ok(())
    }
}

impl RowSource for TransposedRows {
    fn name(&self) -> &str {
        &self.tensor.name
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        check_request(self, &rows, out);
        let row_bytes = self.cols * self.dtype.size();
        let mut stripe = self.stripe.borrow_mut();
        if rows.is_empty() {
            return Ok(());
        }
        if rows.start < stripe.rows.start || rows.end > stripe.rows.end {
            let wanted = (self.stripe_bytes / row_bytes.max(1)).max(rows.len());
            let end = (rows.start + wanted).min(self.rows);
            self.load_stripe(rows.start..end, &mut stripe)?;
        }
        let from = (rows.start - stripe.rows.start) * row_bytes;
        out.copy_from_slice(&stripe.data[from..from + out.len()]);
        Ok(())
    }
}

/// File rows that are turned at once: what they hold of an output row fills a cache line or half.
const LINES: usize = 16;

/// Writes `lines`, `[count, width]` elements of `N` bytes, as `[width, count]` with `row_bytes`
/// from row to row.
fn turn<const N: usize>(
    lines: &[u8],
    width: usize,
    count: usize,
    out: &mut [u8],
    row_bytes: usize,
) {
    let lines = lines.as_chunks::<N>().0;
    for row in 0..width {
        let out = &mut out[row * row_bytes..][..count * N];
        for (i, element) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            *element = lines[i * width + row];
        }
    }
}

/// Reads a whole vector as f32.
pub(super) fn read_vector(tensor: &Tensor) -> Result<Vec<f32>> {
    let source = TensorRows::new(tensor)?;
    let mut raw = Vec::new();
    raw.try_reserve_exact(source.cols * source.dtype.size())?;
    raw.resize(source.cols * source.dtype.size(), 0);
    source.read_rows(0..1, &mut raw)?;
    let mut values = Vec::new();
    values.try_reserve_exact(source.cols)?;
    values.resize(source.cols, 0.0);
    source.dtype.widen(&raw, &mut values);
    Ok(values)
}

/// Asserts what every caller of `read_rows` must hold to.
pub(super) fn check_request(source: &dyn RowSource, rows: &Range<usize>, out: &[u8]) {
    assert!(rows.start <= rows.end && rows.end <= source.rows(), "rows lie in the tensor");
    assert_eq!(out.len(), rows.len() * source.cols() * source.dtype().size(), "out fits rows");
}

fn float_dtype(tensor: &Tensor) -> Result<DType> {
    tensor.element.dtype().ok_or_else(|| {
        let message = format!(
            "tensor {} is of type {}; weights can be F32, F16 or BF16",
            tensor.name,
            tensor.element.name()
        );
        format_error(tensor.file.path(), message)
            .with("tensor", tensor.name.as_str())
            .with("value", tensor.element.name())
    })
}

fn read(tensor: &Tensor, offset: u64, out: &mut [u8]) -> Result<()> {
    tensor.file.read_at(offset, out).map_err(|e| e.context(format_args!("tensor {}", tensor.name)))
}

/// Refuses NaN and infinity: elements whose exponent bits are all set. `first` is the index of
/// `raw`'s first element in the tensor.
fn check_finite(tensor: &Tensor, dtype: DType, raw: &[u8], first: usize) -> Result<()> {
    let bad = match dtype {
        DType::F32 => find_u32(raw, 0x7f80_0000),
        DType::F16 => find_u16(raw, 0x7c00),
        DType::Bf16 => find_u16(raw, 0x7f80),
    };
    let Some(bad) = bad else { return Ok(()) };
    let index = first + bad;
    let place = match tensor.shape[..] {
        [_, cols] => format!("[{}, {}]", index / cols, index % cols),
        _ => format!("[{index}]"),
    };
    let size = dtype.size();
    let mut value = [0.0];
    dtype.widen(&raw[bad * size..(bad + 1) * size], &mut value);
    let message = format!("tensor {} has {} at {place}", tensor.name, value[0]);
    Err(format_error(tensor.file.path(), message)
        .with("tensor", tensor.name.as_str())
        .with("index", index))
}

/// Index of the first element that has all bits of `exponent`. The loop over a chunk has no exit,
/// so that it is vectorised.
fn find_u32(raw: &[u8], exponent: u32) -> Option<usize> {
    let bad = |b: &[u8; 4]| u32::from_le_bytes(*b) & exponent == exponent;
    let elements = raw.as_chunks::<4>().0;
    let chunk = elements.chunks(CHUNK).position(|c| c.iter().fold(false, |any, b| any | bad(b)))?;
    elements.iter().skip(chunk * CHUNK).position(bad).map(|i| chunk * CHUNK + i)
}

/// `find_u32` for elements of two bytes.
fn find_u16(raw: &[u8], exponent: u16) -> Option<usize> {
    let bad = |b: &[u8; 2]| u16::from_le_bytes(*b) & exponent == exponent;
    let elements = raw.as_chunks::<2>().0;
    let chunk = elements.chunks(CHUNK).position(|c| c.iter().fold(false, |any, b| any | bad(b)))?;
    elements.iter().skip(chunk * CHUNK).position(bad).map(|i| chunk * CHUNK + i)
}

/// Elements that are checked without an exit.
const CHUNK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::{Path, PathBuf};

    use crate::weights::Checkpoint;

    /// GPT-2's first feed-forward weight, `[48, 192]` in the file.
    fn tensor() -> Tensor {
        let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gpt2");
        Checkpoint::open(&dir).unwrap().get("transformer.h.0.mlp.c_fc.weight").unwrap().clone()
    }

    fn rows_of(source: &dyn RowSource, rows: Range<usize>) -> Vec<f32> {
        let mut raw = vec![0; rows.len() * source.cols() * 4];
        source.read_rows(rows, &mut raw).unwrap();
        let mut values = vec![0.0; raw.len() / 4];
        DType::F32.widen(&raw, &mut values);
        values
    }

    #[test]
    fn transposed_rows_are_columns_in_any_pieces() {
        let plain = rows_of(&TensorRows::new(&tensor()).unwrap(), 0..48);
        for stripe_bytes in [1, 48 * 4 * 10, STRIPE_BYTES] {
            let source = TransposedRows { stripe_bytes, ..TransposedRows::new(&tensor()).unwrap() };
            assert_eq!((source.rows(), source.cols()), (192, 48));
            for rows in [0..7, 7..20, 20..20, 15..40, 0..192, 191..192, 3..4] {
                let turned = rows_of(&source, rows.clone());
                for (i, row) in rows.enumerate() {
                    for col in 0..48 {
                        assert_eq!(turned[i * 48 + col], plain[col * 192 + row]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_bad_element_is_found_in_any_chunk() {
        for at in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 77] {
            let mut raw = vec![0x11; 4 * (2 * CHUNK + 100)];
            raw[at * 4..at * 4 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            assert_eq!(find_u32(&raw, 0x7f80_0000), Some(at));
            let mut raw = vec![0x11; 2 * (2 * CHUNK + 100)];
            assert_eq!(find_u16(&raw, 0x7f80), None);
            raw[at * 2..at * 2 + 2].copy_from_slice(&half::bf16::INFINITY.to_le_bytes());
            assert_eq!(find_u16(&raw, 0x7f80), Some(at));
        }
    }
}
