//! Every golden case: tokens and logprobs are those of Hugging Face transformers.

use std::path::Path;

use vrust::backend::reference::ReferenceBackend;
use vrust::backend::{Backend, ComputeType};
use vrust::config::{LoadFormat, ModelDType};
use vrust::error::{Error, ErrorKind};
use vrust::model::{self, LoadOptions, ModelConfig};

use crate::support::golden::{Golden, Place, Prompt, folder};
use crate::support::runner::{Runner, argmax, log_softmax};

/// Most that a logprob may differ in float32. transformers differs from itself in float64 by up to
/// 2e-5 on these models; the smallest mistake of `mutations` makes 1e-3.
pub(crate) const TOLERANCE: f64 = 2e-4;
/// Most that logprobs may differ from float32 in bfloat16, on average.
const MEAN_TOLERANCE_BF16: f64 = 0.03;

const CASES: &[&str] = &[
    "gpt2",
    "gpt2-base",
    "llama-f16",
    "llama2",
    "llama2-sharded",
    "llama3",
    "llama3-new",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "qwen3-bf16",
];

/// Makes the backend under test.
type MakeBackend = fn(ComputeType) -> Box<dyn Backend>;

fn reference(compute: ComputeType) -> Box<dyn Backend> {
    Box::new(ReferenceBackend::new(compute))
}

#[test]
fn reference_agrees_with_transformers() {
    for case in CASES {
        check_float32(reference, case);
    }
}

#[test]
fn reference_is_the_same_chunked_and_whole() {
    for case in ["gpt2", "llama3", "mistral", "qwen2-window", "qwen3-bf16"] {
        check_chunked(reference, case);
    }
}

#[test]
fn reference_in_bf16_rounds_no_more_than_transformers() {
    check_bf16(reference, "qwen3-bf16");
}

#[test]
fn the_checkpoint_decides_the_precision() {
    let compute = |case: &str, dtype| config_of(&folder(case)).compute_type(dtype);
    assert_eq!(compute("qwen3-bf16", ModelDType::Auto), ComputeType::Bf16);
    assert_eq!(compute("qwen3-bf16", ModelDType::Float32), ComputeType::F32);
    assert_eq!(compute("llama-f16", ModelDType::Auto), ComputeType::F32);
    assert_eq!(compute("gpt2", ModelDType::Auto), ComputeType::F32);
    assert_eq!(compute("gpt2", ModelDType::BFloat16), ComputeType::Bf16);
}

