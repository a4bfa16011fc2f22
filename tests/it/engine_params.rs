//! Each sampling parameter through the engine: what it must do to the tokens is computed here from
//! the logprobs of the whole vocabulary, which are those of the raw logits.

use vrust::config::EngineOptions;
use vrust::engine::Engine;
use vrust::error::ErrorKind;
use vrust::ids::TokenId;
use vrust::request::{FinishReason, Input, Request, TokenLogprobs};

use crate::engine_support::{
    ChoiceOutcome, fixture, greedy, options, ready, run, run_one, text, tokens,
};
use crate::support::folder::{TempDir, set_fields};

const PROMPT: &[u32] = &[5, 9, 14, 33, 71];
const VOCAB: usize = 384;

/// An engine that gives out the logprobs of the whole vocabulary.
fn engine() -> Engine {
    let mut options = options("llama3");
    options.max_logprobs = VOCAB;
    ready(options)
}

/// A request for 20 random tokens with all logprobs.
fn random(seed: i64) -> Request {
    let mut request = greedy(PROMPT, 20);
    request.params.temperature = Some(1.5);
    // generation_config.json of this model says 0.9.
    request.params.top_p = Some(1.0);
    request.params.seed = Some(seed);
    request.params.logprobs = Some(-1);
    request
}

fn reason(choice: &ChoiceOutcome) -> &FinishReason {
    &choice.finished.as_ref().unwrap().reason
}

/// Raw logprobs by token id.
fn row(record: &TokenLogprobs) -> Vec<f32> {
    assert_eq!(record.top.len(), VOCAB);
    let mut row = vec![f32::NAN; VOCAB];
    record.top.iter().for_each(|l| row[l.token_id.index()] = l.logprob);
    row
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|x| *x == best).unwrap() as u32
}

