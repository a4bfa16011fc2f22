//! Feed-forward layers.

use crate::backend::{ActId, Activation, Backend, LinearId};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::loader::{Loader, Part};
use crate::weights::Layout;

/// `down(act(gate(x)) * up(x))`.
pub(crate) struct GatedMlp {
    gate_up: LinearId,
    down: LinearId,
    kind: Activation,
}

impl GatedMlp {
    /// `gate_proj`, `up_proj` and `down_proj` below `name`.
    pub(crate) fn load(l: &mut Loader<'_>, name: &str, config: &ModelConfig) -> Result<Self> {
        let (hidden, inner, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        let gate = Part::new(format!("{name}.gate_proj"), inner, hidden).bias(bias);
        let up = Part::new(format!("{name}.up_proj"), inner, hidden).bias(bias);
        let down = Part::new(format!("{name}.down_proj"), hidden, inner).bias(bias);
        Ok(Self {
            gate_up: l.gate_up(&[gate, up])?,
            down: l.linear(&[down])?,
            kind: config.activation,
        })
    }

    /// `residual += mlp(x)`, with buffers of twice the inner width and of the inner width.
    pub(crate) fn forward(
        &self,
        backend: &mut dyn Backend,
        x: ActId,
        (gate_up, inner): (ActId, ActId),
        residual: ActId,
    ) {
        backend.linear(self.gate_up, x, gate_up);
        backend.gated_activation(gate_up, self.kind, inner);
        backend.linear_add(self.down, inner, residual);
    }
}

/// `down(act(up(x)))`, with biases.
pub(crate) struct PlainMlp {
    up: LinearId,
    down: LinearId,
    kind: Activation,
}

impl PlainMlp {
    /// The layers named `up` and `down`, in this layout.
    pub(crate) fn load(
        l: &mut Loader<'_>,
        (up, down): (String, String),
        layout: Layout,
        config: &ModelConfig,
    ) -> Result<Self> {
        let (hidden, inner, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        let up = Part::new(up, inner, hidden).bias(bias).layout(layout);
        let down = Part::new(down, hidden, inner).bias(bias).layout(layout);
        Ok(Self { up: l.linear(&[up])?, down: l.linear(&[down])?, kind: config.activation })
    }

    /// `residual += mlp(x)`, with a buffer of the inner width.
    pub(crate) fn forward(
        &self,
        backend: &mut dyn Backend,
        x: ActId,
        inner: ActId,
        residual: ActId,
    ) {
        backend.linear(self.up, x, inner);
        backend.activate(inner, self.kind);
        backend.linear_add(self.down, inner, residual);
    }
}
