//! Budgets, seats, order, deadlines, aborts and memory, end to end.

use std::time::{Duration, Instant};

use vrust::config::{BackendKind, EngineOptions, SchedulingPolicy};
use vrust::engine::{Engine, EventQueue, Polled, QueueOptions, ShutdownMode};
use vrust::error::{Error, ErrorKind};
use vrust::ids::RequestId;
use vrust::request::{FinishReason, Request};

use crate::engine_prefix_cache::{TINY, dummy, ids};
use crate::engine_support::{
    ChoiceOutcome, Consumer, Outcome, greedy, options, ready, run, run_one,
};

fn reason(outcome: &Outcome) -> &FinishReason {
    &finished(outcome.only()).reason
}

fn finished(choice: &ChoiceOutcome) -> &vrust::engine::Finished {
    choice.finished.as_ref().unwrap()
}

/// Polls until the request has its first token.
fn wait_first_token(queue: &EventQueue, consumer: &mut Consumer, id: RequestId) {
    let has_token = |c: &Consumer| c.outcomes.get(&id).is_some_and(|o| !o.choices.is_empty());
    while !has_token(consumer) {
        let mut events = Vec::new();
        queue.drain(Some(Duration::from_secs(30)), 64, &mut events).unwrap();
        events.into_iter().for_each(|e| consumer.take(e));
    }
}

/// An engine with one seat, and a request that keeps it until it is aborted.
fn occupied(change: impl FnOnce(&mut EngineOptions)) -> (Engine, Consumer, RequestId) {
    let (_folder, mut options) = dummy(TINY);
    options.max_num_seqs = 1;
    change(&mut options);
    let engine = ready(options);
    let mut consumer = Consumer::default();
    let id = engine.submit(greedy(&[1], 4000), engine.default_queue()).unwrap();
    wait_first_token(engine.default_queue(), &mut consumer, id);
    (engine, consumer, id)
}

#[test]
fn a_long_prompt_is_cut_to_the_budget() {
    for (budget, threshold, steps) in [(64, 0, 16), (100, 0, 10), (2048, 0, 1), (2048, 50, 1)] {
        let (_folder, mut options) = dummy(TINY);
        options.max_num_batched_tokens = budget;
        options.long_prefill_token_threshold = threshold;
        let engine = ready(options);
        run_one(&engine, greedy(&ids(1, 1000), 1));
        let stats = engine.stats();
        assert_eq!((stats.token_rows, stats.steps, stats.logits_rows), (1000, steps, 1));
    }
}

