//! Quantized layers against the same sums by plain loops, which round where the formats say.

use super::*;
use crate::backend::LinearRole;
use crate::config::Quantization;

const SIZES: [(usize, usize, usize); 5] =
    [(1, 5, 3), (3, 47, 65), (9, 64, 96), (13, 100, 257), (2, 16, 640)];

/// Inputs of one group in 8 bits, and their scale.
fn rounded_inputs(x: &[f32]) -> (Vec<i64>, f32) {
    let greatest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let inverse = if greatest > 0.0 { 127.0 / greatest } else { 0.0 };
    (x.iter().map(|v| (v * inverse).round_ties_even() as i64).collect(), greatest / 127.0)
}

/// Weights of one group of `whole`: integers and their scale.
fn rounded_weights(w: &[f32], whole: &[f32], bits: u32) -> (Vec<i64>, f32) {
    let greatest = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
    if bits < 8 {
        let most = 2f32.powi(bits as i32 - 1);
        let extreme = w.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
        let steps = (extreme.abs() * (127.0 / greatest)).ceil().min(127.0);
        let scale = greatest / (127.0 * most) * steps * -extreme.signum();
        let q = |v: &f32| (v / scale).round_ties_even().clamp(-most, most - 1.0) as i64;
        return (w.iter().map(q).collect(), scale);
    }
    let q = |v: &f32| (v * (127.0 / greatest)).round_ties_even() as i64;
    (w.iter().map(q).collect(), greatest / 127.0)
}

/// One output, and the size of what was summed.
fn output(x: &[f32], w: &[f32], bits: u32) -> (f64, f64) {
    let group = if bits < 8 { 32 } else { 128 };
    let (mut sum, mut size) = (0.0, 0.0);
    for (xs, ws) in x.chunks(group).zip(w.chunks(group)) {
        let ((xq, x_scale), (wq, w_scale)) = (rounded_inputs(xs), rounded_weights(ws, w, bits));
        let exact: i64 = xq.iter().zip(&wq).map(|(x, w)| x * w).sum();
        let term = exact as f64 * f64::from(x_scale) * f64::from(w_scale);
        sum += term;
        size += term.abs();
    }
    (sum, size)
}

struct Case {
    /// Of a weight: 8, 6 or 4.
    bits: u32,
    isa: CpuIsa,
    threads: usize,
    /// Without what the machine has beside the path.
    plain: bool,
}

impl Case {
    /// `linear` of `x`, `[rows, k]`, by weights of one seed and a bias.
    fn run(&self, (rows, n, k): (usize, usize, usize), x: &[f32]) -> Vec<f32> {
        let part = Matrix::random(DType::F32, n, k, 1).part(Some(Numbers::new(3).take(n)));
        self.multiply((rows, n, k), x, part)
    }

    fn multiply(
        &self,
        (rows, n, k): (usize, usize, usize),
        x: &[f32],
        part: LinearPart,
    ) -> Vec<f32> {
        let (quantization, role) = match self.bits {
            8 => (Quantization::Int8, LinearRole::Hidden),
            6 => (Quantization::Int4, LinearRole::Vocabulary),
            _ => (Quantization::Int4, LinearRole::Hidden),
        };
        let mut b = super::quantized(ComputeType::Bf16, Some(quantization), self.isa, self.threads);
        if self.plain {
            b.kernels = kernels::plain(self.isa);
        }
        let spec = LinearSpec { parts: vec![part], role };
        let weight = b.pack_linear(spec).unwrap();
        let (input, out) = (b.activation(k), b.activation(n));
        allocate(&mut b, rows, TINY, (16, 2));
        write(&b, input, x);
        begin(&mut b, rows);
        b.linear(weight, input, out);
        b.finish_step().unwrap();
        read(&b, out, rows)
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for isa in paths() {
        for bits in [8, 6, 4] {
            all.extend([false, true].map(|plain| Case { bits, isa, threads: 2, plain }));
        }
    }
    all
}

#[test]
fn outputs_are_the_rounded_numbers_product() {
    for case in cases() {
        for (rows, n, k) in SIZES {
            let x = Numbers::new(9).take(rows * k);
            let weights = Matrix::random(DType::F32, n, k, 1).values;
            let bias = Numbers::new(3).take(n);
            let out = case.run((rows, n, k), &x);
            check_outputs(&case, k, &out, &x, &weights, &bias);
        }
    }
}

/// Every output is the rounded numbers' product and its bias.
fn check_outputs(case: &Case, k: usize, out: &[f32], x: &[f32], weights: &[f32], bias: &[f32]) {
    let n = bias.len();
    assert_eq!((x.len() % k, weights.len()), (0, n * k));
    assert_eq!(out.len(), x.len() / k * n);
    for (i, y) in out.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let (want, size) = output(&x[row * k..][..k], &weights[column * k..][..k], case.bits);
        let want = want + f64::from(bias[column]);
        let error = (f64::from(*y) - want).abs();
        let at = (case.bits, case.isa, row, column, n, k);
        assert!(error <= 1e-5 * (1.0 + size), "{at:?}: {y}, not {want}");
    }
}

