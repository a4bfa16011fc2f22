//! Steps that run while the host prepares the next one: what comes of them is what comes of steps
//! that are waited for.

use std::time::Duration;

use vrust::config::{EngineOptions, ModelDType};
use vrust::ids::TokenId;
use vrust::request::{FinishReason, Request, TokenLogprobs};

use super::stand_in::{count, on_cuda, on_stand_in};
use crate::engine_support::{
    ChoiceOutcome, Consumer, Outcome, Random, greedy, options, ready, run, run_one,
};

/// Everything about a choice that must not depend on when the host looks.
fn essence(choice: &ChoiceOutcome) -> (Vec<u32>, String, Option<FinishReason>, Vec<u32>) {
    let reason = choice.finished.as_ref().map(|finished| finished.reason.clone());
    (choice.tokens.clone(), choice.text.clone(), reason, bits(&choice.logprobs))
}

fn bits(records: &[TokenLogprobs]) -> Vec<u32> {
    let all = records.iter().flat_map(|r| r.chosen.iter().chain(&r.top));
    all.flat_map(|l| [l.token_id.0, l.logprob.to_bits(), l.rank]).collect()
}

fn assert_same(expected: &[Outcome], got: &[Outcome], told: &str) {
    for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
        let all = |o: &Outcome| o.choices.values().map(essence).collect::<Vec<_>>();
        assert_eq!(all(expected), all(got), "{told}: request {i}");
        let prompts = [expected, got].map(|o| bits(&o.prompt_logprobs));
        assert_eq!(prompts[0], prompts[1], "{told}: prompt of request {i}");
        let errors = [expected, got].map(|o| o.error.as_ref().map(|e| e.message().to_owned()));
        assert_eq!(errors[0], errors[1], "{told}: request {i}");
    }
}

/// Requests of every kind, some of which end early.
fn traffic(count: usize, text: bool) -> Vec<Request> {
    let mut random = Random(11);
    let mut request = || {
        let length = random.range(1, 36);
        let prompt: Vec<u32> = (0..length).map(|_| random.range(3, 300) as u32).collect();
        let mut request = greedy(&prompt, random.range(1, 28) as u32);
        let params = &mut request.params;
        params.ignore_eos = random.chance(50);
        if random.chance(50) {
            params.temperature = Some(1.3);
            params.seed = Some(random.range(0, 1000) as i64);
            params.top_k = random.chance(50).then_some(40);
        }
        if random.chance(40) {
            params.stop_token_ids = (0..60).map(|_| TokenId(random.range(0, 380) as u32)).collect();
            params.min_tokens = random.chance(50).then_some(3).filter(|_| length > 3);
            params.max_tokens = Some(20);
        }
        params.logprobs = random.chance(30).then_some(random.range(0, 5) as i32);
        params.prompt_logprobs = random.chance(15).then_some(2);
        params.n = random.chance(15).then_some(2).filter(|_| params.temperature != Some(0.0));
        params.repetition_penalty = random.chance(10).then_some(1.4);
        if random.chance(15) {
            params.logit_bias.insert(TokenId(random.range(0, 300) as u32), 6.0);
        }
        if text && random.chance(30) {
            params.stop = vec!["a".into(), "the".into()];
        }
        request
    };
    (0..count).map(|_| request()).collect()
}

fn waiting(mut options: EngineOptions) -> EngineOptions {
    options.async_scheduling = false;
    options
}

/// Many requests at once, in few blocks and places: preempted, admitted late, ended early.
#[test]
fn steps_ahead_give_what_steps_in_turn_give() {
    let test = "cuda::ahead::steps_ahead_give_what_steps_in_turn_give";
    on_stand_in(test, &[("VRUST_EMU_SEED", "5")], || {
        for (case, text) in [("llama3", true), ("qwen3-bf16", false)] {
            let mut tight = on_cuda(options(case));
            tight.batch_invariant = true;
            tight.num_kv_blocks = Some(10);
            tight.max_model_len = Some(100);
            tight.max_num_seqs = 5;
            tight.max_num_batched_tokens = 24;
            tight.debug.poison_free_blocks = true;
            tight.debug.shuffle_blocks = Some(2);
            let engine = ready(waiting(tight.clone()));
            let fed = || count("kernel:take_tokens");
            let before = fed();
            let expected = run(&engine, traffic(24, text));
            // A launch with prompts to score takes them the same way.
            let in_turn = fed() - before;
            drop(engine);
            let engine = ready(tight);
            let got = run(&engine, traffic(24, text));
            assert!(fed() - before - in_turn > in_turn + 20, "steps ran ahead");
            assert_same(&expected, &got, case);
            // Not one at a time either.
            let few = traffic(24, text).into_iter().step_by(7);
            let alone: Vec<_> = few.map(|request| run_one(&engine, request)).collect();
            let expected: Vec<_> = expected.into_iter().step_by(7).collect();
            assert_same(&expected, &alone, "alone");
        }
    });
}

