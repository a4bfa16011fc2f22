//! Row-wise arithmetic: sums in f64, results in f32.

use crate::backend::Activation;

/// `x += y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "rows of one width");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Inner product.
pub(super) fn dot(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "rows of one width");
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = rms_scale(x, eps);
    assert!(x.len() == out.len() && x.len() == weight.len(), "rows of one width");
    for ((o, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = (f64::from(x) * scale * f64::from(w)) as f32;
    }
}

/// `x = x / sqrt(mean(x^2) + eps) * weight`.
pub(super) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = rms_scale(x, eps);
    assert_eq!(x.len(), weight.len(), "rows of one width");
    for (x, &w) in x.iter_mut().zip(weight) {
        *x = (f64::from(*x) * scale * f64::from(w)) as f32;
    }
}

fn rms_scale(x: &[f32], eps: f32) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt()
}

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len() == weight.len(), "rows of one width");
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    for (i, o) in out.iter_mut().enumerate() {
        let normed = (f64::from(x[i]) - mean) * scale;
        *o = (normed * f64::from(weight[i]) + f64::from(bias[i])) as f32;
    }
}

/// An activation function.
pub(super) fn activate(kind: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Relu => x.max(0.0),
    };
    y as f32
}

/// The error function: a Taylor series near zero, a continued fraction of `erfc` further out.
/// Good to about 1e-14.
fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    let y = if magnitude < 2.5 {
        let (mut term, mut sum, mut n) = (magnitude, magnitude, 0.0);
        while term.abs() > 1e-17 * sum {
            n += 1.0;
            term *= -magnitude * magnitude / n;
            sum += term / (2.0 * n + 1.0);
            if n > 100.0 {
                break;
            }
        }
        std::f64::consts::FRAC_2_SQRT_PI * sum
    } else if magnitude > 6.0 {
        1.0
    } else {
        let tail = (1..=60).rev().fold(magnitude, |f, k| magnitude + f64::from(k) / 2.0 / f);
        1.0 - (-magnitude * magnitude).exp() / (tail * std::f64::consts::PI.sqrt())
    };
    y.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_agrees_with_tables() {
        let table = [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.5, 0.999_593_047_982_555),
            (3.0, 0.999_977_909_503_001_4),
        ];
        for (x, expected) in table {
            assert!((erf(x) - expected).abs() < 1e-12, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn activations_at_known_points() {
        assert!((activate(Activation::Silu, 1.0) - 0.731_058_6).abs() < 1e-6);
        assert!((activate(Activation::Gelu, 1.0) - 0.841_344_7).abs() < 1e-6);
        assert!((activate(Activation::GeluTanh, 1.0) - 0.841_192).abs() < 1e-6);
        assert_eq!(activate(Activation::Relu, -1.0), 0.0);
        assert_eq!(activate(Activation::Silu, -200.0), 0.0);
    }
}
