//! What a step asks of the driver.

use std::time::Duration;

use vrust::config::{EngineOptions, ModelDType};
use vrust::engine::Engine;

use super::stand_in::{
    Report, assert_nothing_left, count, cublaslt, is_child, on_cuda, on_stand_in, wide,
};
use crate::engine_support::{Outcome, greedy, options, ready, run};

const PROMPT: &[u32] = &[5, 9, 14, 33, 71];

fn tokens(outcomes: &[Outcome]) -> Vec<Vec<u32>> {
    outcomes.iter().map(|outcome| outcome.only().tokens.clone()).collect()
}

/// Nor does anyone but the engine's worker call the driver.
#[test]
fn a_step_allocates_nothing() {
    on_stand_in("cuda::steps::a_step_allocates_nothing", &[], || {
        for dtype in [ModelDType::Float32, ModelDType::BFloat16] {
            let mut options = on_cuda(options("llama3"));
            options.dtype = dtype;
            let engine = ready(options);
            let held = || ["allocs", "bytes", "pinned", "modules", "streams"].map(count);
            let (before, launches) = (held(), count("launches"));
            run(&engine, (1..12).map(|n| greedy(&PROMPT[..1 + n % 5], 4 + n as u32)).collect());
            assert!(count("launches") > launches, "the device was used");
            assert_eq!(held(), before, "{dtype:?}");
        }
        let threads = count("threads");
        assert!((1..=2).contains(&threads), "{threads} threads of two engines");
        assert_nothing_left("after the engines");
    });
}

/// What a run asked of the driver, and its steps.
fn asked(engine: &Engine) -> [u64; 9] {
    let counted = || {
        let page = engine.prometheus();
        let steps = page.lines().find(|line| line.starts_with("vrust:steps_total"));
        let steps = steps.and_then(|line| line.rsplit(' ').next()).unwrap();
        let kinds = [
            "waits",
            "copies_in",
            "copies_out",
            "kernel:sample",
            "replays",
            "allocs",
            "bytes",
            "maps",
        ];
        let mut all = [steps.parse::<f64>().unwrap() as u64; 9];
        all[1..].copy_from_slice(&kinds.map(count));
        all
    };
    // The step after the last one that anybody needs may still run.
    let mut now = counted();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let later = counted();
        if now == later {
            return now;
        }
        now = later;
    }
}

/// In a step of many greedy sequences the host waits once, for the tokens of the step before; two
/// copies go to the device, what was drawn comes back in one; all tokens are drawn at once.
#[test]
fn a_step_of_256_sequences_waits_once() {
    on_stand_in("cuda::steps::a_step_of_256_sequences_waits_once", &[], || {
        let (_dir, bf16) = wide(ModelDType::BFloat16);
        let float32 = EngineOptions { dtype: ModelDType::Float32, ..options("llama3") };
        for (options, maps) in [(float32, 0), (bf16, 2)] {
            let mut options = on_cuda(options);
            options.num_kv_blocks = Some(600);
            options.max_num_seqs = 256;
            options.debug.check_integrity = false;
            let dtype = options.dtype;
            let before = count("maps");
            let engine = ready(options);
            assert_eq!(count("maps") - before, maps, "one for each layer, when loading");
            assert!(count("streams") > 0 && count("pinned") > 0, "own streams, pinned staging");
            let requests = || (0..256).map(|i| greedy(&[5 + i, 9, 14], 12)).collect();
            // Until a run has no size for which cuBLASLt must be asked.
            for attempt in 1.. {
                let (chosen, was) = (cublaslt("vrust_emu_heuristics", 0), asked(&engine));
                run(&engine, requests());
                let now = asked(&engine);
                if cublaslt("vrust_emu_heuristics", 0) != chosen && attempt < 10 {
                    continue;
                }
                let since: [u64; 9] = std::array::from_fn(|i| now[i] - was[i]);
                let [steps, waits, copies_in, copies_out, drawn, replays, rest @ ..] = since;
                println!("{dtype:?}: {steps} steps, {replays} of them graphs, {waits} waits");
                assert!((12..40).contains(&steps), "{steps} steps");
                assert_eq!([waits, copies_out, drawn], [steps; 3], "{dtype:?}: in {steps} steps");
                assert_eq!(copies_in, 2 * steps, "{dtype:?}: in {steps} steps");
                assert!(2 * replays > steps, "{dtype:?}: {replays} graphs in {steps} steps");
                assert_eq!(rest, [0; 3], "{dtype:?}: memory and maps");
                break;
            }
        }
    });
}

