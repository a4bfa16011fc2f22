//! Every row of the table of parameters: edges that are accepted, values that are not, messages.

use std::time::Duration;

use super::*;
use crate::config::SchedulingPolicy;
use crate::request::{Input, Request};

const LIMITS: Limits = Limits { vocab_size: 100, max_model_len: 64, max_logprobs: 20 };

type Set = fn(&mut SamplingParams);

fn params(set: Set) -> SamplingParams {
    let mut params = SamplingParams::default();
    set(&mut params);
    params
}

fn accept(set: Set) {
    let params = params(set);
    params.validate(&LIMITS).unwrap_or_else(|e| panic!("{params:?}: {e}"));
    params.resolve(&SamplingDefaults::default(), &LIMITS, true, 10).unwrap();
}

/// Both steps say so, with the same words and the field's name.
fn reject(set: Set, field: &str, message: &str) {
    let params = params(set);
    let error = params.validate(&LIMITS).expect_err(message);
    assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, message));
    assert_eq!(error.detail()["field"], field);
    if params.max_tokens != Some(0) {
        let again = params.resolve(&SamplingDefaults::default(), &LIMITS, true, 10).unwrap_err();
        assert_eq!(again.message(), message);
    }
}

#[test]
fn nothing_set_is_fine() {
    accept(|_| ());
}

#[test]
fn n() {
    accept(|p| p.n = Some(1));
    accept(|p| p.n = Some(16_384));
    reject(|p| p.n = Some(0), "n", "n must be at least 1, got 0.");
    reject(|p| p.n = Some(16_385), "n", "n must be at most 16384, got 16385.");
    reject(
        |p| (p.n, p.temperature) = (Some(2), Some(0.0)),
        "n",
        "n must be 1 when using greedy sampling, got 2.",
    );
}

#[test]
fn penalties() {
    for edge in [-2.0, 2.0] {
        let set = SamplingParams {
            presence_penalty: Some(edge),
            frequency_penalty: Some(edge),
            ..SamplingParams::default()
        };
        set.validate(&LIMITS).unwrap();
    }
    let field = "presence_penalty";
    reject(
        |p| p.presence_penalty = Some(2.1),
        field,
        "presence_penalty must be in [-2, 2], got 2.1.",
    );
    reject(
        |p| p.presence_penalty = Some(f32::NAN),
        field,
        "presence_penalty must be a finite number, got NaN.",
    );
    let field = "frequency_penalty";
    reject(
        |p| p.frequency_penalty = Some(-2.5),
        field,
        "frequency_penalty must be in [-2, 2], got -2.5.",
    );
    reject(
        |p| p.frequency_penalty = Some(f32::INFINITY),
        field,
        "frequency_penalty must be a finite number, got inf.",
    );
}

#[test]
fn repetition_penalty() {
    let field = "repetition_penalty";
    accept(|p| p.repetition_penalty = Some(f32::MIN_POSITIVE));
    accept(|p| p.repetition_penalty = Some(50.0));
    reject(
        |p| p.repetition_penalty = Some(0.0),
        field,
        "repetition_penalty must be greater than zero, got 0.0.",
    );
    reject(
        |p| p.repetition_penalty = Some(f32::INFINITY),
        field,
        "repetition_penalty must be a finite number, got inf.",
    );
}

#[test]
fn temperature() {
    let field = "temperature";
    accept(|p| p.temperature = Some(0.0));
    accept(|p| p.temperature = Some(2.0));
    reject(|p| p.temperature = Some(-0.5), field, "temperature must be non-negative, got -0.5.");
    reject(|p| p.temperature = Some(2.01), field, "temperature must be in [0, 2], got 2.01.");
    reject(
        |p| p.temperature = Some(f32::NAN),
        field,
        "temperature must be a finite number, got NaN.",
    );
}

#[test]
fn top_p_top_k_min_p() {
    accept(|p| p.top_p = Some(1e-6));
    accept(|p| p.top_p = Some(1.0));
    reject(|p| p.top_p = Some(0.0), "top_p", "top_p must be in (0, 1], got 0.0.");
    reject(|p| p.top_p = Some(1.5), "top_p", "top_p must be in (0, 1], got 1.5.");
    reject(|p| p.top_p = Some(f32::NAN), "top_p", "top_p must be a finite number, got NaN.");
    for k in [-1, 0, 1, i32::MAX] {
        SamplingParams { top_k: Some(k), ..SamplingParams::default() }.validate(&LIMITS).unwrap();
    }
    reject(|p| p.top_k = Some(-2), "top_k", "top_k must be 0 (disable), or at least 1, got -2.");
    accept(|p| p.min_p = Some(0.0));
    accept(|p| p.min_p = Some(1.0));
    reject(|p| p.min_p = Some(-0.1), "min_p", "min_p must be in [0, 1], got -0.1.");
    reject(|p| p.min_p = Some(1.1), "min_p", "min_p must be in [0, 1], got 1.1.");
    reject(|p| p.min_p = Some(f32::NAN), "min_p", "min_p must be a finite number, got NaN.");
}