/// What was cached by steps in flight is right: prompts that continue what was generated find it.
#[test]
fn what_steps_ahead_cache_is_what_was_generated() {
    on_stand_in("cuda::ahead::what_steps_ahead_cache_is_what_was_generated", &[], || {
        let mut cached = on_cuda(options("llama3"));
        cached.dtype = ModelDType::Float32;
        cached.block_size = 8;
        cached.debug.poison_free_blocks = true;
        let mut fresh = waiting(cached.clone());
        fresh.enable_prefix_caching = false;
        let (cached, fresh) = (ready(cached), ready(fresh));
        let ended = |request: &mut Request, at: u32| {
            // Ends at a token that it is known to give.
            request.params.stop_token_ids = vec![TokenId(at)];
        };
        for length in 1..17 {
            let prompt: Vec<u32> = (0..length).map(|i| 5 + 7 * i).collect();
            let all = run_one(&fresh, greedy(&prompt, 18)).only().tokens.clone();
            let mut request = greedy(&prompt, 18);
            ended(&mut request, all[11]);
            let first = run_one(&cached, request);
            let mut longer = prompt.clone();
            longer.extend(&first.only().tokens);
            longer.push(9);
            let mut next = greedy(&longer, 6);
            next.params.logprobs = Some(2);
            let expected = run_one(&fresh, next.clone());
            let got = run_one(&cached, next);
            assert_same(&[expected], std::slice::from_ref(&got), &format!("{length}"));
            let usage = got.only().finished.as_ref().unwrap().usage;
            let reusable = (longer.len() - 1) as u32 / 8 * 8;
            assert!(usage.cached_tokens + 8 >= reusable, "{usage:?} of {}", longer.len());
        }
    });
}

/// Aborted, overdue and failed while a step of theirs runs: each ends once, the others never
/// notice, and the blocks come back.
#[test]
fn requests_end_while_their_steps_run() {
    on_stand_in("cuda::ahead::requests_end_while_their_steps_run", &[], || {
        let mut small = on_cuda(options("llama3"));
        small.num_kv_blocks = Some(40);
        small.max_model_len = Some(200);
        small.debug.poison_free_blocks = true;
        let request = |i: u32| greedy(&[5 + i, 9, 14], 90);
        let expected = run(&ready(waiting(small.clone())), (0..6).map(request).collect());
        let engine = ready(small);
        let queue = engine.default_queue();
        let mut requests: Vec<_> = (0..6).map(request).collect();
        requests[1].deadline = Some(Duration::from_millis(30));
        // All its tokens are masked: the device finds none, and the host says why.
        requests[2].params.allowed_token_ids = Some(vec![TokenId(7)]);
        requests[2].params.stop_token_ids = vec![TokenId(7)];
        requests[2].params.min_tokens = Some(5);
        let ids: Vec<_> = requests.into_iter().map(|r| engine.submit(r, queue).unwrap()).collect();
        let mut consumer = Consumer::default();
        while consumer.outcomes.get(&ids[0]).is_none_or(|o| o.choices[&0].tokens.len() < 4) {
            let mut events = Vec::new();
            queue.drain(Some(Duration::from_millis(100)), 1, &mut events).unwrap();
            events.into_iter().for_each(|event| consumer.take(event));
        }
        engine.abort(ids[0]).unwrap();
        consumer.wait(queue, &ids);
        let outcome = |i: usize| &consumer.outcomes[&ids[i]];
        let reason = |i: usize| outcome(i).only().finished.as_ref().unwrap().reason.clone();
        assert_eq!(reason(0), FinishReason::Abort);
        assert_eq!(reason(1), FinishReason::Deadline);
        let error = outcome(2).error.as_ref().unwrap();
        assert!(error.message().contains("leave no token"), "{error}");
        for (i, expected) in expected.iter().enumerate() {
            let expected = &expected.only().tokens;
            match i {
                0 | 1 => assert!(expected.starts_with(&outcome(i).only().tokens), "{i}"),
                2 => {}
                _ => assert_eq!(outcome(i).only().tokens, *expected, "{i}"),
            }
        }
        // Three that fill the pool.
        let whole = (0..3).map(|i| greedy(&[3 + i; 100], 100)).collect();
        assert!(run(&engine, whole).iter().all(|o| o.only().tokens.len() == 100));
    });
}
