//! Hugging Face transformers is the oracle here too: the models' files, the CUDA backend and the
//! kernels, on the emulated device.

use vrust::backend::cuda::{CudaBackend, CudaOptions};
use vrust::backend::{Backend, ComputeType};
use vrust::config::BackendKind;

use super::stand_in::{on_cuda, on_stand_in};
use crate::engine_goldens::{CASES, check_all};
use crate::engine_support::{Outcome, fixture, greedy, options, ready, run};
use crate::goldens::{check_bf16, check_chunked, check_float32};

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
        check_chunked("cuda", &cuda);
    });
}

#[test]
fn cuda_in_bf16_rounds_no_more_than_transformers() {
    on_stand_in("cuda::goldens::cuda_in_bf16_rounds_no_more_than_transformers", &[], || {
        check_bf16("cuda", &cuda);
    });
}

/// Tokens of the same requests are those of the reference and of the CPU.
#[test]
fn reference_cpu_and_cuda_choose_the_same_tokens() {
    on_stand_in("cuda::goldens::reference_cpu_and_cuda_choose_the_same_tokens", &[], || {
        for case in CASES {
            let tokens = |change: &dyn Fn(&mut vrust::config::EngineOptions)| {
                let mut options = options(case);
                options.dtype = vrust::config::ModelDType::Float32;
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

/// A prompt's tokens and the bits of its logprobs do not depend on what runs beside it. Products
/// in bfloat16 are the stand-in's: on a GPU this is cuBLASLt's to keep.
#[test]
fn batched_is_alone() {
    on_stand_in("cuda::goldens::batched_is_alone", &[], || {
        for case in ["llama3", "qwen3-bf16"] {
            assert!(fixture(case).exists());
            let engine = ready(on_cuda(options(case)));
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
