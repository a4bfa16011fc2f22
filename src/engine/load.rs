//! Loading: tokenizer, weights, KV cache, scheduler, in that order, with progress.

use std::sync::PoisonError;

use serde_json::{Value, json};

use super::device::make_backend;
use super::event::EventKind;
use super::handle::{Shared, engine_event};
use super::runner::{MAX_LOGITS_ROWS, Runner};
use crate::backend::{Backend, ComputeType, KvSpec, StepLimits};
use crate::chat::ChatTemplate;
use crate::config::{KvCacheDType, Quantization};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::ModelInfo;
use crate::model::{self, LoadOptions};
use crate::os;
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::sync::{Arc, Mutex};
use crate::tokenizer::Tokenizer;

/// Largest default KV cache, bytes.
const DEFAULT_KV_BYTES: u64 = 4 << 30;

/// What the worker runs on.
pub(crate) struct Loaded {
    pub(crate) runner: Runner,
    pub(crate) scheduler: Scheduler,
    pub(crate) max_model_len: usize,
    pub(crate) info: Value,
}

/// Opens the tokenizer and the chat template.
pub(crate) fn load_text(shared: &Shared) -> Result<()> {
    let options = &shared.options;
    if options.skip_tokenizer {
        return Ok(());
    }
    let dir = options.tokenizer.as_ref().unwrap_or(&options.model);
    let tokenizer = Arc::new(Tokenizer::open(dir)?);
    let template = match &options.chat_template {
        Some(source) => Some(ChatTemplate::from_source(source, &tokenizer)?),
        None => ChatTemplate::from_dir(dir, &tokenizer)?,
    };
    if let Some(template) = template {
        // Set once, here; nobody else writes it.
        let _ = shared.template.set(Arc::new(template));
    }
    let _ = shared.tokenizer.set(tokenizer);
    Ok(())
}

/// Loads the weights and allocates everything that steps need.
pub(crate) fn load_model(shared: &Arc<Shared>) -> Result<Loaded> {
    let options = &shared.options;
    let config = &shared.config;
    let compute = config.compute_type(options.dtype);
    let mut backend = make_backend(options, compute)?;
    let progress = progress_of(shared);
    progress(0.0)?;
    let load_options = LoadOptions {
        dir: &options.model,
        load_format: options.load_format,
        seed: options.seed,
        max_model_len: options.max_model_len,
    };
    let model = model::load(config, &load_options, &mut *backend, progress)?;

    let kv = config.kv_spec(options.block_size);
    let block_bytes = backend.kv_block_bytes(&kv);
    let of_device = backend.kv_memory(&step_limits(shared, shared.limits().max_model_len), &kv)?;
    let num_blocks = num_kv_blocks(shared, block_bytes, of_device)?;
    if of_device.is_none() {
        check_kv_bytes(num_blocks, block_bytes, os::memory_limit())?;
    }
    let max_model_len = max_model_len(shared, num_blocks)?;
    if !options.enable_chunked_prefill && options.max_num_batched_tokens < max_model_len {
        let (budget, limit) = (options.max_num_batched_tokens, max_model_len);
        let message = format!(
            "max_num_batched_tokens: must be at least max_model_len ({limit}) without chunked \
             prefill, got {budget}"
        );
        let error = Error::invalid("max_num_batched_tokens", message);
        return Err(error.with("limit", limit).with("value", budget));
    }
    backend.allocate(step_limits(shared, max_model_len), &kv, num_blocks + 1)?;
    shared.metrics.describe(ModelInfo {
        model_name: match &options.served_model_name {
            Some(name) => name.clone(),
            None => options.model.display().to_string(),
        },
        max_model_len,
        block_size: options.block_size,
        num_blocks: num_blocks + 1,
        enable_prefix_caching: options.enable_prefix_caching,
        cache_dtype: cache_dtype(options.kv_cache_dtype, compute).into(),
    });
    let info = info(shared, &*backend, &kv, compute, num_blocks, max_model_len);
    let scheduler = Scheduler::new(scheduler_config(shared, &kv, num_blocks, max_model_len))?;
    let runner = Runner::new(backend, model, options.block_size, kv.groups.len());
    Ok(Loaded { runner, scheduler, max_model_len, info })
}

