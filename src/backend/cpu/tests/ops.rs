//! Norms, rope and activations.

use super::*;
use crate::backend::RopeSpec;

#[track_caller]
fn assert_close(got: &[f32], want: impl Iterator<Item = f64>, bound: f64, what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= bound * (1.0 + want.abs()), "{what} [{i}]: {got} for {want}");
    }
}

#[test]
fn norms_are_what_they_say() {
    for isa in paths() {
        for width in [1, 16, 37, 128] {
            let (rows, eps) = (5, 1e-6f32);
            let mut b = backend(ComputeType::F32, isa, 2);
            let (x, rms, layer) = (b.activation(width), b.activation(width), b.activation(width));
            let (w, s) = (Numbers::new(1).take(width), Numbers::new(2).take(width));
            let (weight, bias) = (b.vector(w.clone()).unwrap(), b.vector(s.clone()).unwrap());
            allocate(&mut b, rows, TINY, (16, 2));
            let values = Numbers::new(3).take(rows * width);
            write(&b, x, &values);
            begin(&mut b, rows);
            b.rms_norm(x, weight, eps, rms);
            b.layer_norm(x, weight, bias, eps, layer);
            b.finish_step().unwrap();
            for row in 0..rows {
                let at = row * width..(row + 1) * width;
                let v: Vec<f64> = values[at.clone()].iter().map(|v| f64::from(*v)).collect();
                let n = width as f64;
                let square = v.iter().map(|v| v * v).sum::<f64>() / n + f64::from(eps);
                let want = (0..width).map(|i| v[i] / square.sqrt() * f64::from(w[i]));
                assert_close(&read(&b, rms, rows)[at.clone()], want, 2e-6, "rms_norm");
                let mean = v.iter().sum::<f64>() / n;
                let var = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + f64::from(eps);
                let want = (0..width)
                    .map(|i| (v[i] - mean) / var.sqrt() * f64::from(w[i]) + f64::from(s[i]));
                // One column: the difference to the mean is all rounding.
                assert_close(&read(&b, layer, rows)[at], want, 2e-5, "layer_norm");
            }
        }
    }
}

fn exact(kind: Activation, x: f64) -> f64 {
    // erf by its series, which converges everywhere.
    let erf = |z: f64| {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= 2.0 * z * z / (2.0 * f64::from(n) + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum
    };
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::Relu => x.max(0.0),
    }
}

#[test]
fn activations_are_what_they_say() {
    let kinds = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu];
    for isa in paths() {
        for kind in kinds {
            let (rows, width) = (3, 83);
            let mut b = backend(ComputeType::F32, isa, 2);
            let (both, out, x) =
                (b.activation(2 * width), b.activation(width), b.activation(width));
            allocate(&mut b, rows, TINY, (16, 2));
            let mut values: Vec<f32> =
                Numbers::new(3).take(rows * 2 * width).iter().map(|v| v * 9.0).collect();
            (values[0], values[1]) = (0.0, -8.5);
            write(&b, both, &values);
            write(&b, x, &values[..rows * width]);
            begin(&mut b, rows);
            b.gated_activation(both, kind, out);
            b.activate(x, kind);
            b.finish_step().unwrap();
            let name = format!("{isa:?} {kind:?}");
            let at = |i: usize| i / width * 2 * width + i % width;
            let want = (0..rows * width)
                .map(|i| exact(kind, f64::from(values[at(i)])) * f64::from(values[at(i) + width]));
            assert_close(&read(&b, out, rows), want, 2e-6, &name);
            let want = values.iter().map(|v| exact(kind, f64::from(*v)));
            assert_close(&read(&b, x, rows), want, 1e-6, &name);
        }
    }
}

