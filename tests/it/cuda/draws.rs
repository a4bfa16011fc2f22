//! Tokens and logprobs from the device are those of the host's sampler, whatever a request asks.

use serde_json::json;
use vrust::config::{EngineOptions, LoadFormat, ModelDType};
use vrust::ids::TokenId;
use vrust::request::{Request, SamplingParams, TokenLogprobs};

use super::stand_in::{count, on_cuda, on_stand_in};
use crate::engine_support::{Outcome, fixture, greedy, options, ready, run, text};
use crate::support::folder::{TempDir, set_fields};

type Set = fn(&mut SamplingParams);

/// Each rule, to be set alone and beside others.
const RULES: &[(&str, Set)] = &[
    ("repetition", |p| p.repetition_penalty = Some(1.7)),
    ("presence", |p| p.presence_penalty = Some(1.1)),
    ("frequency", |p| p.frequency_penalty = Some(-0.6)),
    ("bias", |p| {
        p.logit_bias = [(0, 2.5), (1, -100.0), (17, 4.0)].map(|(t, b)| (TokenId(t), b)).into();
    }),
    ("allowed", |p| p.allowed_token_ids = Some((0..30).map(TokenId).collect())),
    ("min_tokens", |p| {
        p.min_tokens = Some(4);
        p.stop_token_ids = (0..25).map(TokenId).collect();
    }),
    ("temperature", |p| p.temperature = Some(1.4)),
    ("top_k", |p| (p.temperature, p.top_k) = (Some(1.1), Some(9))),
    ("top_p", |p| (p.temperature, p.top_p) = (Some(1.2), Some(0.6))),
    ("min_p", |p| (p.temperature, p.min_p) = (Some(0.9), Some(0.02))),
    ("logprobs", |p| p.logprobs = Some(5)),
    ("chosen", |p| p.logprobs = Some(0)),
    ("prompt_logprobs", |p| p.prompt_logprobs = Some(3)),
];

/// Every rule alone, all pairs of neighbours, and more at once.
fn requests() -> Vec<Request> {
    let mut sets: Vec<Vec<usize>> = (0..RULES.len()).map(|i| vec![i]).collect();
    sets.extend((0..RULES.len()).map(|i| vec![i, (i + 1) % RULES.len()]));
    sets.extend((0..RULES.len()).map(|i| vec![i, (i + 3) % 13, (i + 5) % 13, (i + 8) % 13, 10]));
    let request = |(i, set): (usize, Vec<usize>)| {
        let prompt: Vec<u32> = (0..3 + i % 5).map(|j| ((i * 13 + j * 7) % 30) as u32).collect();
        let mut request = greedy(&prompt, 10);
        request.params.seed = Some(i as i64);
        set.iter().for_each(|&rule| RULES[rule].1(&mut request.params));
        request
    };
    sets.into_iter().enumerate().map(request).collect()
}

/// A model with dummy weights and a vocabulary of an odd size.
fn odd(vocab: usize) -> (TempDir, EngineOptions) {
    let dir = TempDir::copy_of(&fixture("qwen3"));
    let fields = json!({"vocab_size": vocab, "eos_token_id": 1, "bos_token_id": 0});
    set_fields(&dir.join("config.json"), &fields);
    let mut options = EngineOptions { model: dir.path().to_owned(), ..options("qwen3") };
    options.load_format = LoadFormat::Dummy;
    options.dtype = ModelDType::Float32;
    options.skip_tokenizer = true;
    (dir, options)
}

#[test]
fn every_rule_on_the_device_is_the_hosts() {
    on_stand_in("cuda::draws::every_rule_on_the_device_is_the_hosts", &[], || {
        for vocab in [31, 509, 1537] {
            let (_dir, options) = odd(vocab);
            let expected = run(&ready(options.clone()), requests());
            let got = run(&ready(on_cuda(options)), requests());
            let names: Vec<_> = RULES.iter().map(|(name, _)| *name).collect();
            for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
                assert_close(expected, got, &format!("{vocab}, {i} {:?}", names.get(i)));
            }
        }
        for kernel in ["edit_logits", "row_scale", "top_logprobs", "token_logprobs"] {
            assert!(count(&format!("kernel:{kernel}")) > 0, "{kernel}");
        }
    });
}

