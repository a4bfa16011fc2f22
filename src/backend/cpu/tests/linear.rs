//! Linear layers, embeddings and logits.

use super::*;

const KINDS: [(ComputeType, DType); 6] = [
    (ComputeType::F32, DType::F32),
    (ComputeType::F32, DType::F16),
    (ComputeType::F32, DType::Bf16),
    (ComputeType::Bf16, DType::F32),
    (ComputeType::Bf16, DType::F16),
    (ComputeType::Bf16, DType::Bf16),
];

fn rounded(compute: ComputeType, v: f32) -> f64 {
    match compute {
        ComputeType::F32 => f64::from(v),
        ComputeType::Bf16 => half::bf16::from_f32(v).to_f64(),
    }
}

fn vocabulary(part: LinearPart) -> LinearSpec {
    LinearSpec { parts: vec![part], role: LinearRole::Vocabulary }
}

/// `linear` (and `linear_add` to `residual`) of `x`, `[rows, k]`.
fn run(
    kind: (ComputeType, DType),
    isa: CpuIsa,
    threads: usize,
    (rows, n, k): (usize, usize, usize),
    x: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let mut b = backend(kind.0, isa, threads);
    // Two parts whose seam lies within a panel, the second alone with a bias.
    let first = n / 3;
    let parts = vec![
        Matrix::random(kind.1, first, k, 1).part(None),
        Matrix::random(kind.1, n - first, k, 2).part(Some(Numbers::new(3).take(n - first))),
    ];
    let weight = b.pack_linear(LinearSpec { parts, role: LinearRole::Hidden }).unwrap();
    let (input, out, sum) = (b.activation(k), b.activation(n), b.activation(n));
    allocate(&mut b, rows, TINY, (16, 2));
    write(&b, input, x);
    write(&b, sum, &Numbers::new(4).take(rows * n));
    begin(&mut b, rows);
    b.linear(weight, input, out);
    b.linear_add(weight, input, sum);
    b.finish_step().unwrap();
    (read(&b, out, rows), read(&b, sum, rows))
}

#[test]
fn linear_is_the_product_on_odd_sizes() {
    for isa in paths() {
        for kind in KINDS {
            for (rows, n, k) in [(1, 5, 3), (3, 47, 65), (7, 64, 96), (13, 100, 257), (2, 16, 1)] {
                let x = Numbers::new(9).take(rows * k);
                let (out, sum) = run(kind, isa, 2, (rows, n, k), &x);
                let first = n / 3;
                let a = Matrix::random(kind.1, first, k, 1).values;
                let b = Matrix::random(kind.1, n - first, k, 2).values;
                let weights = [a, b].concat();
                let bias = [vec![0.0; first], Numbers::new(3).take(n - first)].concat();
                let residual = Numbers::new(4).take(rows * n);
                for (i, (out, sum)) in out.iter().zip(&sum).enumerate() {
                    let (row, column) = (i / n, i % n);
                    let (mut want, mut size) = (f64::from(bias[column]), 1.0);
                    for j in 0..k {
                        let p = rounded(kind.0, x[row * k + j])
                            * rounded(kind.0, weights[column * k + j]);
                        want += p;
                        size += p.abs();
                    }
                    let close = |a: f32, b: f64| (f64::from(a) - b).abs() <= 1e-5 * size;
                    assert!(close(*out, want), "{isa:?} {kind:?} {rows}x{n}x{k}: {out} {want}");
                    assert!(close(*sum, want + f64::from(residual[i])), "{isa:?} {kind:?}: add");
                }
            }
        }
    }
}

#[test]
fn a_row_alone_is_the_row_in_a_batch_on_any_threads() {
    for isa in paths() {
        for kind in KINDS {
            let (n, k) = (150, 130);
            let x = Numbers::new(5).take(40 * k);
            let (whole, _) = run(kind, isa, 1, (40, n, k), &x);
            for rows in 1..=40 {
                let (some, _) = run(kind, isa, 1 + rows % 3, (rows, n, k), &x[..rows * k]);
                assert_eq!(bits(&some), bits(&whole[..rows * n]), "{isa:?} {kind:?} {rows}");
            }
        }
    }
}

#[test]
fn groups_that_exceed_the_cache_change_nothing() {
    // Panels of 96 KiB and more: several groups, and tails of all kinds.
    for isa in paths() {
        let (n, k) = (16 * 17, 3072);
        let x = Numbers::new(5).take(9 * k);
        let kind = (ComputeType::Bf16, DType::Bf16);
        let (whole, _) = run(kind, isa, 2, (9, n, k), &x);
        let (one, _) = run(kind, isa, 1, (1, n, k), &x[8 * k..]);
        assert_eq!(bits(&one), bits(&whole[8 * n..]), "{isa:?}");
    }
}

