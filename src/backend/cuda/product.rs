//! Launches of matrix products: the skinny kernel, cuBLASLt, or the plain kernel of float32.

use super::CudaBackend;
use super::driver::{DevicePtr, Grid};
use super::gemm::{Product, Size, padded_rows};
use super::launch::{BLOCK, ELEMENTS, Launcher, params};
use super::linear::Linear;
use crate::error::Result;

/// Rows and columns of the output that a block of `gemm_T` computes.
const TILE: usize = 64;
/// Most rows of a skinny product.
pub(super) const SKINNY_ROWS: usize = 16;
/// Most rows for which the skinny kernel is the faster one.
const FEW_ROWS: usize = 8;
/// Outputs of a set of the skinny kernel.
const SKINNY_OUTPUTS: usize = 16;
/// A split of so many inputs occupies half of a block's warps: a unit of work is two sets then.
const HALF_INPUTS: usize = 1024;
/// Threads of its blocks. A multiprocessor holds one, which takes one unit after another.
const SKINNY_BLOCK: u32 = 512;
/// Fewest inputs of a split.
const SPLIT_INPUTS: usize = 1024;
/// How much more of the device further splits must use: their sums are one more launch.
const SPLIT_GAIN: f64 = 1.1;

impl Launcher<'_> {
    /// `y = x W^T + b`, or `y +=`; `x` has `rows` rows, of bf16 in that precision.
    pub(super) fn multiply(
        &self,
        linear: &Linear,
        x: DevicePtr,
        y: DevicePtr,
        rows: usize,
        accumulate: bool,
    ) -> Result<()> {
        let Some(gemm) = &self.backend.gemm else {
            return self.plain(linear, x, y, rows, accumulate);
        };
        if self.backend.is_skinny(linear, rows) {
            return self.skinny(linear, x, y, rows, accumulate);
        }
        let (weight, size) = (linear.weight, product_size(linear, rows));
        // SAFETY: inputs and outputs have room for padded rows; the weight is `[n, k]`.
        unsafe {
            gemm.multiply(&self.backend.stream, &Product { x, weight, y, size, accumulate })?;
        }
        let (bias, n) = (linear.bias, linear.rows as u32);
        if bias == 0 {
            return Ok(());
        }
        let grid = Grid::new(linear.rows.div_ceil(ELEMENTS), rows, BLOCK);
        let add_bias = self.backend.kernels.add_bias;
        // SAFETY: `y` is `[rows, n]`, the bias `[n]`.
        unsafe { self.backend.stream.launch(add_bias, grid, params![y, bias, n]) }
    }

    /// In float32, of the checkpoint's own weights.
    fn plain(
        &self,
        linear: &Linear,
        x: DevicePtr,
        y: DevicePtr,
        rows: usize,
        accumulate: bool,
    ) -> Result<()> {
        let (weight, bias) = (linear.weight, linear.bias);
        let (m, n, k) = (rows as u32, linear.rows as u32, linear.cols as u32);
        let kernel = self.backend.kernels.gemm.of(linear.dtype);
        let grid = Grid::new(linear.rows.div_ceil(TILE), rows.div_ceil(TILE), BLOCK);
        let accumulate = u32::from(accumulate);
        // SAFETY: `y` is `[rows, n]`, `x` `[rows, k]`, the weight `[n, k]`, the bias `[n]` or none.
        unsafe {
            let params = params![y, x, weight, bias, m, n, k, accumulate];
            self.backend.stream.launch(kernel, grid, params)
        }
    }

    /// In bfloat16, of few rows, or of any number by 16 at a time.
    fn skinny(
        &self,
        linear: &Linear,
        x: DevicePtr,
        y: DevicePtr,
        rows: usize,
        accumulate: bool,
    ) -> Result<()> {
        let stream = &self.backend.stream;
        let tensor = self.backend.kernels.tensor.as_ref().expect("bfloat16 has these kernels");
        let splits = splits(linear, self.backend.device.multiprocessors);
        let (weight, bias) = (linear.weight, linear.bias);
        let (n, k, accumulate) = (linear.rows as u32, linear.cols as u32, u32::from(accumulate));
        let tickets = self.memory.tickets;
        for first in (0..rows).step_by(SKINNY_ROWS) {
            let some = SKINNY_ROWS.min(rows - first);
            let x = x + (first * linear.cols * 2) as u64;
            let y = y + (first * linear.rows * 4) as u64;
            let m = some as u32;
            let kernel = tensor.skinny_gemm[usize::from(some > 8)];
            let blocks = units(linear, splits).min(self.backend.device.multiprocessors);
            let grid = Grid::new(blocks, 1, SKINNY_BLOCK);
            let splits = splits as u32;
            let partial = if splits == 1 { 0 } else { self.memory.partial };
            // SAFETY: `y` is `[rows, n]`, `x` `[rows, k]`, the weight `[n, k]`, the bias `[n]` or
            // none; partial sums have room for every layer's splits.
            unsafe {
                let params =
                    params![y, x, weight, bias, partial, tickets, m, n, k, accumulate, splits];
                stream.launch(kernel, grid, params)?;
                if splits > 1 {
                    let sum = tensor.skinny_sum;
                    let grid = Grid::new(linear.rows.div_ceil(256), some, BLOCK);
                    stream.launch(sum, grid, params![y, bias, partial, splits, n, accumulate])?;
                }
            }
        }
        Ok(())
    }
}

impl CudaBackend {
    /// Whether the skinny kernel computes this product. With `batch_invariant` it computes every
    /// one: its result for a row does not depend on the others.
    pub(super) fn is_skinny(&self, linear: &Linear, rows: usize) -> bool {
        let few = rows <= FEW_ROWS || self.options.batch_invariant;
        few && linear.cols.is_multiple_of(8)
    }
}

/// Units of work of a skinny product.
fn units(linear: &Linear, splits: usize) -> usize {
    let sets = if linear.cols.div_ceil(splits) <= HALF_INPUTS { 2 } else { 1 };
    linear.rows.div_ceil(SKINNY_OUTPUTS * sets) * splits
}

/// Parts that a skinny product's sums are cut into: where its outputs alone would leave the device
/// idle for a good part of the time.
pub(super) fn splits(linear: &Linear, multiprocessors: usize) -> usize {
    let used = |splits: usize| {
        let units = units(linear, splits);
        units as f64 / units.next_multiple_of(multiprocessors) as f64
    };
    let most = (linear.cols / SPLIT_INPUTS).max(1);
    (2..=most).fold(
        1,
        |best, splits| {
            if used(splits) > SPLIT_GAIN * used(best) { splits } else { best }
        },
    )
}

/// The size that a product of `rows` is computed with.
pub(super) fn product_size(linear: &Linear, rows: usize) -> Size {
    Size { rows: padded_rows(rows), n: linear.rows, k: linear.cols }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DType;

    #[test]
    fn sums_are_cut_where_outputs_are_few() {
        let linear = |rows, cols| Linear { weight: 0, bias: 0, rows, cols, dtype: DType::Bf16 };
        assert_eq!(splits(&linear(4096, 14336), 132), 1);
        assert_eq!(splits(&linear(6144, 4096), 132), 1);
        assert_eq!(splits(&linear(1024, 4096), 132), 2);
        assert_eq!(splits(&linear(1024, 1024), 132), 1);
        assert_eq!(splits(&linear(128_256, 4096), 132), 1);
        assert_eq!(splits(&linear(16, 8192), 132), 8);
    }
}
