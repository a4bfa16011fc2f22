//! Hugging Face transformers is the oracle here too: the models' files, the CUDA backend and the
//! kernels, on the emulated device.

use serde_json::json;
use vrust::backend::cuda::{CudaBackend, CudaOptions};
use vrust::backend::{Backend, ComputeType};
use vrust::config::{BackendKind, LoadFormat, ModelDType};
use vrust::ids::TokenId;
use vrust::model::LoadOptions;

use super::stand_in::{Report, count, is_child, on_cuda, on_stand_in, wide};
use crate::engine_goldens::{CASES, check_all};
use crate::engine_support::{Outcome, fixture, greedy, options, ready, run};
use crate::goldens::{check_bf16, check_chunked, check_float32, config_of, forced};
use crate::support::backends::reference;
use crate::support::folder::{TempDir, set_fields};
use crate::support::golden::Golden;
use crate::support::runner::{Runner, log_softmax};

/// Most that logprobs may differ from the reference in bfloat16: on average, and at one place.
const MEAN_TOLERANCE: f64 = 0.01;
const TOLERANCE: f64 = 0.1;

fn cuda(compute: ComputeType) -> Box<dyn Backend> {
    Box::new(CudaBackend::new(CudaOptions::new(compute)).unwrap())
}

#[test]
fn cuda_agrees_with_transformers() {
    on_stand_in("cuda::goldens::cuda_agrees_with_transformers", &[], || {
        check_float32("cuda", &cuda);
    });
}

/// Threads of a block run in random order: a missing barrier would show.
#[test]
fn cuda_agrees_with_transformers_through_the_engine() {
    let test = "cuda::goldens::cuda_agrees_with_transformers_through_the_engine";
    on_stand_in(test, &[("VRUST_EMU_SEED", "7")], || {
        check_all(|o| *o = on_cuda(o.clone()));
    });
}

#[test]
fn cuda_is_the_same_chunked_and_whole() {
    on_stand_in("cuda::goldens::cuda_is_the_same_chunked_and_whole", &[], || {
        let make = |compute| -> Box<dyn Backend> {
            let options = CudaOptions { batch_invariant: true, ..CudaOptions::new(compute) };
            Box::new(CudaBackend::new(options).unwrap())
        };
        check_chunked("cuda", &make);
    });
}

#[test]
fn cuda_in_bf16_rounds_no_more_than_transformers() {
    on_stand_in("cuda::goldens::cuda_in_bf16_rounds_no_more_than_transformers", &[], || {
        check_bf16("cuda", &cuda);
    });
}

/// Most that the mean distance from float32 may be beyond the reference's, in bfloat16.
const FACTOR: f64 = 1.1;

/// Every case in bfloat16, along the golden's own tokens: no farther from transformers' float32
/// than the reference in bfloat16 is.
#[test]
fn cuda_in_bf16_is_as_near_to_float32_as_the_reference() {
    let test = "cuda::goldens::cuda_in_bf16_is_as_near_to_float32_as_the_reference";
    on_stand_in(test, &[], || {
        for case in crate::goldens::CASES {
            let golden = Golden::read(&fixture(case));
            let config = config_of(&fixture(case));
            let mean = |backend: &mut dyn Backend| {
                let mut runner = Runner::load(&fixture(case), &config, backend).unwrap();
                let (mut sum, mut count) = (0.0, 0.0);
                for prompt in &golden.prompts {
                    let logits = forced(&mut runner, prompt);
                    let first = prompt.prompt().len() - 1;
                    for (place, logits) in prompt.steps.iter().zip(&logits[first..]) {
                        let own = log_softmax(logits)[place.id as usize];
                        (sum, count) = (sum + (own - place.logprob).abs(), count + 1.0);
                    }
                }
                assert!(count > 80.0, "{case} has places");
                sum / count
            };
            let expected = mean(&mut *reference(ComputeType::Bf16));
            let got = mean(&mut *cuda(ComputeType::Bf16));
            println!("{case}: from float32 {got:.4}, the reference {expected:.4}");
            assert!(got <= FACTOR * expected && got < 0.1, "{case}: {got}, {expected}");
        }
    });
}

