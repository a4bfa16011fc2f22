//! Linear layers, widened to f32 at load.

use crate::backend::{ComputeType, LinearPart, LinearSpec};
use crate::error::Result;

use super::{math, too_large};

/// A linear layer or table.
pub(super) struct Linear {
    /// `[rows, cols]`; in bf16 precision every value is one of bf16.
    weight: Vec<f32>,
    /// `[rows]`.
    bias: Vec<f32>,
    cols: usize,
    compute: ComputeType,
}

impl Linear {
    /// Stacks the parts along the rows.
    pub(super) fn pack(spec: LinearSpec, compute: ComputeType) -> Result<Self> {
        let cols = spec.parts[0].weight.cols();
        let rows: usize = spec.parts.iter().map(|p| p.weight.rows()).sum();
        let mut linear = Self { weight: Vec::new(), bias: Vec::new(), cols, compute };
        linear.weight.try_reserve_exact(rows.checked_mul(cols).ok_or_else(too_large)?)?;
        linear.bias.try_reserve_exact(rows)?;
        for part in spec.parts {
            assert_eq!(part.weight.cols(), cols, "parts have one number of columns");
            linear.push(&part)?;
        }
        Ok(linear)
    }

    fn push(&mut self, part: &LinearPart) -> Result<()> {
        /// Rows that are read at once.
        const STEP: usize = 64;
        let source = &part.weight;
        let mut raw = Vec::new();
        raw.try_reserve_exact(STEP * self.cols * source.dtype().size())?;
        for start in (0..source.rows()).step_by(STEP) {
            let rows = start..(start + STEP).min(source.rows());
            let len = rows.len() * self.cols;
            raw.resize(len * source.dtype().size(), 0);
            source.read_rows(rows, &mut raw)?;
            let at = self.weight.len();
            self.weight.resize(at + len, 0.0);
            source.dtype().widen(&raw, &mut self.weight[at..]);
            if self.compute == ComputeType::Bf16 {
                self.weight[at..].iter_mut().for_each(|w| *w = round_to_bf16(*w));
            }
        }
        match &part.bias {
            Some(bias) => self.bias.extend_from_slice(bias),
            None => self.bias.resize(self.bias.len() + source.rows(), 0.0),
        }
        assert_eq!(self.bias.len() * self.cols, self.weight.len(), "a bias has an entry a row");
        Ok(())
    }

    /// Output features.
    pub(super) fn rows(&self) -> usize {
        self.bias.len()
    }

    /// A row of a table.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.weight[row * self.cols..(row + 1) * self.cols]
    }

    /// `out = x W^T + b` for one row.
    pub(super) fn apply(&self, x: &[f32], out: &mut [f32]) {
        assert!(x.len() == self.cols && out.len() == self.rows(), "widths are the layer's");
        let rounded: Vec<f32>;
        let x = match self.compute {
            ComputeType::F32 => x,
            ComputeType::Bf16 => {
                rounded = x.iter().map(|&x| round_to_bf16(x)).collect();
                &rounded
            }
        };
        for (row, o) in out.iter_mut().enumerate() {
            *o = (math::dot(x, self.row(row)) + f64::from(self.bias[row])) as f32;
        }
    }
}

/// The nearest value of bf16.
pub(super) fn round_to_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}