#[test]
fn whole_prompts_need_the_budget() {
    let (_folder, mut options) = dummy(TINY);
    options.enable_chunked_prefill = false;
    options.max_num_batched_tokens = 100;
    let engine = Engine::create(options.clone()).unwrap();
    let error = engine.wait_ready(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    says(&error, &["max_num_batched_tokens", "100", "4096"]);
    options.max_model_len = Some(100);
    let engine = ready(options);
    run(&engine, (0..3).map(|i| greedy(&ids(i, 90), 1)).collect());
    let stats = engine.stats();
    assert_eq!((stats.token_rows, stats.steps), (270, 3));
}

#[test]
fn no_more_sequences_run_than_there_are_seats() {
    let (_folder, mut options) = dummy(TINY);
    options.max_num_seqs = 3;
    let engine = ready(options);
    let outcomes = run(&engine, (0..12).map(|i| greedy(&ids(i, 20), 200)).collect());
    let spans: Vec<_> = outcomes.iter().map(|o| finished(o.only()).times).collect();
    let at_once =
        |t: u64| spans.iter().filter(|s| s.scheduled_ns <= t && t <= s.last_token_ns).count();
    let most = spans.iter().map(|s| at_once(s.scheduled_ns)).max().unwrap();
    assert_eq!(most, 3);
}

#[test]
fn lower_priorities_run_first_and_equals_in_order_of_coming() {
    let (engine, mut consumer, blocker) =
        occupied(|o| o.scheduling_policy = SchedulingPolicy::Priority);
    let queue = engine.default_queue();
    let priorities = [3, -1, 2, -1, 0];
    let submitted: Vec<_> = priorities
        .iter()
        .map(|&priority| engine.submit(Request { priority, ..greedy(&[2, 3], 5) }, queue).unwrap())
        .collect();
    engine.abort(blocker).unwrap();
    consumer.wait(queue, &submitted);
    let began = |i: &usize| finished(consumer.outcomes[&submitted[*i]].only()).times.scheduled_ns;
    let mut order: Vec<usize> = (0..priorities.len()).collect();
    order.sort_by_key(began);
    assert_eq!(order, [1, 3, 4, 2, 0]);
}

#[test]
fn without_priorities_the_order_is_that_of_coming() {
    let (engine, mut consumer, blocker) = occupied(|_| ());
    let queue = engine.default_queue();
    let submitted: Vec<_> =
        (0..6).map(|i| engine.submit(greedy(&[2, 3, i], 5), queue).unwrap()).collect();
    engine.abort(blocker).unwrap();
    consumer.wait(queue, &submitted);
    let began = |id| finished(consumer.outcomes[&id].only()).times.scheduled_ns;
    assert!(submitted.windows(2).all(|w| began(w[0]) < began(w[1])));
}

#[test]
fn a_full_queue_counts_refusals_and_an_abort_makes_room() {
    let (engine, mut consumer, blocker) = occupied(|o| o.max_num_queued_reqs = 2);
    let queue = engine.default_queue();
    let waiting = [(); 2].map(|()| engine.submit(greedy(&[2], 5), queue).unwrap());
    let error = engine.submit(greedy(&[2], 5), queue).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    assert_eq!(
        (error.detail()["limit"].as_u64(), error.detail()["value"].as_u64()),
        (Some(2), Some(2))
    );
    assert_eq!(engine.stats().rejected_queue_full, 1);
    engine.abort(waiting[0]).unwrap();
    consumer.wait(queue, &waiting[..1]);
    let third = engine.submit(greedy(&[2], 5), queue).unwrap();
    engine.abort(blocker).unwrap();
    consumer.wait(queue, &[blocker, waiting[1], third]);
}

#[test]
fn a_deadline_passes_in_the_waiting_queue() {
    let (engine, mut consumer, blocker) = occupied(|_| ());
    let queue = engine.default_queue();
    let mut request = greedy(&[2], 5);
    request.deadline = Some(Duration::from_millis(1));
    let late = engine.submit(request.clone(), queue).unwrap();
    consumer.wait(queue, &[late]);
    let outcome = &consumer.outcomes[&late];
    assert_eq!(*reason(outcome), FinishReason::Deadline);
    assert!(outcome.only().tokens.is_empty());
    assert_eq!(finished(outcome.only()).times.scheduled_ns, 0, "it never had its turn");
    engine.abort(blocker).unwrap();
    consumer.wait(queue, &[blocker]);
    // One that is long enough changes nothing, and an endless one neither.
    for deadline in [Duration::from_secs(3600), Duration::MAX] {
        request.deadline = Some(deadline);
        assert_eq!(*reason(&run_one(&engine, request.clone())), FinishReason::Length);
    }
    assert_eq!(engine.stats().finished_deadline, 1);
}

#[test]
fn a_deadline_passes_while_a_full_queue_holds_the_request() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let slow = engine.create_queue(QueueOptions { max_undrained_bytes: 200 });
    let mut request = greedy(&[2], 4000);
    request.deadline = Some(Duration::from_millis(50));
    let id = engine.submit(request, &slow).unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    while engine.stats().live_requests > 0 {
        assert!(Instant::now() < patience, "nobody ended it");
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut consumer = Consumer::default();
    consumer.wait(&slow, &[id]);
    assert_eq!(*reason(&consumer.outcomes[&id]), FinishReason::Deadline);
    assert_eq!(engine.stats().kv_blocks_used, 0);
}

#[test]
fn an_abort_ends_a_request_within_one_step() {
    for _ in 0..20 {
        let (engine, mut consumer, id) = occupied(|_| ());
        engine.abort(id).unwrap();
        let steps = engine.stats().steps;
        (0..100).for_each(|_| engine.abort(id).unwrap());
        consumer.wait(engine.default_queue(), &[id]);
        assert_eq!(*reason(&consumer.outcomes[&id]), FinishReason::Abort);
        let stats = engine.stats();
        assert!(stats.steps - steps <= 1, "{} steps after the abort", stats.steps - steps);
        assert_eq!((stats.kv_blocks_used, stats.live_requests), (0, 0));
        assert_eq!(stats.finished_abort, 1);
    }
}

#[test]
fn a_waiting_request_can_be_aborted() {
    let (engine, mut consumer, blocker) = occupied(|_| ());
    let queue = engine.default_queue();
    let id = engine.submit(greedy(&[2], 5), queue).unwrap();
    engine.abort(id).unwrap();
    consumer.wait(queue, &[id]);
    assert_eq!(*reason(&consumer.outcomes[&id]), FinishReason::Abort);
    engine.abort_all();
    consumer.wait(queue, &[blocker]);
}

#[test]
fn texts_that_are_still_being_encoded_are_aborted_and_pass_their_deadlines() {
    let engine = ready(options("llama3"));
    let queue = engine.default_queue();
    let long = "a long text ".repeat(20_000);
    let mut consumer = Consumer::default();
    for n in [1, 3] {
        let mut request = crate::engine_support::text(&long, 5);
        request.params.temperature = Some(1.0);
        request.params.n = Some(n);
        let ids = [(); 4].map(|()| engine.submit(request.clone(), queue).unwrap());
        ids.iter().for_each(|id| engine.abort(*id).unwrap());
        consumer.wait(queue, &ids);
        for id in &ids {
            let choices = &consumer.outcomes[id].choices;
            assert_eq!(choices.len(), n as usize, "each choice ends");
            let aborted = |c: &ChoiceOutcome| finished(c).reason == FinishReason::Abort;
            assert!(choices.values().all(aborted));
        }
    }
    let mut late = crate::engine_support::text("short", 5);
    late.deadline = Some(Duration::ZERO);
    assert_eq!(*reason(&run_one(&engine, late)), FinishReason::Deadline);
    assert_eq!(engine.stats().live_requests, 0);
}

#[test]
fn preemption_is_counted_and_changes_nothing() {
    let requests = || -> Vec<Request> {
        let one = |i| {
            let mut request = greedy(&ids(i, 60), 60);
            request.params.logprobs = Some(2);
            request.params.prompt_logprobs = Some(1);
            request.params.frequency_penalty = Some(0.5);
            request
        };
        (0..4).map(one).collect()
    };
    let (_folder, mut options) = dummy(TINY);
    options.max_model_len = Some(128);
    let ample = ready(options.clone());
    let expected: Vec<_> = requests().into_iter().map(|r| run_one(&ample, r)).collect();
    assert_eq!(ample.stats().num_preemptions, 0);
    options.num_kv_blocks = Some(17);
    options.debug.poison_free_blocks = true;
    let tight = ready(options);
    let outcomes = run(&tight, requests());
    let stats = tight.stats();
    assert!(stats.num_preemptions > 0, "four times 8 blocks do not fit in 17");
    let text = tight.prometheus();
    let shown = text.lines().find(|l| l.starts_with("vllm:num_preemptions_total{")).unwrap();
    let value: f64 = shown.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(value, stats.num_preemptions as f64);
    for (got, expected) in outcomes.iter().zip(&expected) {
        assert_eq!(got.only().tokens, expected.only().tokens);
        assert_eq!(got.only().logprobs, expected.only().logprobs);
        assert_eq!(got.prompt_logprobs, expected.prompt_logprobs);
        assert_eq!(*reason(got), FinishReason::Length);
    }
    assert_eq!((stats.finished_length, stats.generation_tokens), (4, 240));
}

#[test]
fn closing_a_full_queue_lets_its_requests_end() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let slow = engine.create_queue(QueueOptions { max_undrained_bytes: 200 });
    engine.submit(greedy(&[2], 500), &slow).unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    while slow.undrained_bytes() <= 200 {
        assert!(Instant::now() < patience);
        std::thread::yield_now();
    }
    slow.close();
    let drained = engine.shutdown(ShutdownMode::Drain, Some(Duration::from_secs(30))).unwrap();
    assert!(drained, "a held request of a closed queue must not hang the engine");
}

