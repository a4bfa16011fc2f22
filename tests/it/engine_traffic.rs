//! The central promise: whatever the traffic, a request's tokens and logprobs are those of the
//! same request run alone with the cache off, bit for bit.

use vrust::config::{EngineOptions, KvCacheDType, Quantization, SchedulingPolicy};
use vrust::engine::Engine;
use vrust::ids::RequestId;
use vrust::request::{FinishReason, Request, TokenLogprobs};

use crate::engine_support::{Consumer, Outcome, Random, greedy, options, ready, run_one};
use crate::support::backends::available_cpu_paths;

const VOCAB: u64 = 300;

#[test]
fn traffic_on_a_llama_is_bit_identical_to_running_alone() {
    check_traffic("llama3", 100..112, &|_| {});
}

#[test]
fn traffic_on_a_sliding_window_is_bit_identical_to_running_alone() {
    check_traffic("mistral", 200..208, &|_| {});
}

#[test]
fn traffic_in_bfloat16_is_bit_identical_to_running_alone() {
    check_traffic("qwen3-bf16", 300..306, &|_| {});
}

#[test]
fn traffic_on_learned_positions_is_bit_identical_to_running_alone() {
    check_traffic("gpt2", 400..406, &|_| {});
}

#[test]
fn traffic_on_every_path_and_precision_is_bit_identical_to_running_alone() {
    on_every_path(500, 2);
}

/// Each path that this machine has, with each type of weights and of KV cache.
fn on_every_path(first: u64, cases: u64) {
    const INT8: (Option<Quantization>, KvCacheDType) = (Some(Quantization::Int8), AUTO);
    const INT4: (Option<Quantization>, KvCacheDType) = (Some(Quantization::Int4), AUTO);
    const AUTO: KvCacheDType = KvCacheDType::Auto;
    const KV: KvCacheDType = KvCacheDType::Int8;
    let kinds = [(None, AUTO), INT8, INT4, (None, KV), (Some(Quantization::Int4), KV)];
    for isa in available_cpu_paths() {
        for (quantization, kv_cache_dtype) in kinds {
            check_traffic("qwen3-bf16", first..first + cases, &|options| {
                (options.cpu_isa, options.quantization) = (Some(isa), quantization);
                options.kv_cache_dtype = kv_cache_dtype;
            });
        }
        check_traffic("llama3", first..first + cases, &|options| {
            (options.cpu_isa, options.kv_cache_dtype) = (Some(isa), KV);
        });
        check_traffic("mistral", first..first + cases, &|options| {
            (options.cpu_isa, options.kv_cache_dtype) = (Some(isa), KV);
        });
    }
}

/// Many more seeds; part of `make test-long`.
#[test]
#[ignore = "long"]
fn traffic_for_long() {
    for (index, name) in ["llama3", "mistral", "qwen3-bf16", "gpt2", "qwen2"].iter().enumerate() {
        let first = 10_000 * (index as u64 + 1);
        check_traffic(name, first..first + 150, &|_| {});
    }
    on_every_path(60_000, 20);
}

/// `set` changes the options of both sides.
fn check_traffic(model: &str, seeds: std::ops::Range<u64>, set: &dyn Fn(&mut EngineOptions)) {
    let with = |mut options: EngineOptions| {
        set(&mut options);
        ready(options)
    };
    let alone = with(alone_options(model));
    let mut preemptions = 0;
    let mut hits = 0;
    for seed in seeds {
        let mut random = Random(seed);
        let busy = with(busy_options(model, &mut random));
        let requests = requests(&mut random, priorities_allowed(&busy, seed));
        let outcomes = run_traffic(&busy, &requests, &mut random);
        for (index, (request, outcome)) in requests.iter().zip(&outcomes).enumerate() {
            let expected = run_one(&alone, Request { priority: 0, ..request.clone() });
            compare(outcome, &expected, &format!("{model}, seed {seed}, request {index}"));
        }
        let stats = busy.stats();
        assert_eq!(stats.kv_blocks_used, 0, "blocks leak, seed {seed}");
        assert_eq!(stats.kv_blocks_free + stats.kv_blocks_cached, stats.kv_blocks_total);
        preemptions += stats.num_preemptions;
        hits += stats.prefix_cache_hits;
    }
    assert!(preemptions > 0, "the pools were meant to be too small");
    assert!(hits > 0, "the prompts were meant to share prefixes");
}

/// One at a time, whole prompts, no cache, ample memory.
fn alone_options(model: &str) -> EngineOptions {
    let mut options = options(model);
    options.max_num_seqs = 1;
    options.enable_prefix_caching = false;
    options.cpu_threads = Some(1);
    options.max_model_len = Some(96);
    options
}

/// Everything that could change a result, small and shuffled.
fn busy_options(model: &str, random: &mut Random) -> EngineOptions {
    let mut options = options(model);
    options.max_model_len = Some(96);
    options.cpu_threads = Some(random.range(1, 4) as usize);
    options.block_size = [8, 16, 16, 24][random.range(0, 4) as usize];
    let fewest = 96usize.div_ceil(options.block_size) as u64;
    options.num_kv_blocks = Some(random.range(fewest, fewest + 8) as usize);
    options.max_num_seqs = random.range(2, 9) as usize;
    options.max_num_batched_tokens = random.range(5, 60) as usize;
    options.long_prefill_token_threshold = [0, 0, 7, 19][random.range(0, 4) as usize];
    options.debug.poison_free_blocks = true;
    options.debug.shuffle_blocks = Some(random.next());
    if random.chance(50) {
        options.scheduling_policy = SchedulingPolicy::Priority;
    }
    options
}