#[test]
fn stops() {
    accept(|p| p.stop = vec!["a".into(); 4]);
    reject(|p| p.stop = vec!["a".into(); 5], "stop", "stop must have at most 4 strings, got 5.");
    reject(
        |p| p.stop = vec!["a".into(), String::new()],
        "stop",
        "stop cannot contain an empty string.",
    );
    reject(
        |p| (p.stop, p.detokenize) = (vec!["a".into()], Some(false)),
        "stop",
        "stop strings are only supported when detokenize is True. Set detokenize=True to use stop.",
    );
    accept(|p| p.stop_token_ids = vec![TokenId(99), TokenId(0)]);
    reject(
        |p| p.stop_token_ids = vec![TokenId(99), TokenId(100)],
        "stop_token_ids",
        "token_id(s) [100] in stop_token_ids contain out-of-vocab token ids. Vocabulary size: 100",
    );
}

#[test]
fn lengths() {
    accept(|p| p.max_tokens = Some(1));
    accept(|p| p.max_tokens = Some(64));
    reject(|p| p.max_tokens = Some(0), "max_tokens", "max_tokens must be at least 1, got 0.");
    reject(
        |p| p.max_tokens = Some(65),
        "max_tokens",
        "max_tokens=65 cannot be greater than max_model_len=64. \
         Please request fewer output tokens.",
    );
    accept(|p| (p.max_tokens, p.min_tokens) = (Some(5), Some(5)));
    reject(
        |p| (p.max_tokens, p.min_tokens) = (Some(5), Some(6)),
        "min_tokens",
        "min_tokens must be less than or equal to max_tokens=5, got 6.",
    );
}

#[test]
fn logprobs() {
    accept(|p| p.logprobs = Some(0));
    accept(|p| p.logprobs = Some(20));
    reject(|p| p.logprobs = Some(-2), "logprobs", "logprobs must be non-negative or -1, got -2.");
    reject(
        |p| p.logprobs = Some(21),
        "logprobs",
        "Requested sample logprobs of 21, which is greater than max allowed: 20",
    );
    reject(
        |p| p.logprobs = Some(-1),
        "logprobs",
        "Requested sample logprobs of 100, which is greater than max allowed: 20",
    );
    accept(|p| p.prompt_logprobs = Some(20));
    reject(
        |p| p.prompt_logprobs = Some(-3),
        "prompt_logprobs",
        "prompt_logprobs must be non-negative or -1, got -3.",
    );
    reject(
        |p| p.prompt_logprobs = Some(21),
        "prompt_logprobs",
        "Requested prompt logprobs of 21, which is greater than max allowed: 20",
    );
    let all = SamplingParams { logprobs: Some(-1), ..SamplingParams::default() };
    let wide = Limits { max_logprobs: 100, ..LIMITS };
    all.validate(&wide).unwrap();
    let resolved = all.resolve(&SamplingDefaults::default(), &wide, true, 1).unwrap();
    assert_eq!(resolved.logprobs, Some(100));
}

#[test]
fn logit_bias_and_allowed_token_ids() {
    accept(|p| p.logit_bias = [(TokenId(99), -100.0)].into());
    reject(
        |p| p.logit_bias = [(TokenId(100), 1.0), (TokenId(101), 1.0)].into(),
        "logit_bias",
        "token_id(s) [100, 101] in logit_bias contain out-of-vocab token ids. Vocabulary size: 100",
    );
    reject(
        |p| p.logit_bias = [(TokenId(7), f32::NAN)].into(),
        "logit_bias",
        "logit_bias of token 7 must be a finite number, got NaN.",
    );
    accept(|p| p.allowed_token_ids = Some(vec![TokenId(99)]));
    reject(
        |p| p.allowed_token_ids = Some(vec![]),
        "allowed_token_ids",
        "allowed_token_ids is not None and empty!",
    );
    reject(
        |p| p.allowed_token_ids = Some(vec![TokenId(100)]),
        "allowed_token_ids",
        "token_id(s) [100] in allowed_token_ids contain out-of-vocab token ids. \
         Vocabulary size: 100",
    );
}

