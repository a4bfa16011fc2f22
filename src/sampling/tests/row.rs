//! The scan, greedy choice, and rows that are not sane.

use proptest::prelude::*;

use super::*;
use crate::sampling::row::CHUNK;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn greedy_takes_the_first_of_the_largest(
        row in prop::collection::vec((-8i32..8).prop_map(|x| x as f32), 1..400),
    ) {
        let max = row.iter().copied().fold(MASKED, f32::max);
        let first = row.iter().position(|&x| x == max).unwrap();
        let sampled = sampler(&greedy(), 0).sample(&mut row.clone(), 0).unwrap();
        prop_assert_eq!(sampled.token.index(), first);
        prop_assert_eq!(sampled.logprobs, None);
    }

    #[test]
    fn chunk_maxima_are_maxima(row in prop::collection::vec(-1e3f32..1e3, 0..300)) {
        let mut maxima = Maxima::default();
        maxima.scan(&row).unwrap();
        let naive: Vec<f32> =
            row.chunks(CHUNK).map(|c| c.iter().copied().fold(MASKED, f32::max)).collect();
        prop_assert_eq!(maxima.chunks(), &naive[..]);
        prop_assert!(!maxima.has_nan());
    }

    #[test]
    fn a_nan_anywhere_is_found(len in 1usize..300, at in 0usize..300, negative in any::<bool>()) {
        let mut row = vec![1.0; len];
        row[at % len] = if negative { -f32::NAN } else { f32::NAN };
        let error = sampler(&greedy(), 0).sample(&mut row, 41).unwrap_err();
        prop_assert_eq!(error.kind(), ErrorKind::Device);
        let expected = format!(
            "the model's logits at position 41 are NaN (first at token {})",
            at % len
        );
        prop_assert_eq!(error.message(), expected);
    }
}

#[test]
fn rows_that_no_model_makes_are_errors() {
    let check = |mut row: Vec<f32>, expected: &str| {
        for params in [greedy(), ResolvedParams::default()] {
            let error = sampler(&params, 0).sample(&mut row, 3).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device);
            assert!(error.message().contains(expected), "{error}");
        }
    };
    check(vec![], "position 3 are missing");
    check(vec![MASKED; 70], "position 3 are all -infinity");
    check(vec![0.0, f32::INFINITY], "position 3 are infinite (first at token 1)");
}

#[test]
fn masked_logits_are_fine() {
    let mut row = vec![MASKED; 200];
    row[150] = -3.0;
    for params in [
        greedy(),
        ResolvedParams::default(),
        ResolvedParams { top_k: 5, ..ResolvedParams::default() },
        ResolvedParams { top_p: 0.5, ..ResolvedParams::default() },
        ResolvedParams { min_p: 0.5, ..ResolvedParams::default() },
    ] {
        let sampled = sampler(&params, 9).sample(&mut row.clone(), 0).unwrap();
        assert_eq!(sampled.token, TokenId(150));
    }
}

#[test]
fn extreme_logits_do_not_overflow() {
    let row = [f32::MAX, -f32::MAX, 0.0, f32::MAX];
    for temperature in [0.01, 2.0] {
        for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (2, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1)] {
            let base = ResolvedParams::default();
            let params = ResolvedParams { temperature, top_k, top_p, min_p, ..base };
            for position in 0..20 {
                let sampled = sampler(&params, 1).sample(&mut row.clone(), position).unwrap();
                assert!([0, 3].contains(&sampled.token.0), "{params:?}");
            }
        }
    }
}