/// Reports each percent of the weights, to the default queue, and ends a loading that a shutdown
/// cancelled. The last percent is for what comes after the weights.
fn progress_of(shared: &Arc<Shared>) -> impl Fn(f32) -> Result<()> + Send + Sync + 'static {
    let shared = Arc::clone(shared);
    let reported = Mutex::new(None);
    move |fraction: f32| {
        if shared.is_stopping() {
            return Err(Error::new(ErrorKind::Cancelled, "loading was cancelled by a shutdown"));
        }
        let percent = (fraction * 99.0) as u32;
        // Held while the event is published, so that reports of several threads stay in order.
        let mut reported = reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|last| percent > last) {
            *reported = Some(percent);
            let event = engine_event(EventKind::Load(percent as f32 / 100.0));
            shared.default_queue.publish([event]);
        }
        Ok(())
    }
}

/// The KV cache's size where nobody says: of `memory` bytes that the process may use, a quarter.
fn default_kv_bytes(memory: u64) -> u64 {
    DEFAULT_KV_BYTES.min(memory / 4)
}

/// Blocks of the pool, the null block not counted.
fn num_kv_blocks(shared: &Shared, block_bytes: usize, of_device: Option<u64>) -> Result<usize> {
    let options = &shared.options;
    if let Some(blocks) = options.num_kv_blocks {
        return Ok(blocks);
    }
    let of_host = || default_kv_bytes(os::memory_limit());
    let budget = options.kv_cache_memory_bytes.or(of_device).unwrap_or_else(of_host);
    let blocks = (budget / block_bytes as u64) as usize;
    if blocks == 0 && options.kv_cache_memory_bytes.is_none() && of_device.is_some() {
        let utilization = options.gpu_memory_utilization;
        let message = format!(
            "gpu_memory_utilization: {utilization} of the memory that was free leaves {budget} \
             bytes beside weights and activations, and a KV block of {} tokens takes {block_bytes}",
            options.block_size
        );
        let error = Error::new(ErrorKind::DeviceMemory, message);
        return Err(error
            .with("field", "gpu_memory_utilization")
            .with("limit", block_bytes)
            .with("value", utilization));
    }
    if blocks == 0 {
        let message = format!(
            "kv_cache_memory_bytes: {budget} bytes hold no KV block; one of {} tokens takes \
             {block_bytes} bytes",
            options.block_size
        );
        return Err(Error::new(ErrorKind::OutOfMemory, message)
            .with("field", "kv_cache_memory_bytes")
            .with("limit", block_bytes)
            .with("value", budget));
    }
    // More than every sequence at full length can never be used.
    let model_len = shared.limits().max_model_len;
    let useful = options.max_num_seqs.saturating_mul(model_len.div_ceil(options.block_size));
    Ok(blocks.min(useful.max(1)))
}

/// Refuses a KV cache that this process can never fill: the kernel hands out such memory, and
/// kills the process when it is used.
fn check_kv_bytes(num_blocks: usize, block_bytes: usize, limit: u64) -> Result<()> {
    let bytes = num_blocks as u128 * block_bytes as u128;
    if bytes <= u128::from(limit) {
        return Ok(());
    }
    let message = format!(
        "kv_cache_memory_bytes: a KV cache of {num_blocks} blocks takes {bytes} bytes, and this \
         process may use {limit}"
    );
    Err(Error::new(ErrorKind::OutOfMemory, message)
        .with("field", "kv_cache_memory_bytes")
        .with("limit", limit)
        .with("value", u64::try_from(bytes).unwrap_or(u64::MAX)))
}

