//! Every golden case: tokens and logprobs are those of Hugging Face transformers.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use vrust::backend::ComputeType;
use vrust::config::{LoadFormat, ModelDType};
use vrust::error::{Error, ErrorKind};
use vrust::model::{self, LoadOptions, ModelConfig};

use crate::support::backends::{MakeBackend, for_each_cpu_path, reference};
use crate::support::folder::{TempDir, set_fields};
use crate::support::golden::{Golden, Place, Prompt, folder};
use crate::support::runner::{Runner, argmax, log_softmax};

/// Most that a logprob may differ in float32. transformers differs from itself in float64 by up to
/// 2e-5 on these models; the smallest mistake of `mutations` makes 1e-3.
pub(crate) const TOLERANCE: f64 = 2e-4;
/// Most that logprobs may differ from float32 in bfloat16, on average.
const MEAN_TOLERANCE_BF16: f64 = 0.03;
/// Most that logprobs may differ from transformers' bfloat16, on average, in the gentle cases.
const MEAN_TOLERANCE_GENTLE: f64 = 0.02;

pub(crate) const CASES: &[&str] = &[
    "gpt2",
    "gpt2-base",
    "llama-bf16-gentle",
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
    "qwen3-bf16-gentle",
];

/// Cases whose prompts are also cut.
const CHUNKED: &[&str] = &["gpt2", "llama3", "mistral", "qwen2-window", "qwen3-bf16"];

/// Cases in bfloat16 whose weights do not magnify rounding.
const GENTLE: &[&str] = &["qwen3-bf16-gentle", "llama-bf16-gentle"];

/// No folder of tests/golden is forgotten, and no architecture that can be loaded.
#[test]
fn every_architecture_has_a_case() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folders = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|folder| folder.path().join("config.json").exists());
    let mut found: Vec<_> =
        folders.map(|folder| folder.file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, CASES);

    let dir = TempDir::copy_of(&folder("llama3"));
    set_fields(&dir.join("config.json"), &json!({"architectures": ["NobodyForCausalLM"]}));
    let error = ModelConfig::from_dir(dir.path()).unwrap_err();
    let known: BTreeSet<_> =
        error.detail()["limit"].as_array().unwrap().iter().map(|x| x.as_str().unwrap()).collect();
    let tried: Vec<_> = CASES.iter().map(|case| config_of(&folder(case)).architecture).collect();
    assert_eq!(known, tried.iter().map(String::as_str).collect());
}

#[test]
fn reference_agrees_with_transformers() {
    check_float32("reference", &reference);
}

#[test]
fn every_cpu_path_agrees_with_transformers() {
    for_each_cpu_path(check_float32);
}

#[test]
fn reference_is_the_same_chunked_and_whole() {
    check_chunked("reference", &reference);
}

#[test]
fn every_cpu_path_is_the_same_chunked_and_whole() {
    for_each_cpu_path(check_chunked);
}

#[test]
fn reference_in_bf16_rounds_no_more_than_transformers() {
    check_bf16("reference", &reference);
}

#[test]
fn every_cpu_path_in_bf16_rounds_no_more_than_transformers() {
    for_each_cpu_path(check_bf16);
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
    let dir = folder("qwen2");
    let config = config_of(&dir);
    let options =
        LoadOptions { dir: &dir, load_format: LoadFormat::Auto, seed: 0, max_model_len: None };
    let mut backend = reference(ComputeType::F32);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let note = move |done: f32| {
        noted.lock().unwrap().push(done);
        Ok(())
    };
    model::load(&config, &options, &mut *backend, note).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.len() > config.num_layers, "{seen:?}");
    assert_eq!((seen[0], seen[seen.len() - 1]), (0.0, 1.0));

    let cancel = |done: f32| match done > 0.5 {
        true => Err(Error::new(ErrorKind::Cancelled, "enough")),
        false => Ok(()),
    };
    let error = model::load(&config, &options, &mut *backend, cancel).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

pub(crate) fn check_float32(name: &str, make: MakeBackend<'_>) {
    for case in CASES {
        let largest = check_case(&format!("{name}: {case}"), make, case);
        println!("{name}: {case}: a logprob differs by {largest:.1e} at most");
    }
}

