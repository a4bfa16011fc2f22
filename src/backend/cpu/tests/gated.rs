//! Gated layers, whose activation is a part of the linear layer before it.

use super::*;
use crate::backend::Activation;

/// `down(act(gate(x)) * up(x))` added to nothing, twice: where `role` says that gate and up belong
/// together and the layer may be one step, or not. Also the gate's own output, where it is kept.
fn run(
    b: &mut CpuBackend,
    role: LinearRole,
    (rows, width, k): (usize, usize, usize),
    kind: Activation,
) -> Vec<u32> {
    let part = |seed, n, k| Matrix::random(DType::Bf16, n, k, seed);
    let gate = part(1, width, k).part(None);
    let up = part(2, width, k).part(Some(Numbers::new(3).take(width)));
    let both = b.pack_linear(LinearSpec { parts: vec![gate, up], role }).unwrap();
    let down = |seed| LinearSpec {
        parts: vec![part(seed, 33, width).part(None)],
        role: LinearRole::Hidden,
    };
    let (first, second) = (b.pack_linear(down(4)).unwrap(), b.pack_linear(down(5)).unwrap());
    let [x, gates, act, out] = [k, 2 * width, width, 33].map(|width| b.activation(width));
    allocate(b, rows, TINY, (16, 2));
    write(b, x, &Numbers::new(9).take(rows * k));
    write(b, out, &vec![0.0; rows * 33]);
    begin(b, rows);
    for down in [first, second] {
        b.linear(both, x, gates);
        b.gated_activation(gates, kind, act);
        b.linear_add(down, act, out);
    }
    b.finish_step().unwrap();
    bits(&[read(b, act, rows), read(b, out, rows)].concat())
}

#[test]
fn gate_and_up_in_one_step_give_the_bits_of_two() {
    let kinds = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu];
    for isa in paths() {
        for (compute, quantization) in [
            (ComputeType::F32, None),
            (ComputeType::Bf16, None),
            (ComputeType::Bf16, Some(Quantization::Int8)),
            (ComputeType::Bf16, Some(Quantization::Int4)),
        ] {
            let sizes = [(1, 16, 5), (2, 47, 65), (7, 96, 64), (13, 160, 257), (29, 8, 32)];
            for (size, kind) in sizes.into_iter().zip(kinds.into_iter().cycle()) {
                let results = [LinearRole::Hidden, LinearRole::GateUp].map(|role| {
                    let mut b = super::quantized(compute, quantization, isa, 2);
                    run(&mut b, role, size, kind)
                });
                let name = format!("{isa:?} {compute:?} {quantization:?} {size:?} {kind:?}");
                assert_eq!(results[0], results[1], "{name}");
                let nonzero = results[0].iter().filter(|bits| **bits << 1 != 0).count();
                assert!(nonzero > results[0].len() / 4, "{name}: {nonzero}");
            }
        }
    }
}

#[test]
fn gate_and_up_must_be_of_one_size() {
    let mut b = backend(ComputeType::F32, isa::choose(None).unwrap(), 1);
    let parts = [5, 6].map(|n| Matrix::random(DType::F32, n, 4, 1).part(None)).into();
    let error = b.pack_linear(LinearSpec { parts, role: LinearRole::GateUp }).unwrap_err();
    assert!(error.message().contains("5 outputs") && error.message().contains("has 6"), "{error}");
}
