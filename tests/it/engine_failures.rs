//! What goes wrong stays where it went wrong.

use std::time::Duration;

use vrust::engine::{Engine, EngineState, EventKind, Polled, ShutdownMode};
use vrust::error::ErrorKind;
use vrust::request::FinishReason;

use crate::engine_support::{Consumer, greedy, options, ready, run_one};

const PROMPT: &[u32] = &[5, 9, 14, 33, 71];

#[test]
fn a_panic_in_the_worker_fails_the_engine_and_nothing_else() {
    let mut failing = options("llama3");
    failing.debug.panic_at_step = Some(3);
    let engine = ready(failing);
    let queue = engine.default_queue();
    let ids: Vec<_> = (0..4).map(|_| engine.submit(greedy(PROMPT, 50), queue).unwrap()).collect();
    let other = ready(options("llama3"));
    let mut consumer = Consumer::default();
    let mut engine_failed = false;
    loop {
        let mut events = Vec::new();
        let polled = queue.drain(Some(Duration::from_secs(30)), 64, &mut events).unwrap();
        for event in events {
            engine_failed |= matches!(event.kind, EventKind::EngineFailed(_));
            consumer.take(event);
        }
        if polled == Polled::Closed {
            break;
        }
    }
    assert!(engine_failed);
    for id in ids {
        let outcome = &consumer.outcomes[&id];
        assert_eq!(outcome.last_events, 1);
        assert_eq!(outcome.error.as_ref().unwrap().kind(), ErrorKind::EngineFailed);
    }
    assert_eq!(engine.state(), EngineState::Failed);
    let refused = engine.submit(greedy(PROMPT, 5), queue).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::EngineFailed);
    assert_eq!(engine.wait_ready(None).unwrap_err().kind(), ErrorKind::Panic);
    run_one(&other, greedy(PROMPT, 5));
}

#[test]
fn nan_logits_end_one_request_and_no_other() {
    let mut options = options("llama3");
    options.debug.nan_logits_for = Some(13);
    let engine = ready(options);
    let queue = engine.default_queue();
    let healthy = run_one(&engine, greedy(PROMPT, 20));
    let mut cursed = greedy(&[7; 40], 20);
    cursed.user_data = 13;
    let ids: Vec<_> = [greedy(PROMPT, 20), cursed, greedy(&[7; 40], 10)]
        .into_iter()
        .map(|r| engine.submit(r, queue).unwrap())
        .collect();
    let mut consumer = Consumer::default();
    consumer.wait(queue, &ids);
    let error = consumer.outcomes[&ids[1]].error.clone().expect("NaN logits are an error");
    assert!(error.message().contains("NaN"), "{error}");
    assert_eq!(consumer.outcomes[&ids[0]].only().tokens, healthy.only().tokens);
    assert_eq!(consumer.outcomes[&ids[2]].only().tokens.len(), 10);
    assert_eq!(engine.state(), EngineState::Ready);
}

#[test]
fn drain_finishes_what_is_live_and_refuses_the_rest() {
    let engine = ready(options("llama3"));
    let queue = engine.default_queue();
    let ids: Vec<_> = (0..5).map(|_| engine.submit(greedy(PROMPT, 40), queue).unwrap()).collect();
    assert!(engine.shutdown(ShutdownMode::Drain, Some(Duration::from_secs(60))).unwrap());
    assert_eq!(engine.state(), EngineState::Closed);
    let refused = engine.submit(greedy(PROMPT, 5), queue).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ShuttingDown);
    let mut consumer = Consumer::default();
    consumer.wait(queue, &ids);
    for id in ids {
        assert_eq!(consumer.outcomes[&id].only().tokens.len(), 40);
    }
}

#[test]
fn abort_shutdown_and_drop_end_every_request_once() {
    for by_drop in [false, true] {
        let engine = ready(options("llama3"));
        let queue = engine.default_queue().clone();
        let ids: Vec<_> =
            (0..30).map(|_| engine.submit(greedy(PROMPT, 100), &queue).unwrap()).collect();
        match by_drop {
            true => drop(engine),
            false => assert!(engine.shutdown(ShutdownMode::Abort, None).unwrap()),
        }
        let mut consumer = Consumer::default();
        consumer.wait(&queue, &ids);
        let aborted = ids.iter().filter(|id| {
            let finished = consumer.outcomes[id].choices[&0].finished.as_ref().unwrap();
            finished.reason == FinishReason::Abort
        });
        assert!(aborted.count() > 0);
        assert_eq!(queue.drain(None, 1, &mut Vec::new()).unwrap(), Polled::Closed);
    }
}

#[test]
fn an_engine_can_be_dropped_while_it_loads() {
    for _ in 0..5 {
        let engine = Engine::create(options("llama3")).unwrap();
        let queue = engine.default_queue().clone();
        let id = engine.submit(greedy(PROMPT, 5), &queue).unwrap();
        drop(engine);
        Consumer::default().wait(&queue, &[id]);
    }
}

#[test]
fn a_pool_without_room_for_one_block_is_refused() {
    let mut small = options("llama3");
    small.num_kv_blocks = None;
    small.kv_cache_memory_bytes = Some(100);
    let engine = Engine::create(small).unwrap();
    let error = engine.wait_ready(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.message().contains("kv_cache_memory_bytes") && error.message().contains("100"));
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |change: &dyn Fn(&mut vrust::config::EngineOptions), word: &str| {
        let mut options = options("llama3");
        change(&mut options);
        let error = match Engine::create(options) {
            Err(error) => error,
            Ok(engine) => engine.wait_ready(None).unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(word), "{error}");
    };
    refused(&|o| o.block_size = 12, "block_size");
    refused(&|o| o.block_size = 1024, "block_size");
    refused(&|o| o.max_num_seqs = 0, "max_num_seqs");
    refused(&|o| o.max_num_batched_tokens = 0, "max_num_batched_tokens");
    refused(&|o| o.max_model_len = Some(100_000), "max_model_len");
    refused(&|o| o.num_kv_blocks = Some(1 << 40), "num_kv_blocks");
    let missing = Engine::create(vrust::config::EngineOptions::new("no/such/folder"));
    let error = missing.err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Io), "{error}");
    assert!(error.message().contains("no/such/folder"), "{error}");
}

#[test]
fn a_queue_of_another_engine_is_refused() {
    let (one, two) = (ready(options("llama3")), ready(options("llama3")));
    let error = one.submit(greedy(PROMPT, 5), two.default_queue()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