/// Steps of many sequences, some of which decode while others' prompts are computed in pieces, and
/// graphs of decode steps, on tensor cores: tokens and logprobs of the reference in bfloat16, as
/// far as two tokens are not as likely.
#[test]
fn mixed_steps_on_tensor_cores_agree_with_the_reference() {
    let test = "cuda::goldens::mixed_steps_on_tensor_cores_agree_with_the_reference";
    on_stand_in(test, &[("VRUST_EMU_SEED", "11")], || {
        let (_dir, mut options) = wide(ModelDType::BFloat16);
        options.max_num_batched_tokens = 48;
        let requests = || {
            let request = |(i, length): (u32, u32)| {
                let prompt: Vec<u32> = (0..length).map(|j| (j * 37 + i * 11) % 370).collect();
                let mut request = greedy(&prompt, 24);
                request.params.logprobs = Some(5);
                request.params.prompt_logprobs = (i % 2 == 0).then_some(1);
                request
            };
            (0..).zip([5, 150, 33, 70, 20, 1, 90]).map(request).collect()
        };
        let mut slow = options.clone();
        slow.backend = BackendKind::Reference;
        let expected = run(&ready(slow), requests());
        let got = run(&ready(on_cuda(options)), requests());
        let (mut compared, mut largest) = (0, 0.0_f32);
        for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
            let prompts = expected.prompt_logprobs.iter().zip(&got.prompt_logprobs);
            let chosen = expected.only().logprobs.iter().zip(&got.only().logprobs);
            for (expected, got) in prompts.chain(chosen) {
                let (Some(e), Some(g)) = (expected.chosen, got.chosen) else { continue };
                let same = expected.top.iter().find(|top| top.token_id == g.token_id);
                let same = if e.token_id == g.token_id { Some(&e) } else { same };
                let same = same.unwrap_or_else(|| panic!("request {i}: {g:?} is not likely"));
                largest = largest.max((same.logprob - g.logprob).abs());
                compared += 1;
                if e.token_id != g.token_id {
                    assert!(e.logprob - same.logprob < TOLERANCE as f32, "request {i}: {e:?}");
                    break;
                }
            }
        }
        println!("{compared} places, largest difference {largest:.2e}");
        assert!(compared > 300 && f64::from(largest) < 0.1 * TOLERANCE, "{compared} {largest}");
        for kernel in ["decode_attention_64_bf16", "prefill_attention_sm90_64_bf16"] {
            let launched = count(&format!("kernel:{kernel}"));
            assert!(launched > 5, "{kernel}: {launched}");
        }
        assert!(count("replays") > 5, "graphs");
    });
}

/// Tokens of the same requests are those of the reference and of the CPU.
#[test]
fn reference_cpu_and_cuda_choose_the_same_tokens() {
    on_stand_in("cuda::goldens::reference_cpu_and_cuda_choose_the_same_tokens", &[], || {
        for case in CASES {
            let tokens = |change: &dyn Fn(&mut vrust::config::EngineOptions)| {
                let mut options = options(case);
                options.dtype = ModelDType::Float32;
                change(&mut options);
                let engine = ready(options);
                let requests = [&[5, 9, 14, 33, 71][..], &[3; 20], &[11, 2, 60]];
                let requests = requests.iter().map(|prompt| greedy(prompt, 12)).collect();
                let outcomes = run(&engine, requests);
                outcomes.iter().map(tokens_of).collect::<Vec<_>>()
            };
            let reference = tokens(&|o| o.backend = BackendKind::Reference);
            assert_eq!(reference, tokens(&|_| ()), "{case} on the CPU");
            assert_eq!(reference, tokens(&|o| *o = on_cuda(o.clone())), "{case} on cuda");
        }
    });
}

/// Heads as wide as those that the tensor cores' kernels exist for, sums long enough to be cut,
/// contexts of several pieces: in bfloat16, against the reference in bfloat16.
#[test]
fn tensor_cores_agree_with_the_reference() {
    let test = "cuda::goldens::tensor_cores_agree_with_the_reference";
    check_tensor_cores(test, "80", "prefill_attention_64");
}

/// The same with the kernels for Hopper.
#[test]
fn tensor_cores_of_hopper_agree_with_the_reference() {
    let test = "cuda::goldens::tensor_cores_of_hopper_agree_with_the_reference";
    check_tensor_cores(test, "90", "prefill_attention_sm90_64");
}

