//! What goes wrong on the device: one clear error, nothing left behind, and everything else goes
//! on.

use std::time::Duration;

use vrust::config::{EngineOptions, ModelDType};
use vrust::engine::{Engine, EngineState, EventKind, Polled};
use vrust::error::{Error, ErrorKind};

use super::stand_in::{assert_nothing_left, count, fail, on_cuda, on_stand_in, wide};
use crate::engine_support::{Consumer, Outcome, greedy, options, ready, run_one};

const PROMPT: &[u32] = &[5, 9, 14, 33, 71];

#[test]
fn no_memory_at_any_allocation() {
    on_stand_in("cuda::failures::no_memory_at_any_allocation", &[], || {
        let cpu = ready(options("llama3"));
        // Modules and page-locked memory are allocations too, of which there are fewer than 24.
        let before = count("allocs");
        let loaded = ready(on_cuda(options("llama3")));
        let calls = count("allocs") - before + 24;
        drop(loaded);
        let mut failed = 0;
        for nth in 1..=calls {
            fail("alloc", nth);
            let engine = Engine::create(on_cuda(options("llama3"))).unwrap();
            let loaded = engine.wait_ready(None);
            fail("alloc", 0);
            if let Err(error) = loaded {
                let kinds = [ErrorKind::DeviceMemory, ErrorKind::OutOfMemory];
                assert!(kinds.contains(&error.kind()), "call {nth}: {:?} {error}", error.kind());
                assert!(error.message().contains("memory"), "{error}");
                assert_eq!(engine.state(), EngineState::Failed);
                failed += 1;
            }
            // Else less than the usual was asked for, or all calls were made.
            drop(engine);
            assert_nothing_left(&format!("after allocation {nth} failed"));
        }
        assert!(failed >= 3, "{failed} of {calls} allocations");
        println!("{failed} of {calls} allocations failed, one at a time");
        run_one(&cpu, greedy(PROMPT, 5));
        run_one(&ready(on_cuda(options("llama3"))), greedy(PROMPT, 5));
    });
}

#[test]
fn a_model_larger_than_the_device_says_how_much_is_missing() {
    let env = [("VRUST_EMU_MEMORY", "5000000")];
    let test = "cuda::failures::a_model_larger_than_the_device_says_how_much_is_missing";
    on_stand_in(test, &env, || {
        let mut options = on_cuda(options("llama3"));
        options.num_kv_blocks = Some(1 << 20);
        let engine = Engine::create(options).unwrap();
        let error = engine.wait_ready(None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeviceMemory);
        for word in ["takes", "5000000 bytes are free"] {
            assert!(error.message().contains(word), "{error}");
        }
    });
}

/// What is too large for the device, or leaves nothing: field, limit and value.
#[test]
fn a_kv_cache_of_a_bad_size_is_an_error_that_names_field_limit_and_value() {
    let test =
        "cuda::failures::a_kv_cache_of_a_bad_size_is_an_error_that_names_field_limit_and_value";
    on_stand_in(test, &[("VRUST_EMU_MEMORY", "60000000")], || {
        let refused = |change: &dyn Fn(&mut EngineOptions)| {
            let mut options = on_cuda(options("llama3"));
            options.num_kv_blocks = None;
            options.max_num_batched_tokens = 256;
            options.max_num_seqs = 64;
            change(&mut options);
            let engine = Engine::create(options);
            let error = match engine {
                Ok(engine) => engine.wait_ready(None).unwrap_err(),
                Err(error) => error,
            };
            assert_nothing_left("after an engine that was refused");
            error
        };
        let says = |error: &Error, field: &str, value: &str| {
            assert_eq!(error.detail()["field"], field, "{error}");
            assert!(error.detail().contains_key("limit"), "{error}");
            assert!(error.detail().contains_key("value"), "{error}");
            for word in [field, value] {
                assert!(error.message().contains(word), "{error} does not say {word}");
            }
            println!("{error}");
        };
        let error = refused(&|o| {
            o.max_num_seqs = 1 << 12;
            o.kv_cache_memory_bytes = Some(1 << 40);
        });
        assert_eq!(error.kind(), ErrorKind::DeviceMemory, "{error}");
        says(&error, "kv_cache_memory_bytes", "60000000 bytes are free");
        let error = refused(&|o| o.kv_cache_memory_bytes = Some(1000));
        says(&error, "kv_cache_memory_bytes", "1000");
        let error = refused(&|o| o.gpu_memory_utilization = 0.001);
        assert_eq!(error.kind(), ErrorKind::DeviceMemory, "{error}");
        says(&error, "gpu_memory_utilization", "0.001");
        for bad in [0.0, -0.5, 1.01, f64::NAN] {
            let error = refused(&|o| o.gpu_memory_utilization = bad);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert_eq!(error.detail()["field"], "gpu_memory_utilization");
            assert!(error.message().contains(&bad.to_string()), "{error}");
            assert!(error.message().contains("at most 1"), "{error}");
        }
        run_one(&ready(on_cuda(options("llama3"))), greedy(PROMPT, 5));
    });
}

