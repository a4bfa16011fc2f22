//! min_p, top_k and top_p against an oracle that sorts.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What the definitions keep, and what rounding may decide either way.
struct Oracle {
    must: BTreeSet<u32>,
    may: BTreeSet<u32>,
}

fn oracle(p: &ResolvedParams, row: &[f32]) -> Oracle {
    let t = f64::from(p.temperature);
    let max = f64::from(row.iter().copied().fold(MASKED, f32::max));
    let mut order: Vec<(f64, u32)> = row
        .iter()
        .enumerate()
        .filter(|(_, x)| **x > MASKED)
        .map(|(id, &x)| ((f64::from(x) - max) / t, id as u32))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if p.top_k > 0 && p.top_k < order.len() {
        let kth = order[p.top_k - 1].0;
        order.retain(|c| c.0 >= kth);
    }
    let near = 1e-5;
    let ln_min_p = f64::from(p.min_p).ln();
    let weights = |order: &[(f64, u32)]| order.iter().map(|c| c.0.exp()).sum::<f64>();
    let total = weights(&order.iter().copied().filter(|c| c.0 >= ln_min_p).collect::<Vec<_>>());
    let mut oracle = Oracle { must: BTreeSet::new(), may: BTreeSet::new() };
    let mut above = 0.0;
    for (z, id) in order {
        let min_p_slack = z - ln_min_p;
        let top_p_slack = if p.top_p < 1.0 && above > 0.0 {
            f64::from(p.top_p) - above / total
        } else {
            f64::INFINITY
        };
        if min_p_slack > near && top_p_slack > near || above == 0.0 {
            oracle.must.insert(id);
        }
        if min_p_slack > -near && top_p_slack > -near {
            oracle.may.insert(id);
        }
        above += z.exp();
    }
    oracle
}

fn check(params: &ResolvedParams, row: &[f32]) -> std::result::Result<(), TestCaseError> {
    let filters = Filters::new(params);
    let mut maxima = Maxima::default();
    maxima.scan(row).unwrap();
    let mut kept = Vec::new();
    filters.survivors(row, &maxima, &mut Room::default(), &mut kept).unwrap();
    let tokens: BTreeSet<u32> = kept.iter().map(|c| c.id.0).collect();
    prop_assert_eq!(tokens.len(), kept.len(), "a token is there twice");
    let oracle = oracle(params, row);
    let missing: Vec<_> = oracle.must.difference(&tokens).collect();
    let extra: Vec<_> = tokens.difference(&oracle.may).collect();
    prop_assert!(missing.is_empty() && extra.is_empty(), "missing {missing:?}, extra {extra:?}");
    for c in &kept {
        let z = (row[c.id.index()] - maxima.max()) / params.temperature;
        prop_assert_eq!(c.value, z);
    }
    Ok(())
}

/// Rows with many ties, and rows with none, some tokens masked.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let tied = (-6i32..6).prop_map(|x| x as f32);
    let masked = prop_oneof![4 => tied, 1 => Just(MASKED)];
    prop_oneof![
        prop::collection::vec(masked, 1..300),
        prop::collection::vec(-12.0f32..12.0, 1..300),
        (1usize..3000, 0.1f32..8.0, any::<u64>()).prop_map(|(n, s, seed)| random_row(n, s, seed)),
    ]
    .prop_filter("all masked", |row| row.iter().any(|&x| x > MASKED))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn survivors_are_those_of_a_sort(
        row in rows(),
        temperature in prop_oneof![Just(1.0f32), 0.01f32..2.0],
        top_k in prop_oneof![Just(0usize), 1usize..400],
        top_p in prop_oneof![Just(1.0f32), 0.001f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..=1.0],
    ) {
        let base = ResolvedParams::default();
        check(&ResolvedParams { temperature, top_k, top_p, min_p, ..base }, &row)?;
    }
}

#[test]
fn a_vocabulary_of_real_size_is_cut_as_by_a_sort() {
    for (sigma, top_p) in [(0.01, 0.3), (1.0, 0.5), (2.0, 0.95), (6.0, 0.999), (2.0, 0.999_99)] {
        let row = random_row(50_000, sigma, 5);
        let base = ResolvedParams::default();
        check(&ResolvedParams { top_p, ..base.clone() }, &row).unwrap();
        check(&ResolvedParams { top_p, top_k: 3000, ..base.clone() }, &row).unwrap();
        check(&ResolvedParams { top_k: 40, ..base }, &row).unwrap();
    }
}

#[test]
fn equal_logits_keep_the_lowest_ids_under_top_p() {
    for len in [10, 5000] {
        let params = ResolvedParams { top_p: 0.45, ..ResolvedParams::default() };
        let row = vec![1.5; len];
        let mut maxima = Maxima::default();
        maxima.scan(&row).unwrap();
        let mut kept = Vec::new();
        Filters::new(&params).survivors(&row, &maxima, &mut Room::default(), &mut kept).unwrap();
        let mut tokens: Vec<usize> = kept.iter().map(|c| c.id.index()).collect();
        tokens.sort_unstable();
        let expected = (0.45 * len as f64).ceil() as usize;
        assert!(tokens.len().abs_diff(expected) <= 1, "{} of {len}", tokens.len());
        assert!(tokens.iter().enumerate().all(|(i, &t)| i == t));
    }
}

#[test]
fn a_tiny_top_p_keeps_the_most_likely_token() {
    let params = ResolvedParams { top_p: f32::MIN_POSITIVE, ..ResolvedParams::default() };
    for position in 0..50 {
        let sampled = sampler(&params, 3).sample(&mut random_row(1000, 1.0, 8), position).unwrap();
        let greedy = sampler(&greedy(), 3).sample(&mut random_row(1000, 1.0, 8), position);
        assert_eq!(sampled.token, greedy.unwrap().token);
    }
}