/// Signs that change with some bits of the place: of one input, of pairs, of fours, of halves of a
/// group.
fn signs(pattern: usize, k: usize) -> impl Iterator<Item = f32> {
    (0..k).map(move |i| if (i & pattern).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 })
}

#[test]
fn the_greatest_sums_neither_saturate_nor_wrap() {
    const PATTERNS: usize = 32;
    let k = 256;
    let x: Vec<f32> = (0..PATTERNS).flat_map(|p| signs(p, k)).collect();
    // Of both signs the greatest that few bits have, and all but zeros beside them.
    let values: Vec<f32> = (0..PATTERNS)
        .flat_map(|p| signs(p, k).map(|s| if s > 0.0 { 1.0 } else { -1.0 }))
        .chain((0..PATTERNS).flat_map(|p| signs(p, k).map(|s| if s > 0.0 { 1e-3 } else { -1.0 })))
        .collect();
    let n = 2 * PATTERNS;
    for case in cases() {
        let weights = Matrix { dtype: DType::F32, rows: n, cols: k, values: values.clone() };
        let out = case.multiply((PATTERNS, n, k), &x, weights.part(None));
        check_outputs(&case, k, &out, &x, &values, &[0.0; 2 * PATTERNS]);
    }
}

#[test]
fn a_row_alone_is_the_row_in_a_batch_on_any_threads() {
    for case in cases() {
        let (n, k) = (150, 130);
        let x = Numbers::new(5).take(20 * k);
        let whole = case.run((20, n, k), &x);
        for rows in 1..20 {
            let case = Case { threads: 1 + rows % 3, ..case };
            let some = case.run((rows, n, k), &x[..rows * k]);
            assert_eq!(bits(&some), bits(&whole[..rows * n]), "{:?} {rows}", case.isa);
        }
    }
}

#[test]
fn instructions_of_one_width_give_the_same_bits() {
    for isa in paths() {
        for bits in [8, 6, 4] {
            let x = Numbers::new(5).take(7 * 300);
            let run = |plain| Case { bits, isa, threads: 2, plain }.run((7, 70, 300), &x);
            assert_eq!(super::bits(&run(true)), super::bits(&run(false)), "{isa:?} {bits}");
        }
    }
}

#[test]
fn an_input_that_is_not_a_number_is_not_hidden() {
    for case in cases() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = Numbers::new(5).take(2 * 130);
            x[129] = bad;
            let out = case.run((2, 20, 130), &x);
            assert!(out[..20].iter().all(|y| y.is_nan()), "{:?} {bad}", case.isa);
            assert!(out[20..].iter().all(|y| y.is_finite()), "{:?} {bad}", case.isa);
        }
    }
}

#[test]
fn tables_keep_six_bits_at_least_and_positions_stay_whole() {
    for (quantization, steps) in [(Quantization::Int8, 127.0), (Quantization::Int4, 31.0)] {
        let mut b = super::quantized(ComputeType::F32, Some(quantization), CpuIsa::Portable, 2);
        let table = |role| {
            let parts = vec![Matrix::random(DType::F32, 37, 20, 1).part(None)];
            LinearSpec { parts, role }
        };
        let vocabulary = b.pack_linear(table(LinearRole::Vocabulary)).unwrap();
        let positions = b.pack_linear(table(LinearRole::Positions)).unwrap();
        let (x, y) = (b.activation(20), b.activation(20));
        allocate(&mut b, 4, TINY, (16, 2));
        begin(&mut b, 4);
        b.embed(vocabulary, x);
        b.embed(positions, y);
        b.finish_step().unwrap();
        let values = Matrix::random(DType::F32, 37, 20, 1).values;
        assert_eq!(read(&b, y, 1), values[..20]);
        let scale = values[..20].iter().fold(0f32, |m, v| m.max(v.abs())) / steps;
        for (got, want) in read(&b, x, 1).iter().zip(&values) {
            assert!((got - want).abs() <= 0.5001 * scale, "{got}, not {want}");
        }
    }
}
