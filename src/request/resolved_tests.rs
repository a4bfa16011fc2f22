//! Defaults, and what depends on the prompt's length.

use super::*;
use crate::request::{Input, Request};

const LIMITS: Limits = Limits { vocab_size: 100, max_model_len: 64, max_logprobs: 20 };

fn resolve(params: &SamplingParams, defaults: &SamplingDefaults) -> ResolvedParams {
    params.resolve(defaults, &LIMITS, false, 10).unwrap()
}

#[test]
fn an_empty_request_gets_the_documented_defaults() {
    let resolved = resolve(&SamplingParams::default(), &SamplingDefaults::default());
    assert_eq!(resolved, ResolvedParams::default());
    assert!(!resolved.is_greedy());
}

#[test]
fn the_model_fills_what_the_request_leaves_open() {
    let defaults = SamplingDefaults {
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        min_p: Some(0.1),
        repetition_penalty: Some(1.05),
        max_tokens: Some(7),
    };
    let resolved = resolve(&SamplingParams::default(), &defaults);
    assert_eq!((resolved.temperature, resolved.top_p, resolved.top_k), (0.6, 0.95, 20));
    assert_eq!((resolved.min_p, resolved.repetition_penalty), (0.1, 1.05));
    assert_eq!(resolved.max_tokens, 7);

    let own = SamplingParams {
        temperature: Some(1.5),
        top_p: Some(1.0),
        top_k: Some(-1),
        min_p: Some(0.0),
        repetition_penalty: Some(1.0),
        max_tokens: Some(30),
        ..SamplingParams::default()
    };
    let resolved = resolve(&own, &defaults);
    assert_eq!((resolved.temperature, resolved.top_p, resolved.top_k), (1.5, 1.0, 0));
    assert_eq!((resolved.min_p, resolved.repetition_penalty), (0.0, 1.0));
    assert_eq!(resolved.max_tokens, 30);
}

#[test]
fn a_model_with_bad_defaults_says_so() {
    let defaults = SamplingDefaults { top_p: Some(0.0), ..SamplingDefaults::default() };
    let error = SamplingParams::default().resolve(&defaults, &LIMITS, false, 1).unwrap_err();
    let expected = "generation_config.json: top_p must be in (0, 1], got 0.0.";
    assert_eq!(error.message(), expected);
}

#[test]
fn greedy_switches_the_filters_off() {
    for temperature in [0.0, 9e-6] {
        let params = SamplingParams {
            temperature: Some(temperature),
            top_p: Some(0.5),
            top_k: Some(3),
            min_p: Some(0.2),
            ..SamplingParams::default()
        };
        let resolved = resolve(&params, &SamplingDefaults::default());
        assert!(resolved.is_greedy());
        assert_eq!((resolved.temperature, resolved.top_p), (0.0, 1.0));
        assert_eq!((resolved.top_k, resolved.min_p), (0, 0.0));
    }
}

#[test]
fn low_temperatures_are_raised() {
    for (given, expected) in [(1e-5, 0.01), (0.0099, 0.01), (0.01, 0.01), (0.011, 0.011)] {
        let params = SamplingParams { temperature: Some(given), ..SamplingParams::default() };
        let resolved = resolve(&params, &SamplingDefaults::default());
        assert_eq!(resolved.temperature, expected);
        assert!(!resolved.is_greedy());
    }
}

#[test]
fn a_greedy_model_cannot_give_two_choices() {
    let params = SamplingParams { n: Some(3), ..SamplingParams::default() };
    params.validate(&LIMITS).unwrap();
    let defaults = SamplingDefaults { temperature: Some(0.0), ..SamplingDefaults::default() };
    let error = params.resolve(&defaults, &LIMITS, false, 1).unwrap_err();
    assert_eq!(error.message(), "n must be 1 when using greedy sampling, got 3.");
}

