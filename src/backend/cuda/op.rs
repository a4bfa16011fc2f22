//! What a step was described to do: plain data, so that a captured graph can be compared with it.

use crate::backend::{ActId, Activation, Attention, LinearId, RopeWrite, VectorId};

/// One op of the trait, with its arguments.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Op {
    Embed { table: LinearId, out: ActId },
    AddPosition { table: LinearId, x: ActId },
    RmsNorm { x: ActId, weight: VectorId, eps: f32, out: ActId },
    LayerNorm { x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId },
    Linear { weight: LinearId, x: ActId, out: ActId, accumulate: bool },
    RopeWrite { layer: usize, qkv: ActId, spec: RopeWrite },
    Attention { layer: usize, qkv: ActId, spec: Attention, out: ActId },
    GatedActivation { gate_up: ActId, kind: Activation, out: ActId },
    Activate { x: ActId, kind: Activation },
}

/// How an op uses an activation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    None,
    /// Reads it as the input of a linear layer, which rounds it to bf16 anyway.
    LinearInput,
    /// Reads or changes its f32 values.
    Values,
    /// Overwrites all of it.
    Overwrites,
}

impl Op {
    fn uses(&self, act: ActId) -> Use {
        let reads = |x: ActId, out: ActId| match act {
            a if a == x => Use::Values,
            a if a == out => Use::Overwrites,
            _ => Use::None,
        };
        match *self {
            Self::Embed { out, .. } if out == act => Use::Overwrites,
            Self::AddPosition { x, .. } | Self::Activate { x, .. } if x == act => Use::Values,
            Self::RopeWrite { qkv, .. } if qkv == act => Use::Values,
            Self::RmsNorm { x, out, .. } | Self::LayerNorm { x, out, .. } => reads(x, out),
            Self::Attention { qkv, out, .. } => reads(qkv, out),
            Self::GatedActivation { gate_up, out, .. } => reads(gate_up, out),
            Self::Linear { x, .. } if x == act => Use::LinearInput,
            Self::Linear { out, accumulate, .. } if out == act => match accumulate {
                true => Use::Values,
                false => Use::Overwrites,
            },
            _ => Use::None,
        }
    }
}

/// Whether what op `at` writes to `act` is only ever an input of linear layers: then it may be
/// written in bf16. What is left at the end may be read for logits.
pub(super) fn feeds_linears_only(ops: &[Op], at: usize, act: ActId) -> bool {
    for op in &ops[at + 1..] {
        match op.uses(act) {
            Use::None | Use::LinearInput => {}
            Use::Values => return false,
            Use::Overwrites => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inputs_of_linear_layers_may_be_bf16() {
        let (x, y, z) = (ActId(0), ActId(1), ActId(2));
        let norm = |x, out| Op::RmsNorm { x, weight: VectorId(0), eps: 1e-5, out };
        let linear = |x, out, accumulate| Op::Linear { weight: LinearId(0), x, out, accumulate };
        let ops = [norm(x, y), linear(y, z, false), linear(z, x, true), norm(x, y)];
        assert!(feeds_linears_only(&ops, 0, y));
        assert!(!feeds_linears_only(&ops, 3, y), "logits may read it");
        let activated = [norm(x, y), Op::Activate { x: y, kind: Activation::Relu }, norm(x, y)];
        assert!(!feeds_linears_only(&activated, 0, y));
        assert!(!feeds_linears_only(&[norm(x, y), linear(z, y, true), norm(x, y)], 0, y));
    }
}
