//! Seeded random weights: a model's real sizes without its files, for benchmarks.

use std::ops::Range;

use half::{bf16, f16};

use crate::backend::{DType, RowSource};
use crate::error::Result;

use super::VectorKind;
use super::source::check_request;

/// Standard deviation of the values, the one that models are commonly initialised with.
const DEVIATION: f32 = 0.02;

/// A random matrix of values that bf16 can hold, in any element type: each element follows from seed, name and place alone, so that it does
/// not matter in what pieces the rows are read.
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
        let value = |i: usize| bf16::from_f32(normal(self.key, first.wrapping_add(i as u64)));
        match self.dtype {
            DType::F32 => fill(out, |i| value(i).to_f32().to_le_bytes()),
            DType::F16 => fill(out, |i| f16::from_f32(value(i).to_f32()).to_le_bytes()),
            DType::Bf16 => fill(out, |i| value(i).to_le_bytes()),
        }
        Ok(())
    }
}

fn fill<const N: usize>(out: &mut [u8], element: impl Fn(usize) -> [u8; N]) {
    for (i, bytes) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        *bytes = element(i);
    }
}

/// A random vector: around one for norms, around zero for biases.
pub(super) fn vector(seed: u64, name: &str, len: usize, kind: VectorKind) -> Result<Vec<f32>> {
    let (key, mean) = match kind {
        VectorKind::Scale => (key(seed, name), 1.0),
        VectorKind::Bias => (key(seed, name), 0.0),
    };
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.extend((0..len as u64).map(|i| mean + normal(key, i)));
    Ok(values)
}

/// A nearly normal value: the sum of the four 16-bit parts of a hash.
fn normal(key: u64, index: u64) -> f32 {
    /// Mean of the sum, and its standard deviation.
    const MEAN: f32 = 2.0 * 65_535.0;
    const SPREAD: f32 = 37_837.0;
    let bits = mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum = (0..4).map(|lane| (bits >> (16 * lane)) as u32 & 0xffff).sum::<u32>();
    (sum as f32 - MEAN) * (DEVIATION / SPREAD)
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
    use crate::weights::widen;

    #[test]
    fn dummy_rows_are_the_same_in_any_pieces() {
        let source = DummyRows::new(7, "w", DType::Bf16, 64, 48);
        let mut whole = vec![0; 64 * 48 * 2];
        source.read_rows(0..64, &mut whole).unwrap();
        let mut piece = vec![0; 5 * 48 * 2];
        source.read_rows(30..35, &mut piece).unwrap();
        assert_eq!(piece, whole[30 * 96..35 * 96]);
    }

    #[test]
    fn dummy_rows_look_normal() {
        let mut raw = vec![0; 64 * 1024 * 2];
        DummyRows::new(1, "w", DType::Bf16, 64, 1024).read_rows(0..64, &mut raw).unwrap();
        let mut values = vec![0.0; 64 * 1024];
        widen(DType::Bf16, &raw, &mut values);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 5e-4, "{mean}");
        assert!((variance.sqrt() - DEVIATION).abs() < 5e-4, "{}", variance.sqrt());
    }
}