#[test]
fn max_tokens() {
    let check = |own, model, is_chat, prompt_len, expected| {
        let params = SamplingParams { max_tokens: own, ..SamplingParams::default() };
        let defaults = SamplingDefaults { max_tokens: model, ..SamplingDefaults::default() };
        let resolved = params.resolve(&defaults, &LIMITS, is_chat, prompt_len).unwrap();
        assert_eq!(resolved.max_tokens, expected);
    };
    // Text: 16, or less where the model or the context says so.
    check(None, None, false, 10, 16);
    check(None, Some(2000), false, 10, 16);
    check(None, Some(5), false, 10, 5);
    check(None, None, false, 60, 4);
    // Chat: what the model says, else the rest of the context.
    check(None, None, true, 10, 54);
    check(None, Some(20), true, 10, 20);
    check(None, Some(2000), true, 10, 54);
    // The request's own, clamped.
    check(Some(40), Some(5), true, 10, 40);
    check(Some(64), None, false, 10, 54);
    check(Some(0), None, false, 64, 0);
}

#[test]
fn min_tokens_must_fit_what_is_left() {
    let params = SamplingParams { min_tokens: Some(17), ..SamplingParams::default() };
    params.validate(&LIMITS).unwrap();
    let resolve = |is_chat, prompt_len| {
        params.resolve(&SamplingDefaults::default(), &LIMITS, is_chat, prompt_len)
    };
    assert_eq!(resolve(true, 10).unwrap().min_tokens, 17);
    let message = "min_tokens must be less than or equal to max_tokens=16, got 17.";
    assert_eq!(resolve(false, 10).unwrap_err().message(), message);
    let message = "min_tokens must be less than or equal to max_tokens=14, got 17.";
    assert_eq!(resolve(true, 50).unwrap_err().message(), message);
}

#[test]
fn seeds() {
    let with = |seed| SamplingParams { seed, ..SamplingParams::default() };
    let of =
        |seed, choice| resolve(&with(seed), &SamplingDefaults::default()).seed_of_choice(choice);
    assert_eq!(of(None, 0), None);
    assert_eq!(of(Some(-1), 3), None);
    assert_eq!(of(Some(5), 3), Some(8));
    assert_eq!(of(Some(-2), 0), Some(u64::MAX - 1));
    assert_eq!(of(Some(i64::MAX), 1), Some(1 << 63));
}

#[test]
fn lists_are_clamped_sorted_and_deduplicated() {
    let params = SamplingParams {
        logit_bias: [(TokenId(9), 1e6), (TokenId(3), -200.0), (TokenId(5), 1.5)].into(),
        allowed_token_ids: Some(vec![TokenId(5), TokenId(2), TokenId(5)]),
        stop_token_ids: vec![TokenId(8), TokenId(1), TokenId(8)],
        top_k: Some(100),
        ..SamplingParams::default()
    };
    let resolved = resolve(&params, &SamplingDefaults::default());
    let bias = [(TokenId(3), -100.0), (TokenId(5), 1.5), (TokenId(9), 100.0)];
    assert_eq!(*resolved.logit_bias, bias);
    assert_eq!(resolved.allowed_token_ids.as_deref(), Some(&[TokenId(2), TokenId(5)][..]));
    assert_eq!(resolved.stop_token_ids, [TokenId(1), TokenId(8)]);
    assert_eq!(resolved.top_k, 0, "the whole vocabulary is no filter");
}

#[test]
fn echo_with_logprobs_asks_for_the_prompts() {
    let mut request = Request::new(Input::Text("x".into()));
    request.params.logprobs = Some(2);
    let prompt_logprobs = |request: &Request| {
        let resolved = request.resolve(&SamplingDefaults::default(), &LIMITS, 1).unwrap();
        resolved.prompt_logprobs
    };
    assert_eq!(prompt_logprobs(&request), None);
    request.echo = true;
    assert_eq!(prompt_logprobs(&request), Some(2));
    request.params.prompt_logprobs = Some(0);
    assert_eq!(prompt_logprobs(&request), Some(0));
}