#[test]
fn exp_is_close_everywhere_and_keeps_nan() {
    use super::super::math::exp_scalar;
    use super::super::simd::portable::Portable;
    for i in -8700..8800 {
        let x = i as f32 / 100.0;
        let (got, want) = (f64::from(exp_scalar::<Portable>(x)), f64::from(x).exp());
        assert!(((got - want) / want).abs() < 2.5e-7, "exp({x}): {got} for {want}");
    }
    assert_eq!(exp_scalar::<Portable>(0.0), 1.0);
    assert_eq!(exp_scalar::<Portable>(f32::NEG_INFINITY), 0.0);
    assert!(exp_scalar::<Portable>(f32::NAN).is_nan());
    for isa in paths() {
        // Through an op, for the other paths.
        let mut b = backend(ComputeType::F32, isa, 1);
        let x = b.activation(4);
        allocate(&mut b, 1, TINY, (16, 2));
        write(&b, x, &[f32::NAN, -200.0, 200.0, 0.0]);
        begin(&mut b, 1);
        b.activate(x, Activation::Silu);
        b.finish_step().unwrap();
        let y = read(&b, x, 1);
        assert!(y[0].is_nan() && y[1].abs() < 1e-30 && y[2] == 200.0 && y[3] == 0.0, "{y:?}");
    }
}

#[test]
fn rope_norms_and_turns_queries_and_keys() {
    let heads = Heads { num_heads: 3, num_kv_heads: 1, head_dim: 24 };
    for isa in paths() {
        for with_norm in [false, true] {
            let (rows, dim, half) = (4, heads.head_dim, 9);
            let mut b = backend(ComputeType::F32, isa, 2);
            let inv_freq: Vec<f64> = (0..half).map(|i| 0.7f64.powi(i)).collect();
            let spec =
                RopeSpec { inv_freq: inv_freq.clone(), magnitude: 1.25, max_positions: 4000 };
            let rope = b.rope_table(&spec).unwrap();
            let (qw, kw) = (Numbers::new(1).take(dim), Numbers::new(2).take(dim));
            let norm = (b.vector(qw.clone()).unwrap(), b.vector(kw.clone()).unwrap(), 1e-5);
            let qkv = b.activation(heads.qkv_width());
            allocate(&mut b, rows, heads, (8, 4));
            let values = Numbers::new(3).take(rows * heads.qkv_width());
            write(&b, qkv, &values);
            let positions = [3999, 0, 17, 1234];
            b.begin_step(&StepInput {
                token_ids: &[TokenId(0); 4],
                positions: &positions,
                seqs: &[],
                block_tables: &[Vec::new()],
                slot_mapping: &[vec![31, 8, 9, 17]],
                block_copies: &[],
                wanted: None,
            });
            let qk_norm = with_norm.then_some(norm);
            b.rope_write_kv(0, qkv, &RopeWrite { heads, qk_norm, rope: Some(rope) });
            b.finish_step().unwrap();
            let got = read(&b, qkv, rows);
            for (row, position) in positions.into_iter().enumerate() {
                for head in 0..5 {
                    let at = (row * 5 + head) * dim;
                    let mut v: Vec<f64> =
                        values[at..at + dim].iter().map(|v| f64::from(*v)).collect();
                    if with_norm && head < 4 {
                        let mean = v.iter().map(|v| v * v).sum::<f64>() / dim as f64 + 1e-5;
                        let w = if head < 3 { &qw } else { &kw };
                        for (v, w) in v.iter_mut().zip(w) {
                            *v *= f64::from(*w) / mean.sqrt();
                        }
                    }
                    if head < 4 {
                        for i in 0..half as usize {
                            let angle = f64::from(position) * inv_freq[i];
                            let (sin, cos) = (1.25 * angle.sin(), 1.25 * angle.cos());
                            let (x, y) = (v[i], v[i + half as usize]);
                            v[i] = x * cos - y * sin;
                            v[i + half as usize] = y * cos + x * sin;
                        }
                    }
                    assert_close(&got[at..at + dim], v.into_iter(), 2e-6, "rope");
                }
            }
        }
    }
}