/// Greedy and drawn, with each filter: the device's tokens are those of the host's sampler, and
/// what the device does not do, it leaves to the host.
#[test]
fn tokens_drawn_on_the_device_are_the_hosts() {
    let report = Report::new();
    let env = [("VRUST_EMU_REPORT", report.path())];
    on_stand_in("cuda::steps::tokens_drawn_on_the_device_are_the_hosts", &env, || {
        let requests = || {
            let mut requests = vec![greedy(PROMPT, 20)];
            for (i, (top_k, top_p, min_p)) in
                [(None, None, None), (Some(7), None, None), (None, Some(0.7), None)]
                    .into_iter()
                    .chain([(None, None, Some(0.05)), (Some(30), Some(0.9), Some(0.01))])
                    .enumerate()
            {
                let mut request = greedy(&PROMPT[i..], 20);
                request.params.temperature = Some(0.6 + 0.2 * i as f32);
                request.params.seed = Some(i as i64);
                request.params.top_k = top_k;
                request.params.top_p = top_p;
                request.params.min_p = min_p;
                requests.push(request);
            }
            requests
        };
        let mut float32 = options("llama3");
        float32.dtype = ModelDType::Float32;
        let expected = tokens(&run(&ready(float32.clone()), requests()));
        let engine = ready(on_cuda(float32));
        assert_eq!(tokens(&run(&engine, requests())), expected, "all on the device");
        let mut more = requests();
        let mut penalized = greedy(PROMPT, 20);
        penalized.params.repetition_penalty = Some(1.3);
        more.push(penalized);
        assert_eq!(tokens(&run(&engine, more))[..6], expected, "beside one for the host");
    });
    if !is_child() {
        let used = report.launches();
        assert!(used.iter().any(|name| name == "sample"), "{used:?}");
    }
}

/// One graph for each batch size that came twice, replayed with the same result.
#[test]
fn decode_steps_are_graphs() {
    on_stand_in("cuda::steps::decode_steps_are_graphs", &[], || {
        let requests = || (1..=5).map(|n| greedy(&PROMPT[..n], 16)).collect();
        let mut eager = on_cuda(options("llama3"));
        eager.enforce_eager = true;
        let engine = ready(eager);
        let launched_by_op = tokens(&run(&engine, requests()));
        assert_eq!(count("graphs"), 0, "enforce_eager has no graphs");
        drop(engine);

        let engine = ready(on_cuda(options("llama3")));
        let with_graphs = tokens(&run(&engine, requests()));
        let graphs = count("graphs");
        assert!((1..=4).contains(&graphs), "{graphs} graphs for 5 sequences");
        assert_eq!(with_graphs, launched_by_op);
        // Another run of the same sizes captures nothing.
        assert_eq!(tokens(&run(&engine, requests())), launched_by_op);
        assert_eq!(count("graphs"), graphs);
        // Single requests: a batch of one, and a graph of its own.
        for n in 1..=5 {
            let alone = tokens(&run(&engine, vec![greedy(&PROMPT[..n], 16)]));
            assert_eq!(alone[0], launched_by_op[n - 1]);
        }
        drop(engine);
        assert_nothing_left("after the engines");
    });
}

#[test]
fn two_engines_share_a_device() {
    let env = [("VRUST_EMU_MEMORY", "268435456")];
    on_stand_in("cuda::steps::two_engines_share_a_device", &env, || {
        let sized = |case: &str| {
            let mut options = on_cuda(options(case));
            options.num_kv_blocks = None;
            options.max_num_seqs = 1 << 12;
            options.max_num_batched_tokens = 1 << 12;
            options.gpu_memory_utilization = 0.5;
            ready(options)
        };
        let first = sized("llama3");
        let after_first = count("bytes");
        let second = sized("qwen2");
        let after_second = count("bytes");
        assert!(after_first <= 128 << 20, "{after_first} bytes are more than half");
        assert!(after_second <= 192 << 20, "{after_second} bytes are more than three quarters");
        assert!(after_second > after_first);
        let blocks = |e: &vrust::engine::Engine| e.info().unwrap()["num_kv_blocks"].as_u64();
        println!("{:?} and {:?} blocks", blocks(&first), blocks(&second));
        let expected = |case: &str| {
            let engine = ready(options(case));
            tokens(&run(&engine, vec![greedy(PROMPT, 20); 3]))
        };
        std::thread::scope(|scope| {
            for (engine, case) in [(&first, "llama3"), (&second, "qwen2")] {
                scope.spawn(move || {
                    assert_eq!(tokens(&run(engine, vec![greedy(PROMPT, 20); 3])), expected(case));
                });
            }
        });
        drop(first);
        run(&second, vec![greedy(PROMPT, 5)]);
        drop(second);
        assert_nothing_left("after both engines");
    });
}

#[test]
fn preempted_and_poisoned_is_the_same() {
    let test = "cuda::steps::preempted_and_poisoned_is_the_same";
    on_stand_in(test, &[("VRUST_EMU_SEED", "3")], || {
        let requests = || (1..=6).map(|n| greedy(&[7 * n; 17], 30)).collect();
        let roomy = ready(on_cuda(options("llama3")));
        let expected = tokens(&run(&roomy, requests()));
        let mut tight = on_cuda(options("llama3"));
        tight.num_kv_blocks = Some(9);
        tight.debug.poison_free_blocks = true;
        tight.debug.shuffle_blocks = Some(5);
        let engine = ready(tight);
        assert_eq!(tokens(&run(&engine, requests())), expected);
    });
}