#[test]
fn dummy_weights_need_no_weights() {
    let config = config_of(&folder("llama3"));
    let nowhere = Path::new("/does/not/exist");
    let options = |seed| LoadOptions {
        dir: nowhere,
        load_format: LoadFormat::Dummy,
        seed,
        max_model_len: Some(64),
    };
    let run = |seed| {
        let mut backend = reference(ComputeType::F32);
        let mut runner = Runner::load_with(&options(seed), &config, &mut *backend).unwrap();
        runner.greedy(&Golden::read(&folder("llama3")).prompts[1].prompt(), 8, 4).1
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn progress_rises_to_one_and_cancels() {
    let (dir, mut seen) = (folder("qwen2"), Vec::new());
    let config = config_of(&dir);
    let options =
        LoadOptions { dir: &dir, load_format: LoadFormat::Auto, seed: 0, max_model_len: None };
    let mut backend = reference(ComputeType::F32);
    let mut note = |done: f32| {
        seen.push(done);
        Ok(())
    };
    model::load(&config, &options, &mut *backend, &mut note).unwrap();
    assert!(seen.is_sorted() && seen.len() > config.num_layers, "{seen:?}");
    assert_eq!((seen[0], seen[seen.len() - 1]), (0.0, 1.0));

    let mut cancel = |done: f32| match done > 0.5 {
        true => Err(Error::new(ErrorKind::Cancelled, "enough")),
        false => Ok(()),
    };
    let error = model::load(&config, &options, &mut *backend, &mut cancel).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

/// Greedy tokens are equal; logprobs of every token and of the listed likely ones are near.
fn check_float32(make: MakeBackend, case: &str) {
    let (golden, mut largest) = (Golden::read(&folder(case)), 0.0_f64);
    let config = config_of(&folder(case));
    let mut backend = make(ComputeType::F32);
    let mut runner = Runner::load(&folder(case), &config, &mut *backend).unwrap();
    for prompt in &golden.prompts {
        let tokens = prompt.prompt();
        let expected = prompt.greedy();
        let (chosen, logits) = runner.greedy(&tokens, 13, expected.len());
        assert_eq!(chosen, expected, "{case}: prompt of {} tokens", tokens.len());
        for (place, logits) in places(prompt, &logits) {
            largest = largest.max(difference(place, logits));
            if let Some(rank) = place.rank {
                let own = logits[place.id as usize];
                assert_eq!(logits.iter().filter(|x| **x > own).count() + 1, rank, "{case}");
            }
        }
    }
    assert!(largest <= TOLERANCE, "{case}: a logprob differs by {largest}");
}

/// The bits of the logits do not depend on how a prompt is cut.
fn check_chunked(make: MakeBackend, case: &str) {
    let golden = Golden::read(&folder(case));
    let config = config_of(&folder(case));
    let mut backend = make(config.compute_type(ModelDType::Auto));
    let mut runner = Runner::load(&folder(case), &config, &mut *backend).unwrap();
    let tokens = golden.prompts.last().unwrap().prompt();
    let mut run = |chunk| {
        runner.restart();
        runner.extend(&tokens, chunk)
    };
    let whole = run(tokens.len());
    for chunk in [1, 7, 8, 33] {
        assert!(run(chunk) == whole, "{case}: chunks of {chunk} change the logits");
    }
}

/// Along the float32 tokens: logprobs are nearer to float32 than those that transformers has in
/// bfloat16, because residuals, norms, softmax and logits stay f32 here; and the distance to
/// transformers' bfloat16 is what two independent roundings explain.
fn check_bf16(make: MakeBackend, case: &str) {
    let golden = Golden::read(&folder(case));
    let config = config_of(&folder(case));
    let mut backend = make(ComputeType::Bf16);
    let mut runner = Runner::load(&folder(case), &config, &mut *backend).unwrap();
    let (mut own, mut theirs, mut between, mut count) = (0.0, 0.0, 0.0, 0.0);
    for (prompt, bf16) in golden.prompts.iter().zip(&golden.bfloat16) {
        let logits = forced(&mut runner, prompt);
        let logits = &logits[prompt.prompt().len() - 1..];
        for ((exact, bf16), logits) in prompt.steps.iter().zip(&bf16.steps).zip(logits) {
            let logprob = log_softmax(logits)[exact.id as usize];
            own += (logprob - exact.logprob).abs();
            theirs += (bf16.logprob - exact.logprob).abs();
            between += (logprob - bf16.logprob).abs();
            count += 1.0;
        }
    }
    assert!(count > 0.0, "{case} has goldens in bfloat16");
    let (own, theirs, between) = (own / count, theirs / count, between / count);
    assert!(own <= MEAN_TOLERANCE_BF16.min(theirs), "{case}: off by {own}, they by {theirs}");
    assert!(between <= 1.2 * own.hypot(theirs), "{case}: {between}, from {own} and {theirs}");
}

pub(crate) fn config_of(dir: &Path) -> ModelConfig {
    ModelConfig::from_dir(dir).unwrap()
}

/// Logits along the golden's own tokens.
pub(crate) fn forced(runner: &mut Runner<'_>, prompt: &Prompt) -> Vec<Vec<f32>> {
    runner.restart();
    let mut tokens = prompt.prompt();
    tokens.extend(prompt.greedy());
    tokens.pop();
    runner.extend(&tokens, tokens.len())
}

/// How far a model is from a golden: greedy choices that differ, and the largest difference of a
/// greedy token's logprob.
pub(crate) fn distance(runner: &mut Runner<'_>, golden: &Golden) -> (usize, f64) {
    let (mut changed, mut largest) = (0, 0.0_f64);
    for prompt in &golden.prompts {
        let logits = forced(runner, prompt);
        for (place, logits) in prompt.steps.iter().zip(&logits[prompt.prompt().len() - 1..]) {
            changed += usize::from(argmax(logits).0 != place.id);
            largest = largest.max((log_softmax(logits)[place.id as usize] - place.logprob).abs());
        }
    }
    (changed, largest)
}

/// The golden's places with the logits there: prompt tokens from the second on, then the chosen.
fn places<'a>(
    prompt: &'a Prompt,
    logits: &'a [Vec<f32>],
) -> impl Iterator<Item = (&'a Place, &'a Vec<f32>)> {
    prompt.prompt_logprobs.iter().flatten().chain(&prompt.steps).zip(logits)
}

/// Largest difference of a logprob at one place.
fn difference(place: &Place, logits: &[f32]) -> f64 {
    let logprobs = log_softmax(logits);
    let own = (place.id, place.logprob);
    let off = |&(id, logprob): &(u32, f64)| (logprobs[id as usize] - logprob).abs();
    std::iter::once(&own).chain(&place.top).map(off).fold(0.0, f64::max)
}
