//! The rules before the temperature: masks, bias, penalties, bad words, and their order.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

/// The logits after every rule but the noise.
fn processed(sampler: &SequenceSampler, row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    sampler.process(&mut row, 0, &mut Maxima::default()).unwrap();
    row
}

/// Penalties as their definition has them, in f64.
fn naive_penalties(p: &ResolvedParams, row: &[f32], prompt: &[u32], output: &[u32]) -> Vec<f64> {
    let penalized = |(id, &x): (usize, &f32)| {
        let id = id as u32;
        let count = output.iter().filter(|&&o| o == id).count();
        let mut x = f64::from(x);
        if prompt.contains(&id) || count > 0 {
            let r = f64::from(p.repetition_penalty);
            x = if x > 0.0 { x / r } else { x * r };
        }
        x -= f64::from(p.frequency_penalty) * count as f64;
        x - if count > 0 { f64::from(p.presence_penalty) } else { 0.0 }
    };
    row.iter().enumerate().map(penalized).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn penalties_follow_their_definition(
        row in prop::collection::vec(-20.0f32..20.0, 30),
        prompt in prop::collection::vec(0u32..30, 0..20),
        output in prop::collection::vec(0u32..30, 0..20),
        repetition in prop_oneof![Just(1.0f32), 0.2f32..3.0],
        frequency in prop_oneof![Just(0.0f32), -2.0f32..2.0],
        presence in prop_oneof![Just(0.0f32), -2.0f32..2.0],
    ) {
        let params = ResolvedParams {
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            ..greedy()
        };
        let mut sampler = SequenceSampler::new(&params, &ids(&prompt), &[], Vec::new(), 0);
        for &token in &output {
            sampler.accept(TokenId(token));
        }
        let expected = naive_penalties(&params, &row, &prompt, &output);
        for (x, y) in processed(&sampler, &row).into_iter().zip(expected) {
            prop_assert!((f64::from(x) - y).abs() < 1e-4, "{x} is not {y}");
        }
    }

    #[test]
    fn only_allowed_tokens_survive(
        row in prop::collection::vec(-5.0f32..5.0, 1..200),
        allowed in prop::collection::btree_set(0u32..250, 1..20),
    ) {
        let list: Vec<TokenId> = allowed.iter().map(|&id| TokenId(id)).collect();
        let mut masked = row.clone();
        bias::keep_only(&mut masked, &list);
        for (id, (&x, &y)) in row.iter().zip(&masked).enumerate() {
            let expected = if allowed.contains(&(id as u32)) { x } else { MASKED };
            prop_assert_eq!(y, expected);
        }
    }

    #[test]
    fn bad_words_look_at_the_outputs_tail(
        words in prop::collection::vec(prop::collection::vec(0u32..4, 1..5), 1..6),
        output in prop::collection::vec(0u32..4, 0..40),
    ) {
        let sequences: Vec<Vec<TokenId>> = words.iter().map(|w| ids(w)).collect();
        let mut bad = BadWords::new(sequences);
        for &token in &output {
            bad.accept(TokenId(token));
        }
        let mut row = [0.0f32; 4];
        bad.mask(&mut row);
        for (id, &x) in row.iter().enumerate() {
            let is_bad = words.iter().any(|w| {
                let (last, before) = w.split_last().unwrap();
                *last as usize == id && output.ends_with(before)
            });
            prop_assert_eq!(x == MASKED, is_bad);
        }
    }
}

#[test]
fn a_tiny_repetition_penalty_stays_finite() {
    let params = ResolvedParams { repetition_penalty: 1e-38, ..greedy() };
    let sampler = SequenceSampler::new(&params, &ids(&[1]), &[], Vec::new(), 0);
    assert_eq!(processed(&sampler, &[0.0, 1e30, -1e30]), [0.0, f32::MAX, -1e30]);
}

#[test]
fn bias_moves_the_greedy_choice() {
    let params = ResolvedParams { logit_bias: [(TokenId(2), 5.0)].into(), ..greedy() };
    let sampled = sampler(&params, 0).sample(&mut [3.0, 1.0, 0.0], 0).unwrap();
    assert_eq!(sampled.token, TokenId(2));
}

#[test]
fn bias_comes_before_penalties() {
    // -1 + 3 = 2 is positive, so the penalty divides; the other order would give -1 * 2 + 3 = 1.
    let bias = [(TokenId(0), 3.0)];
    let params = ResolvedParams { logit_bias: bias.into(), repetition_penalty: 4.0, ..greedy() };
    let sampler = SequenceSampler::new(&params, &ids(&[0]), &[], Vec::new(), 0);
    assert_eq!(processed(&sampler, &[-1.0, 0.0]), [0.5, 0.0]);
}

#[test]
fn a_bias_does_not_unmask() {
    let params = ResolvedParams {
        logit_bias: [(TokenId(0), 100.0)].into(),
        allowed_token_ids: Some(ids(&[1, 2]).into()),
        ..greedy()
    };
    let sampled = sampler(&params, 0).sample(&mut [5.0, 0.0, 1.0], 0).unwrap();
    assert_eq!(sampled.token, TokenId(2));
}