#[test]
fn embeddings_gather_from_the_packed_head_and_logits_use_it() {
    for isa in paths() {
        for kind in KINDS {
            let (vocab, width) = (37, 20);
            let mut b = backend(kind.0, isa, 2);
            let table = Matrix::random(kind.1, vocab, width, 1);
            let values = table.values.clone();
            let head = b.pack_linear(vocabulary(table.part(None))).unwrap();
            let x = b.activation(width);
            allocate(&mut b, 8, TINY, (16, 2));
            let ids: Vec<TokenId> = [36, 0, 15, 16].map(TokenId).to_vec();
            b.begin_step(&StepInput {
                token_ids: &ids,
                positions: &[3, 2, 1, 0],
                seqs: &[],
                block_tables: &[Vec::new()],
                slot_mapping: &[vec![0; 4]],
                block_copies: &[],
                wanted: None,
            });
            b.embed(head, x);
            b.add_position(head, x);
            b.logits(head, x, &[2, 0]);
            let seen = std::sync::Mutex::new(vec![Vec::new(); 2]);
            b.map_logits(&|row, logits| seen.lock().unwrap()[row] = logits.to_vec()).unwrap();
            let rows = read(&b, x, 4);
            for (row, id) in ids.iter().enumerate() {
                for i in 0..width {
                    let want = rounded(kind.0, values[id.index() * width + i]) as f32
                        + rounded(kind.0, values[(3 - row) * width + i]) as f32;
                    assert_eq!(rows[row * width + i], want, "{isa:?} {kind:?}");
                }
            }
            let seen = seen.into_inner().unwrap();
            for (logits, row) in seen.iter().zip([2, 0]) {
                assert_eq!(logits.len(), vocab);
                for (token, logit) in logits.iter().enumerate() {
                    let product = |i: usize| {
                        rounded(kind.0, rows[row * width + i])
                            * rounded(kind.0, values[token * width + i])
                    };
                    let want: f64 = (0..width).map(product).sum();
                    assert!((f64::from(*logit) - want).abs() < 1e-4, "{isa:?} {kind:?}");
                }
            }
            let counters = BackendCounters { token_rows: 4, logits_rows: 2, steps: 1 };
            assert_eq!(b.counters(), counters);
        }
    }
}

#[test]
fn a_panic_in_the_callers_closure_comes_back_and_the_backend_lives() {
    let mut b = backend(ComputeType::F32, CpuIsa::Portable, 3);
    let table = Matrix::random(DType::F32, 8, 16, 1).part(None);
    let head = b.pack_linear(vocabulary(table)).unwrap();
    let x = b.activation(16);
    allocate(&mut b, 8, TINY, (16, 2));
    for _ in 0..2 {
        begin(&mut b, 4);
        b.embed(head, x);
        b.logits(head, x, &[0, 1, 2, 3]);
        let map = std::panic::AssertUnwindSafe(|| b.map_logits(&|row, _| assert_ne!(row, 2)));
        assert!(std::panic::catch_unwind(map).is_err());
    }
    begin(&mut b, 4);
    b.embed(head, x);
    // Token 9 is not in the table: a panic within the program.
    b.input.token_ids[3] = TokenId(9);
    let run = std::panic::AssertUnwindSafe(|| b.finish_step());
    assert!(std::panic::catch_unwind(run).is_err());
    begin(&mut b, 4);
    b.embed(head, x);
    b.finish_step().unwrap();
}

#[test]
fn a_cache_that_cannot_be_had_is_out_of_memory() {
    let mut b = backend(ComputeType::F32, CpuIsa::Portable, 1);
    let group = KvGroup { layers: vec![0], num_kv_heads: 8, head_dim: 128 };
    let spec = KvSpec { groups: vec![group], block_size: 16 };
    assert_eq!(b.kv_block_bytes(&spec), 2 * 8 * 128 * 16 * 4);
    let limits = StepLimits { max_tokens: 8, max_seqs: 8, max_logits_rows: 8, max_block_table: 64 };
    let error = b.allocate(limits, &spec, 1 << 40).unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::OutOfMemory);
    assert_eq!(error.detail()["bytes"], (8u64 * 128 * 16 * 4) << 40);
    b.allocate(limits, &spec, 4).unwrap();
}