/// On a device of that compute capability, whose prompts that kernel serves.
fn check_tensor_cores(test: &str, capability: &str, prefill: &str) {
    let cases = [
        ("llama3", json!({"head_dim": 64, "hidden_size": 80, "intermediate_size": 2048})),
        ("qwen3", json!({"head_dim": 128, "num_attention_heads": 6, "num_key_value_heads": 1})),
        ("mistral", json!({"head_dim": 64, "sliding_window": 70})),
        ("llama2", json!({"head_dim": 256})),
    ];
    let report = Report::new();
    let env = [("VRUST_EMU_REPORT", report.path()), ("VRUST_EMU_CC", capability)];
    on_stand_in(test, &env, || {
        for (case, fields) in &cases {
            let dir = TempDir::copy_of(&fixture(case));
            set_fields(&dir.join("config.json"), &json!({"max_position_embeddings": 512}));
            set_fields(&dir.join("config.json"), fields);
            let config = config_of(dir.path());
            let logits = |backend: &mut dyn Backend| {
                let options = LoadOptions {
                    dir: dir.path(),
                    load_format: LoadFormat::Dummy,
                    seed: 3,
                    max_model_len: None,
                };
                let mut runner = Runner::load_with(&options, &config, backend).unwrap();
                runner.restart();
                let tokens: Vec<_> = (0..230).map(|i| TokenId(i * 37 % 380)).collect();
                let mut logits = runner.extend(&tokens[..150], 150);
                logits.extend(runner.extend(&tokens[150..210], 30));
                logits.extend(runner.extend(&tokens[210..], 1));
                logits
            };
            let expected = logits(&mut *reference(ComputeType::Bf16));
            let got = logits(&mut *cuda(ComputeType::Bf16));
            let (mut sum, mut largest, mut count) = (0.0, 0.0_f64, 0.0);
            for (expected, got) in expected.iter().zip(&got) {
                for (expected, got) in log_softmax(expected).iter().zip(log_softmax(got)) {
                    let off = (expected - got).abs();
                    (sum, largest, count) = (sum + off, largest.max(off), count + 1.0);
                }
            }
            let mean = sum / count;
            println!("{case} {fields}: mean {mean:.2e}, largest {largest:.2e}");
            assert!(mean < MEAN_TOLERANCE && largest < TOLERANCE, "{case}: {mean} {largest}");
        }
    });
    if is_child() {
        return;
    }
    let used = report.launches();
    for kernel in ["decode_attention", "attention_merge", prefill, "skinny_sum"] {
        assert!(used.iter().any(|name| name.starts_with(kernel)), "{kernel}: {used:?}");
    }
}

/// A prompt's tokens and the bits of its logprobs do not depend on what runs beside it.
#[test]
fn batched_is_alone() {
    on_stand_in("cuda::goldens::batched_is_alone", &[], || {
        // With heads that the tensor cores' kernels exist for: pieces of rows must not show.
        let wide = TempDir::copy_of(&fixture("llama3"));
        set_fields(&wide.join("config.json"), &json!({"head_dim": 64}));
        for case in ["llama3", "qwen3-bf16", "wide"] {
            let mut options = on_cuda(options(if case == "wide" { "llama3" } else { case }));
            options.batch_invariant = true;
            if case == "wide" {
                options.model = wide.path().to_owned();
                options.load_format = LoadFormat::Dummy;
                options.dtype = ModelDType::BFloat16;
            }
            let engine = ready(options);
            let requests = || {
                let prompts = [&[5, 9, 14][..], &[3; 40], &[11], &[7, 8, 9, 10, 11, 12, 13]];
                prompts.map(|prompt| {
                    let mut request = greedy(prompt, 10);
                    request.params.logprobs = Some(4);
                    request
                })
            };
            let together = run(&engine, requests().into());
            for (request, batched) in requests().into_iter().zip(&together) {
                let alone = run(&engine, vec![request]).remove(0);
                assert_eq!(tokens_of(&alone), tokens_of(batched), "{case}");
                assert_eq!(bits_of(&alone), bits_of(batched), "{case}");
            }
        }
    });
}

fn tokens_of(outcome: &Outcome) -> Vec<u32> {
    outcome.only().tokens.clone()
}

fn bits_of(outcome: &Outcome) -> Vec<u32> {
    let places = &outcome.only().logprobs;
    places.iter().flat_map(|p| p.top.iter().map(|top| top.logprob.to_bits())).collect()
}