/// Probabilities at a temperature.
fn softmax(row: &[f32], temperature: f32) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = row.iter().map(|x| f64::from((x - max) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

#[test]
fn all_logprobs_are_a_distribution_and_need_leave() {
    let engine = engine();
    let outcome = run_one(&engine, random(1));
    let choice = outcome.only();
    let mut sum = 0.0;
    for (token, record) in choice.tokens.iter().zip(&choice.logprobs) {
        let total: f64 = row(record).iter().map(|&l| f64::from(l).exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "{total}");
        let chosen = record.chosen.unwrap();
        assert_eq!(chosen.token_id.0, *token);
        assert_eq!(chosen.logprob, row(record)[*token as usize]);
        let greater = row(record).iter().filter(|l| **l > chosen.logprob).count();
        assert_eq!(chosen.rank as usize, 1 + greater);
        sum += chosen.logprob;
    }
    let reported = choice.finished.as_ref().unwrap().cumulative_logprob.unwrap();
    assert!((reported - sum).abs() < 1e-3);

    let strict = ready(options("llama3"));
    let error = strict.submit(random(1), strict.default_queue()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("logprobs") && error.message().contains("20"), "{error}");
}

#[test]
fn top_k_top_p_and_min_p_draw_from_what_they_keep() {
    let engine = engine();
    let with = |change: &dyn Fn(&mut Request)| -> Vec<ChoiceOutcome> {
        let requests = (0..8).map(random).map(|mut r| {
            change(&mut r);
            r
        });
        run(&engine, requests.collect()).iter().map(|o| o.only().clone()).collect()
    };
    // Each: whether `token` may be drawn from probabilities `p`.
    let check = |name: &str, change: &dyn Fn(&mut Request), may: &dyn Fn(&[f64], usize) -> bool| {
        let mut distinct = std::collections::HashSet::new();
        for choice in with(change) {
            for (token, record) in choice.tokens.iter().zip(&choice.logprobs) {
                let p = softmax(&row(record), 1.5);
                assert!(may(&p, *token as usize), "{name}: {token}");
                distinct.insert(record.chosen.unwrap().rank);
            }
        }
        assert!(distinct.len() > 1, "{name} is not greedy");
    };
    let above = |p: &[f64], t: usize| p.iter().filter(|x| **x > p[t]).sum::<f64>();
    check("top_k", &|r| r.params.top_k = Some(3), &|p, t| {
        p.iter().filter(|x| **x > p[t]).count() < 3
    });
    check("top_p", &|r| r.params.top_p = Some(0.5), &|p, t| above(p, t) < 0.5 + 1e-5);
    check("min_p", &|r| r.params.min_p = Some(0.3), &|p, t| {
        p[t] >= 0.3 * p.iter().copied().fold(0.0, f64::max) - 1e-6
    });
    let both = |r: &mut Request| {
        r.params.top_k = Some(4);
        r.params.top_p = Some(0.8);
    };
    check("top_k, then top_p of what it keeps", &both, &|p, t| {
        let mut kept = p.to_vec();
        kept.sort_by(|a, b| b.total_cmp(a));
        let mass: f64 = kept[..4].iter().sum();
        p[t] >= kept[3] && above(p, t) < 0.8 * mass + 1e-5
    });
    let one: Vec<_> = with(&|r| r.params.top_k = Some(1));
    assert!(one.iter().all(|c| c.logprobs.iter().all(|l| l.chosen.unwrap().rank == 1)));
}

#[test]
fn seeds_repeat_and_differ_and_temperatures_count() {
    let engine = engine();
    let mut unseeded = random(0);
    unseeded.params.seed = None;
    let requests = vec![random(1), random(1), random(2), unseeded.clone(), unseeded];
    let t: Vec<_> = run(&engine, requests).iter().map(|o| o.only().tokens.clone()).collect();
    assert_eq!(t[0], t[1]);
    assert!(t[0] != t[2] && t[3] != t[4] && t[3] != t[0]);
    let mut cold = random(3);
    cold.params.temperature = Some(1e-3); // Raised to 0.01.
    let mut greedy = random(3);
    greedy.params.temperature = Some(0.0);
    let t: Vec<_> =
        run(&engine, vec![cold, greedy]).iter().map(|o| o.only().tokens.clone()).collect();
    assert_eq!(t[0], t[1], "so cold that it is greedy");
}

#[test]
fn frequency_and_presence_penalties_count_the_output_alone() {
    let engine = engine();
    for (frequency, presence) in [(1.5, 0.0), (0.0, 2.0), (-1.0, -1.0), (0.7, 0.4)] {
        let mut request = greedy(PROMPT, 30);
        request.params.logprobs = Some(-1);
        request.params.frequency_penalty = Some(frequency);
        request.params.presence_penalty = Some(presence);
        let outcome = run_one(&engine, request);
        let choice = outcome.only();
        for (i, record) in choice.logprobs.iter().enumerate() {
            let mut row = row(record);
            for (token, x) in row.iter_mut().enumerate() {
                let count = choice.tokens[..i].iter().filter(|t| **t as usize == token).count();
                *x -= frequency * count as f32 + presence * f32::from(count > 0);
            }
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let got = row[choice.tokens[i] as usize];
            assert!(got >= best - 1e-4, "token {i}: {got} and not {best}");
        }
    }
}

#[test]
fn repetition_penalty_counts_prompt_and_output() {
    let engine = engine();
    let mut request = greedy(PROMPT, 30);
    request.params.repetition_penalty = Some(1e6);
    let choice = run_one(&engine, request).only().clone();
    let mut seen = PROMPT.to_vec();
    for token in &choice.tokens {
        assert!(!seen.contains(token), "{token} was seen");
        seen.push(*token);
    }
    let plain = run_one(&engine, greedy(PROMPT, 30)).only().tokens.clone();
    assert_ne!(plain, choice.tokens);
}

#[test]
fn biases_add_up_and_are_clamped() {
    let engine = engine();
    let mut request = greedy(PROMPT, 12);
    request.params.logprobs = Some(-1);
    request.params.logit_bias = [(TokenId(40), 3.0), (TokenId(41), 4.0)].into();
    let choice = run_one(&engine, request).only().clone();
    for (token, record) in choice.tokens.iter().zip(&choice.logprobs) {
        let mut row = row(record);
        row[40] += 3.0;
        row[41] += 4.0;
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(row[*token as usize] >= best - 1e-4, "logprobs are raw, the choice is biased");
    }
    let mut clamped = greedy(PROMPT, 3);
    clamped.params.logit_bias = [(TokenId(40), 1e9), (TokenId(41), 100.0)].into();
    clamped.params.logprobs = Some(-1);
    let choice = run_one(&engine, clamped).only().clone();
    for (token, record) in choice.tokens.iter().zip(&choice.logprobs) {
        let row = row(record);
        let wanted = if row[40] >= row[41] { 40 } else { 41 };
        assert_eq!(*token, wanted, "a bias of 1e9 is one of 100");
    }
}

#[test]
fn masks_that_leave_nothing_end_that_request_alone() {
    let engine = engine();
    let mut nothing = greedy(PROMPT, 5);
    nothing.params.allowed_token_ids = Some(tokens(&[7]));
    nothing.params.stop_token_ids = tokens(&[7]);
    nothing.params.min_tokens = Some(2);
    let outcomes = run(&engine, vec![nothing, greedy(PROMPT, 5)]);
    let error = outcomes[0].error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("allowed_token_ids"), "{error}");
    assert_eq!(outcomes[1].only().tokens.len(), 5);
    assert_eq!(engine.stats().finished_error, 1);
}

#[test]
fn stop_strings_wait_for_min_tokens() {
    let engine = engine();
    let whole = run_one(&engine, greedy(PROMPT, 24)).only().clone();
    // The first text that is whole, so that the stop string is there before the minimum.
    let chars: Vec<char> = whole.text.chars().take(2).collect();
    let stop: String = chars.iter().collect();
    let mut request = greedy(PROMPT, 24);
    request.params.stop = vec![stop.clone()];
    let early = run_one(&engine, request.clone());
    assert_eq!(*reason(early.only()), FinishReason::StopString(stop.clone()));
    assert!(early.only().tokens.len() < 10 && early.only().text.is_empty(), "{whole:?}");
    request.params.min_tokens = Some(10);
    let late = run_one(&engine, request);
    assert!(late.only().tokens.len() >= 10);
    if whole.text.matches(&stop).count() == 1 {
        assert_eq!(late.only().text, whole.text, "found once, and too early");
    }
}

#[test]
fn the_stop_string_that_completes_first_wins() {
    let engine = engine();
    let whole = run_one(&engine, greedy(PROMPT, 24)).only().text.clone();
    let chars: Vec<char> = whole.chars().collect();
    let late: String = chars[chars.len() - 4..].iter().collect();
    let early: String = chars[chars.len() / 2..chars.len() / 2 + 2].iter().collect();
    let mut request = greedy(PROMPT, 24);
    request.params.stop = vec![late, early.clone()];
    let outcome = run_one(&engine, request);
    assert_eq!(*reason(outcome.only()), FinishReason::StopString(early.clone()));
    assert_eq!(outcome.only().text, whole[..whole.find(&early).unwrap()]);
}

#[test]
fn the_text_of_a_stopping_token_is_shown_when_asked_for() {
    let engine = engine();
    let whole = run_one(&engine, greedy(PROMPT, 12)).only().clone();
    let tokenizer = engine.tokenizer().unwrap();
    let stop = whole.tokens[6];
    let first = whole.tokens.iter().position(|t| *t == stop).unwrap();
    for (include, count) in [(false, first), (true, first + 1)] {
        let mut request = greedy(PROMPT, 12);
        request.params.stop_token_ids = tokens(&[stop]);
        request.params.include_stop_str_in_output = include;
        let choice = run_one(&engine, request).only().clone();
        assert_eq!(choice.tokens, whole.tokens[..=first]);
        let shown = tokenizer.decode(&tokens(&whole.tokens[..count]), true).unwrap();
        assert_eq!(choice.text, shown);
    }
}

#[test]
fn end_of_text_is_ignored_or_ends_and_special_tokens_are_shown_on_demand() {
    let engine = engine();
    let eos = engine.tokenizer().unwrap().eos_token_id().unwrap();
    let only_eos = |change: &dyn Fn(&mut Request)| {
        let mut request = greedy(PROMPT, 4);
        request.params.allowed_token_ids = Some(vec![eos]);
        request.params.ignore_eos = false;
        change(&mut request);
        run_one(&engine, request).only().clone()
    };
    let ended = only_eos(&|_| ());
    assert_eq!((reason(&ended), ended.tokens.len()), (&FinishReason::Eos, 1));
    assert_eq!(ended.text, "");
    let ignored = only_eos(&|r| r.params.ignore_eos = true);
    assert_eq!((reason(&ignored), ignored.tokens.len()), (&FinishReason::Length, 4));
    assert_eq!(ignored.text, "", "special tokens are skipped");
    let word = engine.tokenizer().unwrap().decode(&[eos], false).unwrap();
    for spaces in [true, false] {
        let shown = only_eos(&|r| {
            r.params.ignore_eos = true;
            r.params.skip_special_tokens = Some(false);
            r.params.spaces_between_special_tokens = Some(spaces);
        });
        // Byte-level vocabularies put no spaces there in either case.
        assert_eq!(shown.text, word.repeat(4));
    }
    let raw = only_eos(&|r| {
        r.params.ignore_eos = true;
        r.params.skip_special_tokens = Some(false);
        r.params.detokenize = Some(false);
    });
    assert_eq!((raw.text.as_str(), raw.tokens.len()), ("", 4));
}

#[test]
fn token_prompts_are_echoed_as_text_and_ids() {
    let engine = engine();
    let mut request = greedy(PROMPT, 2);
    request.echo = true;
    request.params.prompt_logprobs = Some(0);
    let outcome = run_one(&engine, request);
    let decoded = engine.tokenizer().unwrap().decode(&tokens(PROMPT), false).unwrap();
    assert_eq!((outcome.prompt_text, outcome.prompt_tokens), (decoded, PROMPT.to_vec()));
    assert_eq!(outcome.prompt_logprobs.len(), PROMPT.len());
    assert!(outcome.prompt_logprobs[0].chosen.is_none());
    for (record, token) in outcome.prompt_logprobs[1..].iter().zip(&PROMPT[1..]) {
        assert_eq!(record.chosen.unwrap().token_id.0, *token);
        assert!(record.top.is_empty());
    }
}

#[test]
fn special_tokens_are_added_to_text_unless_told() {
    let engine = engine();
    let prompt_of = |add: bool| {
        let mut request = text("Hello there", 1);
        (request.echo, request.add_special_tokens) = (true, add);
        run_one(&engine, request).prompt_tokens
    };
    let (with, without) = (prompt_of(true), prompt_of(false));
    assert_eq!(with[0], 376, "begin of text");
    assert_eq!(with[1..], without);
}

/// A copy of `llama3` with these fields in generation_config.json.
fn with_generation_config(fields: serde_json::Value) -> (TempDir, EngineOptions) {
    let folder = TempDir::copy_of(&fixture("llama3"));
    set_fields(&folder.join("generation_config.json"), &fields);
    let mut options = options("llama3");
    options.model = folder.path().to_owned();
    options.max_logprobs = VOCAB;
    (folder, options)
}

#[test]
fn generation_config_gives_defaults_that_requests_override() {
    let fields = serde_json::json!({
        "temperature": 0.0, "max_new_tokens": 3, "top_p": null, "repetition_penalty": 1e6,
        "eos_token_id": null
    });
    let (_folder, mut options) = with_generation_config(fields);
    let bare = Request::new(Input::Tokens(tokens(PROMPT)));
    let own = || {
        let mut request = bare.clone();
        request.params.max_tokens = Some(30);
        request.params.repetition_penalty = Some(1.0);
        request.params.ignore_eos = true;
        request
    };
    let engine = ready(options.clone());
    let outcomes = run(&engine, vec![bare.clone(), bare.clone(), own()]);
    assert_eq!(outcomes[0].only().tokens.len(), 3, "max_new_tokens");
    assert_eq!(outcomes[0].only().tokens, outcomes[1].only().tokens, "temperature 0");
    let plain = run_one(&engine, greedy(PROMPT, 30));
    assert!(outcomes[0].only().tokens.iter().all(|t| !PROMPT.contains(t)), "repetition_penalty");
    // This one overrides everything but the temperature; `greedy` leaves the penalty.
    assert_ne!(outcomes[2].only().tokens, plain.only().tokens);
    let mut same = greedy(PROMPT, 30);
    same.params.repetition_penalty = Some(1.0);
    assert_eq!(outcomes[2].only().tokens, run_one(&engine, same).only().tokens);

    options.use_generation_config = false;
    let engine = ready(options);
    let mut bare = bare;
    bare.params.ignore_eos = true;
    let outcomes = run(&engine, vec![bare.clone(), bare]);
    assert_eq!(outcomes[0].only().tokens.len(), 16, "OpenAI's default");
    assert_ne!(outcomes[0].only().tokens, outcomes[1].only().tokens, "temperature 1");
}

#[test]
fn a_bad_default_of_the_model_fails_requests_and_says_where_it_stands() {
    let (_folder, options) = with_generation_config(serde_json::json!({"top_p": 7}));
    let engine = ready(options);
    let error = run_one(&engine, greedy(PROMPT, 3)).error.unwrap();
    for word in ["generation_config.json", "top_p", "7"] {
        assert!(error.message().contains(word), "{error}");
    }
}

#[test]
fn the_largest_logprob_is_what_greedy_takes() {
    let engine = engine();
    let mut request = greedy(PROMPT, 20);
    request.params.logprobs = Some(-1);
    let choice = run_one(&engine, request).only().clone();
    for (token, record) in choice.tokens.iter().zip(&choice.logprobs) {
        assert_eq!(*token, argmax(&row(record)));
    }
}
