//! Seeded random weights: a model's real sizes without its files, for benchmarks.

use std::ops::Range;

use half::{bf16, f16};

use crate::backend::{DType, RowSource};
use crate::error::Result;

use super::VectorKind;
use super::source::check_request;

/// Standard deviation of the values, the one that models are commonly initialised with.
const DEVIATION: f32 = 0.02;

/// A random matrix in any element type: each element follows from seed, name and place alone, so
/// that it does not matter in what pieces the rows are read.
pub struct DummyRows {
    name: String,
    key: u64,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl DummyRows {
    /// The matrix `name`, `[rows, cols]`.
    pub fn new(seed: u64, name: &str, dtype: DType, rows: usize, cols: usize) -> Self {
        Self { name: name.to_owned(), key: key(seed, name), dtype, rows, cols }
    }
}

impl RowSource for DummyRows {
    fn name(&self) -> &str {
        &self.name
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
        let first = (rows.start as u64).wrapping_mul(self.cols as u64);
        let mut values = Values::new(self.key, first);
        match self.dtype {
            DType::F32 => fill(out, || values.next().to_le_bytes()),
            DType::F16 => fill(out, || f16::from_f32(values.next()).to_le_bytes()),
            DType::Bf16 => fill(out, || bf16::from_f32(values.next()).to_le_bytes()),
        }
        Ok(())
    }
}

fn fill<const N: usize>(out: &mut [u8], mut element: impl FnMut() -> [u8; N]) {
    for bytes in out.as_chunks_mut::<N>().0 {
        *bytes = element();
    }
}

/// A random vector: around one for norms, around zero for biases.
pub(super) fn vector(seed: u64, name: &str, len: usize, kind: VectorKind) -> Result<Vec<f32>> {
    let (key, mean) = match kind {
        VectorKind::Scale => (key(seed, name), 1.0),
        VectorKind::Bias => (key(seed, name), 0.0),
    };
    let mut random = Values::new(key, 0);
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.extend((0..len).map(|_| mean + random.next()));
    Ok(values)
}

/// The values of a tensor from some index on: one hash gives four of them, evenly spread.
struct Values {
    key: u64,
    index: u64,
    bits: u64,
}

impl Values {
    fn new(key: u64, index: u64) -> Self {
        let mut values = Self { key, index, bits: 0 };
        values.draw();
        values.bits >>= 16 * (index % 4);
        values
    }

    fn next(&mut self) -> f32 {
        /// Standard deviation of sixteen even bits: their range over the root of 12.
        const SPREAD: f32 = 18_918.6;
        let lane = (self.bits & 0xffff) as f32 - 32_767.5;
        self.bits >>= 16;
        self.index = self.index.wrapping_add(1);
        if self.index.is_multiple_of(4) {
            self.draw();
        }
        lane * (DEVIATION / SPREAD)
    }

    fn draw(&mut self) {
        self.bits =
            mix(self.key.wrapping_add((self.index / 4).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    }
}

/// A key of its own for each tensor.
fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed ^ 0x76_7275_7374), |key, byte| mix(key ^ u64::from(byte)))
}

/// The finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dummy_rows_are_the_same_in_any_pieces() {
        let source = DummyRows::new(7, "w", DType::Bf16, 64, 47);
        let mut whole = vec![0; 64 * 47 * 2];
        source.read_rows(0..64, &mut whole).unwrap();
        let mut piece = vec![0; 5 * 47 * 2];
        source.read_rows(31..36, &mut piece).unwrap();
        assert_eq!(piece, whole[31 * 94..36 * 94]);
    }

    #[test]
    fn dummy_rows_have_the_usual_spread() {
        let mut raw = vec![0; 64 * 1024 * 2];
        DummyRows::new(1, "w", DType::Bf16, 64, 1024).read_rows(0..64, &mut raw).unwrap();
        let mut values = vec![0.0; 64 * 1024];
        DType::Bf16.widen(&raw, &mut values);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 5e-4, "{mean}");
        assert!((variance.sqrt() - DEVIATION).abs() < 5e-4, "{}", variance.sqrt());
    }
}