#[test]
fn bad_words() {
    accept(|p| p.bad_words = vec!["x".into(); 128]);
    reject(
        |p| p.bad_words = vec!["x".into(); 129],
        "bad_words",
        "bad_words must have at most 128 words, got 129.",
    );
    reject(
        |p| p.bad_words = vec![String::new()],
        "bad_words",
        "bad_words cannot contain an empty string.",
    );
}

#[test]
fn details_name_limit_and_value() {
    let error = params(|p| p.top_p = Some(1.1)).validate(&LIMITS).unwrap_err();
    let detail = serde_json::to_string(error.detail()).unwrap();
    assert_eq!(detail, r#"{"field":"top_p","limit":"(0, 1]","value":1.1}"#);
    let error = params(|p| p.max_tokens = Some(65)).validate(&LIMITS).unwrap_err();
    let detail = serde_json::to_string(error.detail()).unwrap();
    assert_eq!(detail, r#"{"field":"max_tokens","limit":64,"value":65}"#);
    let error = params(|p| p.min_p = Some(f32::NEG_INFINITY)).validate(&LIMITS).unwrap_err();
    assert_eq!(error.detail()["value"], "-inf");
}

#[test]
fn prompts() {
    let prompt = |len: usize| vec![TokenId(1); len];
    let check = |prompt: &[TokenId], generates, kind, message: &str| {
        let error = validate_prompt(prompt, &LIMITS, generates).unwrap_err();
        assert_eq!((error.kind(), error.message()), (kind, message));
    };
    validate_prompt(&prompt(1), &LIMITS, true).unwrap();
    validate_prompt(&prompt(63), &LIMITS, true).unwrap();
    validate_prompt(&prompt(64), &LIMITS, false).unwrap();
    check(&[], true, ErrorKind::InvalidArgument, "The prompt cannot be empty.");
    check(
        &prompt(64),
        true,
        ErrorKind::ContextLength,
        "This model's maximum context length is 64 tokens. However, your prompt contains 64 input \
         tokens, which leaves no room for output tokens. Please reduce the length of the input \
         prompt.",
    );
    check(
        &prompt(65),
        false,
        ErrorKind::ContextLength,
        "This model's maximum context length is 64 tokens. However, your prompt contains 65 input \
         tokens, which exceeds this limit even without any output tokens. Please reduce the length \
         of the input prompt.",
    );
    check(
        &[TokenId(99), TokenId(100)],
        true,
        ErrorKind::InvalidArgument,
        "Token id 100 at index 1 of the prompt is out of vocabulary. Vocabulary size: 100",
    );
    let error = validate_prompt(&[TokenId(200)], &LIMITS, true).unwrap_err();
    let detail = serde_json::to_string(error.detail()).unwrap();
    assert_eq!(detail, r#"{"field":"prompt","index":0,"limit":100,"value":200}"#);
}

#[test]
fn requests() {
    let request = || Request::new(Input::Tokens(vec![TokenId(1); 64]));
    let check = |set: fn(&mut Request), expected: Option<&str>| {
        let mut request = request();
        request.deadline = Some(Duration::from_secs(1));
        request.input = Input::Tokens(vec![TokenId(1); 10]);
        set(&mut request);
        let result = request.validate(&LIMITS, SchedulingPolicy::Fcfs);
        match expected {
            None => result.unwrap(),
            Some(message) => assert!(result.unwrap_err().message().contains(message)),
        }
    };
    check(|_| (), None);
    check(|r| r.priority = 3, Some("priority must be 0 unless the scheduling policy is priority"));
    check(|r| r.cache_salt = Some("tenant-7".into()), None);
    check(|r| r.cache_salt = Some(String::new()), Some("cache_salt must have 1 to 128"));
    check(|r| r.cache_salt = Some("é".repeat(129)), Some("got 129."));
    check(|r| r.cache_salt = Some("a/b".into()), Some("cache_salt cannot contain '/'."));
    check(|r| r.params.max_tokens = Some(0), Some("max_tokens must be at least 1, got 0."));
    check(|r| (r.params.max_tokens, r.echo) = (Some(0), true), None);
    check(|r| r.input = Input::Tokens(vec![]), Some("The prompt cannot be empty."));

    let mut full = request();
    let error = full.validate(&LIMITS, SchedulingPolicy::Priority).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextLength);
    (full.params.max_tokens, full.echo, full.priority) = (Some(0), true, -5);
    full.validate(&LIMITS, SchedulingPolicy::Priority).unwrap();
}