/// The asked-for context, checked against the model and the pool; the largest that fits else.
fn max_model_len(shared: &Shared, num_blocks: usize) -> Result<usize> {
    let options = &shared.options;
    let model = shared.config.max_position_embeddings;
    let pool = num_blocks * options.block_size;
    let Some(asked) = options.max_model_len else { return Ok(model.min(pool)) };
    let (limit, whose) = match asked {
        asked if asked > model => (model, "the model's max_position_embeddings"),
        asked if asked > pool => (pool, "the positions that the KV cache holds"),
        _ => return Ok(asked),
    };
    let message = format!("max_model_len: must be at most {limit}, {whose}, got {asked}");
    Err(Error::invalid("max_model_len", message).with("limit", limit).with("value", asked))
}

fn step_limits(shared: &Shared, max_model_len: usize) -> StepLimits {
    let options = &shared.options;
    let blocks_per_seq = max_model_len.div_ceil(options.block_size);
    StepLimits {
        max_tokens: options.max_num_batched_tokens,
        max_seqs: options.max_num_seqs,
        max_logits_rows: MAX_LOGITS_ROWS.min(options.max_num_batched_tokens),
        max_block_table: options.max_num_seqs * blocks_per_seq,
    }
}

fn scheduler_config(
    shared: &Shared,
    kv: &KvSpec,
    num_blocks: usize,
    max_model_len: usize,
) -> SchedulerConfig {
    let options = &shared.options;
    SchedulerConfig {
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: options.max_num_batched_tokens,
        max_model_len,
        policy: options.scheduling_policy,
        long_prefill_token_threshold: options.long_prefill_token_threshold,
        enable_chunked_prefill: options.enable_chunked_prefill,
        enable_prefix_caching: options.enable_prefix_caching,
        block_size: options.block_size,
        num_blocks: num_blocks + 1,
        num_groups: kv.groups.len(),
        watermark: 0.0,
        shuffle_blocks: options.debug.shuffle_blocks,
    }
}

fn info(
    shared: &Shared,
    backend: &dyn Backend,
    kv: &KvSpec,
    compute: ComputeType,
    num_blocks: usize,
    max_model_len: usize,
) -> Value {
    let (options, config) = (&shared.options, &shared.config);
    json!({
        "model": options.model.display().to_string(),
        "architecture": config.architecture,
        "backend": backend.describe(),
        "dtype": dtype_name(compute),
        "quantization": options.quantization.map(Quantization::name),
        "vocab_size": config.vocab_size,
        "max_model_len": max_model_len,
        "eos_token_ids": config.eos_token_ids.iter().map(|t| t.0).collect::<Vec<_>>(),
        "has_tokenizer": shared.tokenizer.get().is_some(),
        "has_chat_template": shared.template.get().is_some(),
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "block_size": options.block_size,
        "num_kv_blocks": num_blocks,
        "kv_cache_dtype": cache_dtype(options.kv_cache_dtype, compute),
        "kv_cache_bytes": num_blocks * backend.kv_block_bytes(kv),
        "enable_prefix_caching": options.enable_prefix_caching,
        "enable_chunked_prefill": options.enable_chunked_prefill,
    })
}

fn dtype_name(compute: ComputeType) -> &'static str {
    match compute {
        ComputeType::F32 => "float32",
        ComputeType::Bf16 => "bfloat16",
    }
}

/// What keys and values are kept as.
fn cache_dtype(asked: KvCacheDType, compute: ComputeType) -> &'static str {
    if asked == KvCacheDType::Int8 { asked.name() } else { dtype_name(compute) }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn the_default_cache_is_a_quarter_of_memory_up_to_4_gib() {
        assert_eq!(default_kv_bytes(1 << 30), 256 << 20);
        assert_eq!(default_kv_bytes(16 << 30), 4 << 30);
        assert_eq!(default_kv_bytes(64 << 30), 4 << 30);
    }

    #[test]
    fn a_cache_larger_than_memory_is_refused() {
        check_kv_bytes(1000, 4096, 4_096_000).unwrap();
        let error = check_kv_bytes(1001, 4096, 4_096_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        for word in ["kv_cache_memory_bytes", "1001", "4100096", "4096000"] {
            assert!(error.message().contains(word), "{error}");
        }
        check_kv_bytes(usize::MAX, usize::MAX, u64::MAX).unwrap_err();
    }
}