#[test]
fn a_full_queue_makes_a_drain_time_out_and_an_abort_ends_it() {
    let (_folder, options) = dummy(TINY);
    let engine = ready(options);
    let slow = engine.create_queue(QueueOptions { max_undrained_bytes: 200 });
    let id = engine.submit(greedy(&[2], 4000), &slow).unwrap();
    let drained = engine.shutdown(ShutdownMode::Drain, Some(Duration::from_millis(100))).unwrap();
    assert!(!drained, "nobody polls");
    assert!(engine.shutdown(ShutdownMode::Abort, None).unwrap());
    let mut consumer = Consumer::default();
    consumer.wait(&slow, &[id]);
    assert_eq!(*reason(&consumer.outcomes[&id]), FinishReason::Abort);
    assert_eq!(slow.drain(None, 1, &mut Vec::new()).unwrap(), Polled::Closed);
}

#[test]
fn the_requests_of_a_queue_that_goes_away_are_aborted() {
    let (engine, mut consumer, other) = occupied(|o| o.max_num_seqs = 8);
    let gone = engine.create_queue(QueueOptions { max_undrained_bytes: 1 << 20 });
    for _ in 0..5 {
        engine.submit(greedy(&[3], 4000), &gone).unwrap();
    }
    gone.close();
    engine.abort_queue(&gone);
    // Closed queues take no events, and what is sent there ends at once.
    engine.submit(greedy(&[3], 4000), &gone).unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    while engine.stats().live_requests > 1 {
        assert!(Instant::now() < patience, "{:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    engine.abort(other).unwrap();
    consumer.wait(engine.default_queue(), &[other]);
}

#[test]
fn a_drain_while_loading_finishes_what_came_before() {
    let engine = Engine::create(options("llama3")).unwrap();
    let queue = engine.default_queue();
    let id = engine.submit(greedy(&[5], 30), queue).unwrap();
    assert!(!engine.shutdown(ShutdownMode::Drain, Some(Duration::ZERO)).unwrap());
    assert!(engine.wait_ready(None).unwrap());
    assert!(engine.info().is_ok(), "it drains, but it has loaded");
    assert_eq!(engine.submit(greedy(&[5], 1), queue).unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert!(engine.shutdown(ShutdownMode::Drain, None).unwrap());
    let mut consumer = Consumer::default();
    consumer.wait(queue, &[id]);
    assert_eq!(*reason(&consumer.outcomes[&id]), FinishReason::Length);
}

#[test]
fn requests_end_once_when_the_engine_fails_to_load_or_stops_amid_tokenization() {
    for stop in [false, true] {
        let mut options = options("llama3");
        if !stop {
            options.kv_cache_memory_bytes = Some(1);
            options.num_kv_blocks = None;
        }
        let engine = Engine::create(options).unwrap();
        let queue = engine.default_queue().clone();
        let text = |i: usize| crate::engine_support::text(&"too long a text ".repeat(i * 40), 5);
        let accepted: Vec<_> =
            (1..20).filter_map(|i| engine.submit(text(i), &queue).ok()).collect();
        if stop {
            std::thread::sleep(Duration::from_millis(3));
        }
        drop(engine);
        Consumer::default().wait(&queue, &accepted);
    }
}

fn says(error: &Error, words: &[&str]) {
    for word in words {
        assert!(error.message().contains(word), "{error} does not say {word}");
    }
}

fn refused(options: EngineOptions) -> Error {
    let engine = Engine::create(options).unwrap();
    engine.wait_ready(None).expect_err("refused")
}

#[test]
fn the_kv_cache_is_as_large_as_asked() {
    let base = || {
        let (folder, mut options) = dummy(TINY);
        options.num_kv_blocks = None;
        (folder, options)
    };
    let info = |options| ready(options).info().unwrap();
    // Keys and values of 16 positions, one layer, one head of 16 elements in f32.
    let block = 16 * 2 * 16 * 4;
    let (_folder, mut options) = base();
    options.kv_cache_memory_bytes = Some(10 * block + block - 1);
    let facts = info(options.clone());
    assert_eq!(facts["num_kv_blocks"], 10);
    assert_eq!(facts["kv_cache_bytes"].as_u64(), Some(10 * block));
    assert_eq!(facts["max_model_len"], 160, "the largest that fits");

    options.max_model_len = Some(161);
    let error = refused(options.clone());
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    says(&error, &["max_model_len", "161", "160"]);
    options.max_model_len = Some(160);
    assert_eq!(run_one(&ready(options), greedy(&ids(1, 100), 60)).only().tokens.len(), 60);

    // By default no more than all sequences at full length can use.
    let (_folder, mut options) = base();
    options.max_num_seqs = 2;
    assert_eq!(info(options)["num_kv_blocks"], 2 * 4096 / 16);
}

#[test]
fn a_kv_cache_that_memory_cannot_hold_is_refused_on_each_backend() {
    let other = ready(options("llama3"));
    for backend in [BackendKind::Cpu, BackendKind::Reference] {
        let (_folder, mut options) = dummy(TINY);
        options.backend = backend;
        options.num_kv_blocks = Some(1 << 30);
        let error = refused(options.clone());
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        says(&error, &["kv_cache_memory_bytes", "1073741824", &(2048u64 << 30).to_string()]);
        options.num_kv_blocks = None;
        options.max_num_seqs = 1 << 16;
        options.kv_cache_memory_bytes = Some(u64::MAX);
        // Bounded by what can be used: 2^16 sequences of 4,096 positions.
        let error = refused(options);
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        run_one(&other, greedy(&[5], 3));
    }
}
