//! Row sources over a checkpoint's tensors.

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

/// A tensor `[in, out]` served as rows `[out, in]`: what is asked for is read as a stripe of
/// columns and turned.
pub struct TransposedRows {
    tensor: Tensor,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl TransposedRows {
    /// Columns of `tensor`, which has two dimensions, as rows. Fails as `TensorRows::new` does.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let [cols, rows] = tensor.shape[..] else {
            panic!("the caller compared the shape with one of two dimensions");
        };
        Ok(Self { dtype: float_dtype(tensor)?, tensor: tensor.clone(), rows, cols })
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
        let size = self.dtype.size();
        let (width, row_bytes) = (rows.len(), self.cols * size);
        let mut lines = Vec::new();
        lines.try_reserve_exact(LINES * width * size)?;
        lines.resize(LINES * width * size, 0);
        for col in (0..self.cols).step_by(LINES) {
            let count = LINES.min(self.cols - col);
            if width == 0 {
                break;
            }
            for (i, line) in lines.chunks_exact_mut(width * size).take(count).enumerate() {
                let first = (col + i) * self.rows + rows.start;
                read(&self.tensor, self.tensor.offset + (first * size) as u64, line)?;
                check_finite(&self.tensor, self.dtype, line, first)?;
            }
            let turned = &mut out[col * size..];
            match size {
                2 => turn::<2>(&lines, width, count, turned, row_bytes),
                _ => turn::<4>(&lines, width, count, turned, row_bytes),
            }
        }
        Ok(())
    }

    /// Each file row is a read of its own: the more of it, the better.
    fn piece_bytes(&self) -> usize {
        4 << 20
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
        let source = TransposedRows::new(&tensor()).unwrap();
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