#[test]
fn min_tokens_masks_stop_ids_until_enough() {
    let params = ResolvedParams { min_tokens: 2, ..greedy() };
    let mut sampler = SequenceSampler::new(&params, &[], &ids(&[0]), Vec::new(), 0);
    let mut chosen = Vec::new();
    for position in 0..4 {
        let sampled = sampler.sample(&mut [9.0, 1.0], position).unwrap();
        sampler.accept(sampled.token);
        chosen.push(sampled.token.0);
    }
    assert_eq!(chosen, [1, 1, 0, 0]);
}

#[test]
fn masks_that_leave_nothing_are_the_requests_error() {
    for temperature in [0.0, 1.0] {
        let params = ResolvedParams {
            temperature,
            min_tokens: 1,
            allowed_token_ids: Some(ids(&[1]).into()),
            logprobs: Some(1),
            ..ResolvedParams::default()
        };
        let mut sampler = SequenceSampler::new(&params, &[], &ids(&[1]), Vec::new(), 0);
        let error = sampler.sample(&mut [0.0, 1.0, 2.0], 7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("leave no token to choose at position 7"), "{error}");
    }
}

#[test]
fn ids_past_the_row_are_ignored() {
    let params = ResolvedParams {
        logit_bias: [(TokenId(9), 3.0)].into(),
        allowed_token_ids: Some(ids(&[1, 9]).into()),
        repetition_penalty: 2.0,
        min_tokens: 1,
        ..greedy()
    };
    let bad = vec![ids(&[9])];
    let mut sampler = SequenceSampler::new(&params, &ids(&[9]), &ids(&[9]), bad, 0);
    assert_eq!(sampler.sample(&mut [5.0, 1.0], 0).unwrap().token, TokenId(1));
}

#[test]
fn words_become_one_or_two_sequences() {
    // "cat" is 1, " cat" 2, "dog" 3 4, " dog" 5 (shorter: not taken), "x" the same both ways.
    let mut encode = |text: &str| {
        Ok(ids(match text {
            "cat" => &[1],
            " cat" => &[2],
            "dog" => &[3, 4],
            " dog" => &[5],
            "x" | " x" => &[6],
            "\n" => &[7],
            _ => &[],
        }))
    };
    let words: Vec<String> = ["cat", " cat", "dog", "x", "\n", "?"].map(String::from).into();
    let mut sequences = bad_word_sequences(&words, &mut encode).unwrap();
    sequences.sort();
    let expected: [&[u32]; 7] = [&[1], &[1], &[2], &[2], &[3, 4], &[6], &[7]];
    assert_eq!(sequences, expected.map(ids));

    let many = vec!["cat".to_owned(); 65];
    let error = bad_word_sequences(&many, &mut encode).unwrap_err();
    assert!(error.message().contains("at most 128 token sequences, got 130"), "{error}");
}

#[test]
fn what_another_place_is_told_follows_the_tokens_that_are_drawn_and_not_accepted() {
    let params = ResolvedParams {
        min_tokens: 2,
        logit_bias: [(TokenId(3), 1.5), (TokenId(5), -2.0)].into(),
        ..greedy()
    };
    let mut sampler = SequenceSampler::new(&params, &[], &ids(&[9, 5]), Vec::new(), 7);
    let added = |sampler: &SequenceSampler, pending| sampler.draw(pending).unwrap().changes;
    let both = vec![(TokenId(3), 1.5), (TokenId(5), MASKED), (TokenId(9), MASKED)];
    let bias = vec![(TokenId(3), 1.5), (TokenId(5), -2.0)];
    assert!(!sampler.looks_back());
    assert_eq!(added(&sampler, 1).unwrap().add, both);
    assert_eq!(added(&sampler, 2).unwrap().add, bias);
    sampler.accept(TokenId(1));
    assert_eq!(added(&sampler, 0).unwrap().add, both);
    assert_eq!(added(&sampler, 1).unwrap().add, bias);
    // Nothing to change is nothing said.
    let plain = SequenceSampler::new(&greedy(), &[], &[], Vec::new(), 7);
    assert_eq!(added(&plain, 0), None);
}

#[test]
fn penalties_and_words_of_several_tokens_look_back() {
    let with = |words: &[&[u32]]| {
        let words = words.iter().map(|word| ids(word)).collect();
        SequenceSampler::new(&greedy(), &[], &[], words, 7)
    };
    assert!(!with(&[&[4], &[6]]).looks_back());
    assert!(with(&[&[4], &[6, 7]]).looks_back());
    let hidden = with(&[&[6], &[4]]).draw(0).unwrap().changes.unwrap().add;
    assert_eq!(hidden, vec![(TokenId(4), MASKED), (TokenId(6), MASKED)]);
    let params = ResolvedParams { frequency_penalty: 0.5, ..greedy() };
    let mut sampler = SequenceSampler::new(&params, &ids(&[8]), &[], Vec::new(), 7);
    assert!(sampler.looks_back());
    sampler.accept(TokenId(2));
    sampler.accept(TokenId(2));
    let changes = sampler.draw(0).unwrap().changes.unwrap();
    assert_eq!((changes.seen, changes.repetition), (vec![(TokenId(2), 2)], 1.0));
}
