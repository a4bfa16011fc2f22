//! Logprobs against log_softmax in f64.

use proptest::prelude::*;

use super::*;
use crate::sampling::logprobs::{fast_exp, prompt_logprobs};

/// `(token, logprob, rank)` of the whole row, best first, lowest id first among equals.
fn naive(row: &[f32]) -> Vec<(u32, f64, u32)> {
    let max = row.iter().copied().fold(MASKED, f32::max);
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
    let log_sum_exp = f64::from(max) + sum.ln();
    let mut all: Vec<_> =
        row.iter().enumerate().map(|(id, &x)| (id as u32, f64::from(x) - log_sum_exp, 0)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    for i in 0..all.len() {
        let ties = i > 0 && row[all[i].0 as usize] == row[all[i - 1].0 as usize];
        all[i].2 = if ties { all[i - 1].2 } else { i as u32 + 1 };
    }
    all
}

fn check(logprobs: &TokenLogprobs, row: &[f32], token: TokenId, top_n: usize) {
    let naive = naive(row);
    let same = |l: &crate::request::Logprob, n: &(u32, f64, u32)| {
        assert_eq!((l.token_id.0, l.rank), (n.0, n.2));
        let both_masked = n.1 == f64::NEG_INFINITY && l.logprob == MASKED;
        let tolerance = 1e-5f64.max(n.1.abs() * 1e-7);
        assert!(both_masked || (f64::from(l.logprob) - n.1).abs() < tolerance, "{l:?} {n:?}");
    };
    let chosen = naive.iter().find(|n| n.0 == token.0).unwrap();
    same(&logprobs.chosen.unwrap(), chosen);
    assert_eq!(logprobs.top.len(), top_n.min(row.len()));
    logprobs.top.iter().zip(&naive).for_each(|(l, n)| same(l, n));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn logprobs_are_log_softmax(
        row in prop_oneof![
            prop::collection::vec((-6i32..6).prop_map(|x| x as f32), 1..300),
            prop::collection::vec(prop_oneof![9 => -30.0f32..30.0, 1 => Just(-0.0f32)], 1..300),
        ],
        target in 0usize..300,
        top_n in prop_oneof![Just(0usize), 1usize..30, Just(300)],
    ) {
        let target = TokenId((target % row.len()) as u32);
        check(&prompt_logprobs(&row, target, top_n).unwrap(), &row, target, top_n);
        let params = ResolvedParams { logprobs: Some(top_n), ..ResolvedParams::default() };
        let sampled = sampler(&params, 5).sample(&mut row.clone(), 0).unwrap();
        check(&sampled.logprobs.unwrap(), &row, sampled.token, top_n);
    }

    #[test]
    fn fast_exp_is_exp(x in -87.0f32..=0.0) {
        let exact = f64::from(x).exp();
        let error = (f64::from(fast_exp(x)) - exact).abs() / exact;
        prop_assert!(error < 2e-7, "{error} at {x}");
    }
}

#[test]
fn fast_exp_at_its_ends() {
    assert_eq!(fast_exp(0.0), 1.0);
    assert_eq!(fast_exp(MASKED), fast_exp(-87.0));
    assert!(fast_exp(-87.0) < 2e-38);
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let row = [1.0, 3.0, 2.0, 0.0];
    let params = ResolvedParams {
        logprobs: Some(2),
        logit_bias: [(TokenId(3), 50.0)].into(),
        allowed_token_ids: Some(ids(&[0, 3]).into()),
        repetition_penalty: 2.0,
        temperature: 0.0,
        ..ResolvedParams::default()
    };
    let mut sampler = SequenceSampler::new(&params, &ids(&[1]), &[], Vec::new(), 0);
    let sampled = sampler.sample(&mut row.clone(), 0).unwrap();
    assert_eq!(sampled.token, TokenId(3));
    check(&sampled.logprobs.unwrap(), &row, TokenId(3), 2);
}

#[test]
fn masked_logits_have_no_probability() {
    let row = [MASKED, 1.0, MASKED];
    let logprobs = prompt_logprobs(&row, TokenId(2), 3).unwrap();
    check(&logprobs, &row, TokenId(2), 3);
    assert_eq!(logprobs.chosen.unwrap().logprob, MASKED);
}

#[test]
fn a_large_row_is_as_exact_as_a_small_one() {
    let row = random_row(150_000, 3.0, 11);
    check(&prompt_logprobs(&row, TokenId(149_999), 20).unwrap(), &row, TokenId(149_999), 20);
}

#[test]
fn prompt_logprobs_refuse_what_they_cannot_say() {
    let kind = |row: &[f32], id| prompt_logprobs(row, TokenId(id), 1).unwrap_err().kind();
    assert_eq!(kind(&[0.0, 1.0], 2), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[], 0), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[0.0, f32::NAN], 0), ErrorKind::Device);
    assert_eq!(kind(&[MASKED, MASKED], 0), ErrorKind::Device);
}