#[test]
fn bad_words_on_the_device_are_the_hosts() {
    on_stand_in("cuda::draws::bad_words_on_the_device_are_the_hosts", &[], || {
        let requests = |words: &[String]| -> Vec<Request> {
            let request = |i: u32| {
                let mut request = text("Once upon a time", 16 + i);
                request.params.ignore_eos = true;
                request.params.bad_words = words.iter().take(i as usize).cloned().collect();
                request
            };
            (0..4).map(request).collect()
        };
        let mut float32 = options("llama3");
        float32.dtype = ModelDType::Float32;
        let host = ready(float32.clone());
        let plain = run(&host, requests(&[])).remove(0).only().text.clone();
        // Words that it would say: of one token and of several.
        let words: Vec<String> =
            plain.split_whitespace().filter(|w| w.len() > 1).take(3).map(str::to_owned).collect();
        let (expected, got) =
            (run(&host, requests(&words)), run(&ready(on_cuda(float32)), requests(&words)));
        for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
            assert_close(expected, got, &format!("{words:?} {i}"));
        }
        assert!(words.is_empty() || expected[3].only().text != plain, "{words:?}");
    });
}

/// The same rows by the device and by the host's sampler: the same tokens and ranks, and
/// logprobs as near as two orders of one sum.
#[test]
fn logprobs_of_the_device_are_the_hosts() {
    let test = "cuda::draws::logprobs_of_the_device_are_the_hosts";
    on_stand_in(test, &[("VRUST_EMU_SEED", "9")], || {
        let (_dir, mut options) = odd(1031);
        options.max_logprobs = 200;
        let engine = ready(on_cuda(options));
        let by_device = run(&engine, requests());
        let drawn = count("kernel:sample");
        assert!(drawn > 0);
        // More than the device reports: its steps are the host's, with all who share them.
        let mut requests = requests();
        let mut many = greedy(&[4, 8], 60);
        many.params.logprobs = Some(100);
        many.priority = 0;
        requests.insert(0, many);
        let by_host = run(&engine, requests).split_off(1);
        let ids = |outcome: &Outcome| -> Vec<u32> {
            let all = records(outcome).into_iter().flat_map(|l| [l.token_id.0, l.rank]);
            outcome.only().tokens.iter().copied().chain(all).collect()
        };
        for (i, (device, host)) in by_device.iter().zip(&by_host).enumerate() {
            assert_eq!(ids(device), ids(host), "request {i}");
            for (device, host) in records(device).iter().zip(&records(host)) {
                assert!((device.logprob - host.logprob).abs() < 3e-6, "request {i}: {device:?}");
            }
        }
        assert!(count("kernel:sample") < 2 * drawn, "many of them were the host's");
    });
}

fn records(outcome: &Outcome) -> Vec<vrust::request::Logprob> {
    let places = outcome.prompt_logprobs.iter().chain(&outcome.only().logprobs);
    places.flat_map(|TokenLogprobs { chosen, top }| chosen.iter().chain(top)).copied().collect()
}

/// The same tokens, and logprobs of two backends.
fn assert_close(expected: &Outcome, got: &Outcome, told: &str) {
    assert_eq!(expected.only().tokens, got.only().tokens, "{told}");
    let reason = |o: &Outcome| o.only().finished.as_ref().unwrap().reason.clone();
    assert_eq!(reason(expected), reason(got), "{told}");
    let (expected, got) = (records(expected), records(got));
    assert_eq!(expected.len(), got.len(), "{told}");
    for (expected, got) in expected.iter().zip(&got) {
        assert!((expected.logprob - got.logprob).abs() < 1e-4, "{told}: {expected:?} {got:?}");
        assert!(expected.rank.abs_diff(got.rank) <= 1, "{told}: {expected:?} {got:?}");
    }
}