fn priorities_allowed(engine: &Engine, _seed: u64) -> bool {
    let mut probe = greedy(&[1], 1);
    probe.priority = 1;
    let allowed = engine.submit(probe, engine.default_queue());
    if let Ok(id) = allowed {
        Consumer::default().wait(engine.default_queue(), &[id]);
    }
    allowed.is_ok()
}

fn requests(random: &mut Random, priorities: bool) -> Vec<Request> {
    let shared: Vec<Vec<u32>> = (0..3).map(|_| ids(random, 40)).collect();
    (0..random.range(8, 20))
        .map(|_| {
            let mut prompt = shared[random.range(0, 3) as usize].clone();
            prompt.truncate(random.range(0, 41) as usize);
            let more = random.range(1, 30) as usize;
            prompt.extend(ids(random, more));
            let mut request = greedy(&prompt, random.range(1, 20) as u32);
            vary(&mut request, random);
            if priorities {
                request.priority = random.range(0, 3) as i32 - 1;
            }
            request
        })
        .collect()
}

fn vary(request: &mut Request, random: &mut Random) {
    let params = &mut request.params;
    if random.chance(60) {
        params.logprobs = Some(random.range(0, 4) as i32);
    }
    if random.chance(20) {
        params.prompt_logprobs = Some(random.range(0, 3) as i32);
    }
    if random.chance(50) {
        params.temperature = Some(1.0 + random.range(0, 10) as f32 / 10.0);
        params.seed = Some(random.range(0, 1000) as i64);
        params.top_p = Some(0.9);
        params.n = Some(random.range(1, 4) as u32);
    }
    if random.chance(30) {
        params.repetition_penalty = Some(1.3);
        params.presence_penalty = Some(0.4);
        params.frequency_penalty = Some(0.2);
    }
    if random.chance(15) {
        request.cache_salt = Some(format!("salt {}", random.range(0, 2)));
    }
}

fn ids(random: &mut Random, count: usize) -> Vec<u32> {
    (0..count).map(|_| random.range(3, VOCAB) as u32).collect()
}

/// Submits in bursts and aborts some on the way.
fn run_traffic(engine: &Engine, requests: &[Request], random: &mut Random) -> Vec<Outcome> {
    let queue = engine.default_queue();
    let mut consumer = Consumer::default();
    let mut submitted: Vec<RequestId> = Vec::new();
    for request in requests {
        submitted.push(engine.submit(request.clone(), queue).unwrap());
        if random.chance(40) {
            let mut events = Vec::new();
            let wait = std::time::Duration::from_micros(random.range(0, 3000));
            queue.drain(Some(wait), random.range(1, 9) as usize, &mut events).unwrap();
            events.into_iter().for_each(|e| consumer.take(e));
        }
        if random.chance(15) {
            let victim = submitted[random.range(0, submitted.len() as u64) as usize];
            engine.abort(victim).unwrap();
        }
    }
    consumer.wait(queue, &submitted);
    submitted.iter().map(|id| consumer.outcomes.remove(id).unwrap()).collect()
}

/// An aborted choice must be a prefix of the expected one; any other must equal it.
fn compare(got: &Outcome, expected: &Outcome, what: &str) {
    assert!(got.error.is_none(), "{what}: {:?}", got.error);
    for (index, expected_choice) in &expected.choices {
        let choice = &got.choices[index];
        let finished = choice.finished.as_ref().unwrap();
        let aborted = finished.reason == FinishReason::Abort;
        let length = if aborted { choice.tokens.len() } else { expected_choice.tokens.len() };
        assert_eq!(choice.tokens, expected_choice.tokens[..length], "{what}, choice {index}");
        let logprobs = &expected_choice.logprobs;
        let logprobs = &logprobs[..length.min(logprobs.len())];
        assert_eq!(bits(&choice.logprobs), bits(logprobs), "{what}, choice {index}: logprobs");
        if !aborted {
            let reason = &expected_choice.finished.as_ref().unwrap().reason;
            assert_eq!(finished.reason, *reason, "{what}, choice {index}");
            assert_eq!(choice.text, expected_choice.text, "{what}, choice {index}");
        }
    }
    if !got.prompt_logprobs.is_empty() {
        let (got, expected) = (bits(&got.prompt_logprobs), bits(&expected.prompt_logprobs));
        assert_eq!(got, expected, "{what}: prompt logprobs");
    }
}

/// Logprobs as bits, so that equal means identical.
fn bits(records: &[TokenLogprobs]) -> Vec<Vec<(u32, u32, u32)>> {
    let one = |r: &TokenLogprobs| {
        let all = r.chosen.iter().chain(&r.top);
        all.map(|l| (l.token_id.0, l.logprob.to_bits(), l.rank)).collect()
    };
    records.iter().map(one).collect()
}