/// Greedy tokens are equal; logprobs of every token and of the listed likely ones are near.
/// Returns the largest difference.
fn check_case(name: &str, make: MakeBackend<'_>, case: &str) -> f64 {
    let (golden, mut largest) = (Golden::read(&folder(case)), 0.0_f64);
    let config = config_of(&folder(case));
    let mut backend = make(ComputeType::F32);
    let mut runner = Runner::load(&folder(case), &config, &mut *backend).unwrap();
    for prompt in &golden.prompts {
        let tokens = prompt.prompt();
        let expected = prompt.greedy();
        let (chosen, logits) = runner.greedy(&tokens, 13, expected.len());
        assert_eq!(chosen, expected, "{name}: prompt of {} tokens", tokens.len());
        for (place, logits) in places(&prompt.prompt_logprobs, &prompt.steps).zip(&logits) {
            largest = largest.max(difference(place, logits));
            if let Some(rank) = place.rank {
                let own = logits[place.id as usize];
                assert_eq!(logits.iter().filter(|x| **x > own).count() + 1, rank, "{name}");
            }
        }
    }
    assert!(largest <= TOLERANCE, "{name}: a logprob differs by {largest}");
    largest
}

/// The bits of the logits do not depend on how a prompt is cut.
pub(crate) fn check_chunked(name: &str, make: MakeBackend<'_>) {
    for case in CHUNKED {
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
            assert!(run(chunk) == whole, "{name}: {case}: chunks of {chunk} change the logits");
        }
    }
}

/// Along the float32 tokens: logprobs are nearer to float32 than those that transformers has in
/// bfloat16, because residuals, norms, softmax and logits stay f32 here; and the distance to
/// transformers' bfloat16 is what two independent roundings explain. In the gentle cases that
/// distance also has a limit of its own, at the prompt's places too.
pub(crate) fn check_bf16(name: &str, make: MakeBackend<'_>) {
    for case in ["qwen3-bf16"].iter().chain(GENTLE) {
        let [at_prompt, at_greedy] = distances_bf16(make, case);
        for (places, means) in [("prompt", at_prompt), ("greedy", at_greedy)] {
            let [own, theirs, between] = means;
            let told = format!(
                "{name}: {case}: {places}: from float32 {own:.4}, transformers' bfloat16 \
                 {theirs:.4}; between them {between:.4}"
            );
            println!("{told}");
            let gentle = GENTLE.contains(case);
            if gentle || places == "greedy" {
                assert!(own <= MEAN_TOLERANCE_BF16.min(theirs), "{told}");
                assert!(between <= 1.2 * own.hypot(theirs), "{told}");
            }
            assert!(!gentle || between <= MEAN_TOLERANCE_GENTLE, "{told}");
        }
    }
}

/// Mean |logprob difference| in bfloat16 at the prompts' places and at the greedy tokens: to
/// float32, of transformers to float32, and to transformers in bfloat16.
fn distances_bf16(make: MakeBackend<'_>, case: &str) -> [[f64; 3]; 2] {
    let golden = Golden::read(&folder(case));
    assert_eq!(golden.bfloat16.len(), golden.prompts.len(), "{case} has goldens in bfloat16");
    let config = config_of(&folder(case));
    let mut backend = make(ComputeType::Bf16);
    let mut runner = Runner::load(&folder(case), &config, &mut *backend).unwrap();
    let (mut sums, mut counts) = ([[0.0; 3]; 2], [0.0; 2]);
    for (prompt, bf16) in golden.prompts.iter().zip(&golden.bfloat16) {
        let logits = forced(&mut runner, prompt);
        let exact = places(&prompt.prompt_logprobs, &prompt.steps);
        let theirs = places(&bf16.prompt_logprobs, &bf16.steps);
        let greedy_from = prompt.prompt().len() - 1;
        for (i, ((exact, theirs), logits)) in exact.zip(theirs).zip(&logits).enumerate() {
            assert_eq!(exact.id, theirs.id, "{case}: the golden's places");
            let own = log_softmax(logits)[exact.id as usize];
            let gaps = [own - exact.logprob, theirs.logprob - exact.logprob, own - theirs.logprob];
            let at = usize::from(i >= greedy_from);
            counts[at] += 1.0;
            sums[at].iter_mut().zip(gaps).for_each(|(sum, gap)| *sum += gap.abs());
        }
    }
    assert!(counts.iter().all(|count| *count > 0.0), "{case} has places");
    std::array::from_fn(|at| sums[at].map(|sum| sum / counts[at]))
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

/// A golden's places in order: prompt tokens from the second on, then the chosen.
fn places<'a>(
    prompt_logprobs: &'a [Option<Place>],
    steps: &'a [Place],
) -> impl Iterator<Item = &'a Place> {
    prompt_logprobs.iter().flatten().chain(steps)
}

/// Largest difference of a logprob at one place.
fn difference(place: &Place, logits: &[f32]) -> f64 {
    let logprobs = log_softmax(logits);
    let own = (place.id, place.logprob);
    let off = |&(id, logprob): &(u32, f64)| (logprobs[id as usize] - logprob).abs();
    std::iter::once(&own).chain(&place.top).map(off).fold(0.0, f64::max)
}
