//! Norms over the hidden width.

use crate::backend::{ActId, Backend, VectorId};
use crate::error::Result;
use crate::model::loader::Loader;
use crate::weights::VectorKind;

/// `x / rms(x) * weight`.
pub(crate) struct RmsNorm {
    weight: VectorId,
    eps: f32,
}

impl RmsNorm {
    /// `name.weight`, `[width]`.
    pub(crate) fn load(l: &mut Loader<'_>, name: &str, width: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: l.vector(format!("{name}.weight"), width, VectorKind::Scale)?, eps })
    }

    /// `out = norm(x)`.
    pub(crate) fn forward(&self, backend: &mut dyn Backend, x: ActId, out: ActId) {
        backend.rms_norm(x, self.weight, self.eps, out);
    }
}

/// `(x - mean(x)) / std(x) * weight + bias`.
pub(crate) struct LayerNorm {
    weight: VectorId,
    bias: VectorId,
    eps: f32,
}

impl LayerNorm {
    /// `name.weight` and `name.bias`, `[width]`.
    pub(crate) fn load(l: &mut Loader<'_>, name: &str, width: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            weight: l.vector(format!("{name}.weight"), width, VectorKind::Scale)?,
            bias: l.vector(format!("{name}.bias"), width, VectorKind::Bias)?,
            eps,
        })
    }

    /// `out = norm(x)`.
    pub(crate) fn forward(&self, backend: &mut dyn Backend, x: ActId, out: ActId) {
        backend.layer_norm(x, self.weight, self.bias, self.eps, out);
    }
}