/// Graphs are made while the engine serves: without memory for one it goes on without it.
#[test]
fn no_memory_for_a_graph_is_no_error() {
    on_stand_in("cuda::failures::no_memory_for_a_graph_is_no_error", &[], || {
        let tokens = |engine: &Engine| run_one(engine, greedy(PROMPT, 30)).only().tokens.clone();
        let expected = tokens(&ready(options("llama3")));
        let engine = ready(on_cuda(options("llama3")));
        fail("alloc", 1);
        assert_eq!(tokens(&engine), expected);
        assert_eq!(count("graphs"), 0, "the only allocation of a step is the graph's");
        fail("alloc", 0);
        assert_eq!(tokens(&engine), expected);
        assert_eq!(count("graphs"), 0, "nobody asks again");
        drop(engine);
        assert_nothing_left("after the engine");
    });
}

/// What fails, and which call of its kind.
const FAULTS: [(&str, u64); 10] = [
    ("launch", 1),
    ("launch", 25),
    ("copy", 2),
    ("copy", 9),
    ("sync", 3),
    ("lost", 40),
    ("lost", 130),
    ("bfloat16 launch", 9),
    ("bfloat16 copy", 5),
    ("bfloat16 lost", 70),
];

/// A launch, a copy or a wait that fails, a device that is lost: at several places of a step.
#[test]
fn a_failing_step_fails_its_engine_alone() {
    on_stand_in("cuda::failures::a_failing_step_fails_its_engine_alone", &[], || {
        let cpu = ready(options("llama3"));
        let (_dir, bf16) = wide(ModelDType::BFloat16);
        for (what, nth) in FAULTS {
            let (options_of, what) = match what.strip_prefix("bfloat16 ") {
                // One at a time, so that no step has a size that the run before had not: cuBLASLt's
                // algorithms would be tried for it, and one that fails there is only passed over.
                Some(what) => (EngineOptions { max_num_seqs: 1, ..bf16.clone() }, what),
                None => (options("llama3"), what),
            };
            // Once, so that cuBLASLt's algorithms are known.
            run_one(&ready(on_cuda(options_of.clone())), greedy(PROMPT, 5));
            let engine = ready(on_cuda(options_of));
            fail(what, nth);
            check_failing(&engine, &format!("{what} {nth}"));
            if what != "lost" {
                fail(what, 0);
            }
            // A device that is lost stays so for all who use it, and gives everything back.
            drop(engine);
            assert_nothing_left(&format!("after {what} {nth} failed"));
            run_one(&cpu, greedy(PROMPT, 5));
            if what == "lost" {
                let again = Engine::create(on_cuda(options("llama3"))).unwrap();
                let error = again.wait_ready(None).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Device, "{error}");
                drop(again);
                assert_nothing_left("after an engine on a lost device");
                fail(what, 0);
            }
            run_one(&ready(on_cuda(options("llama3"))), greedy(PROMPT, 5));
        }
    });
}

/// Every request ends with one error, the engine says which call failed.
fn check_failing(engine: &Engine, told: &str) {
    let queue = engine.default_queue();
    let submit = |_| match engine.submit(greedy(PROMPT, 50), queue) {
        Ok(id) => Some(id),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::EngineFailed, "it may fail as soon as this");
            None
        }
    };
    let ids: Vec<_> = (0..4).filter_map(submit).collect();
    assert!(!ids.is_empty(), "{told}");
    let mut consumer = Consumer::default();
    let mut reasons = Vec::new();
    loop {
        let mut events = Vec::new();
        let polled = queue.drain(Some(Duration::from_secs(60)), 64, &mut events).unwrap();
        for event in events {
            if let EventKind::EngineFailed(reason) = &event.kind {
                reasons.push(reason.clone());
            }
            consumer.take(event);
        }
        match polled {
            Polled::Closed => break,
            _ => {
                assert!(consumer.outcomes.len() <= ids.len());
                let served =
                    |outcome: &Outcome| outcome.last_events == 1 && outcome.error.is_none();
                let served = ids.iter().all(|id| consumer.outcomes.get(id).is_some_and(served));
                assert!(!served, "{told}: nothing has failed");
            }
        }
    }
    assert_eq!(reasons.len(), 1, "{told}: one error");
    for id in ids {
        let outcome = &consumer.outcomes[&id];
        assert_eq!(outcome.last_events, 1, "{told}");
        assert_eq!(outcome.error.as_ref().unwrap().kind(), ErrorKind::EngineFailed, "{told}");
    }
    assert_eq!(engine.state(), EngineState::Failed, "{told}");
    let error = engine.wait_ready(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device, "{told}: {error}");
    let called = ["the CUDA driver's cu", "cublasLtMatmul"];
    assert!(called.iter().any(|call| error.message().contains(call)), "{told}: {error}");
    println!("{told}: {error}");
}
