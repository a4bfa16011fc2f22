//! `VrustEngineOptions`: what an engine is made with.

use serde_json::{Map, Value};
use std::ffi::c_char;

use super::input::{self, Versioned, flag, optional_text, owned, text, zeroed};
use super::json;
use super::version::VRUST_ABI_VERSION;
use crate::config::{
    BackendKind, CpuIsa, DebugOptions, Device, EngineOptions, KvCacheDType, LoadFormat, ModelDType,
    Quantization, SchedulingPolicy,
};
use crate::error::{Error, ErrorKind, Result};

/// `load_format`: the folder's safetensors files.
pub const VRUST_LOAD_AUTO: u32 = 0;
/// `load_format`: seeded random weights from config.json alone, for benchmarks.
pub const VRUST_LOAD_DUMMY: u32 = 1;

/// `dtype`: bfloat16 checkpoints run in bfloat16, all others in float32.
pub const VRUST_DTYPE_AUTO: u32 = 0;
/// `dtype`: float32 arithmetic.
pub const VRUST_DTYPE_FLOAT32: u32 = 1;
/// `dtype`: bfloat16.
pub const VRUST_DTYPE_BFLOAT16: u32 = 2;

/// `backend`: the fast CPU backend.
pub const VRUST_BACKEND_CPU: u32 = 0;
/// `backend`: plain float32 loops on the CPU, the oracle; slow.
pub const VRUST_BACKEND_REFERENCE: u32 = 1;
/// `backend`: the fast one of `device` (see `extra_json`).
pub const VRUST_BACKEND_AUTO: u32 = 2;

/// `scheduling_policy`: first come, first served.
pub const VRUST_SCHEDULING_FCFS: u32 = 0;
/// `scheduling_policy`: lower `priority` first, then arrival.
pub const VRUST_SCHEDULING_PRIORITY: u32 = 1;

/// Options of an engine. Fill it with `vrust_engine_options_init`, which sets every field to its
/// default, then set `model` and what else should differ. Truth values are 0 or 1.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VrustEngineOptions {
    /// Bytes of this struct as the program knows it. Set by the init function.
    pub struct_size: u32,
    /// VRUST_ABI_VERSION of the program's header. Set by the init function.
    pub abi_version: u32,
    /// Model folder, in Hugging Face's layout. Required.
    pub model: *const c_char,
    /// Bytes of `model`.
    pub model_len: usize,
    /// Tokenizer folder; the model folder when absent.
    pub tokenizer: *const c_char,
    /// Bytes of `tokenizer`.
    pub tokenizer_len: usize,
    /// Jinja chat template to use instead of the checkpoint's.
    pub chat_template: *const c_char,
    /// Bytes of `chat_template`.
    pub chat_template_len: usize,
    /// JSON object of rarer options: device ("auto", the default: the first GPU if it can be used
    /// for this model, else the CPU; "cpu"; "cuda" or "cuda:N": that one of the GPUs which the
    /// driver shows, an error if it cannot be had), gpu_memory_utilization (share of a GPU's
    /// memory, as far as it is free at the start, that may be used: above 0, at most 1; 0.92),
    /// async_scheduling (on a GPU: the host prepares a step while the one before runs; true),
    /// enforce_eager (no CUDA graphs), batch_invariant (on a GPU in bfloat16: a request's tokens do
    /// not depend on what else runs, at the cost of speed; everywhere else they never do),
    /// num_kv_blocks, served_model_name (the metrics' model_name;
    /// `model` when absent), quantization ("int8": weights in 8 bits with one scale an output,
    /// "int4": in 4 bits with one scale for each 32 inputs; rounded when they are loaded; inputs
    /// of layers in 8 bits; "none", the default), kv_cache_dtype ("int8": keys and values in 8 bits
    /// with one scale for each token and KV head, so that the cache holds nearly twice the tokens
    /// of bfloat16; on the CPU; "auto", the default: the model's precision, which may be named as
    /// "bfloat16" or "float32"), cpu_isa ("amx", "avx512_bf16", "avx512", "avx2",
    /// "neon_bf16", "neon", "portable"; the best of the machine when absent), cpu_pin_threads
    /// (binds each compute thread to a core; false),
    /// cpu_spin_us (microseconds that a compute thread which waits for others looks before it
    /// sleeps, letting other threads run between its looks: 10000; 0: it sleeps at once),
    /// cpu_commit_kv (a thread of lowest priority commits the KV cache's pages behind the engine's
    /// start, so that no request waits for the kernel to clear them; false: each is committed when
    /// it is first touched; when absent, whether kv_cache_memory_bytes is given), and `debug`, an
    /// object of aids for tests:
    /// panic_at_step (the engine's thread panics there: see what a bug does), nan_logits_for (the
    /// user_data of requests whose logits become NaN), poison_free_blocks, shuffle_blocks (a seed),
    /// check_integrity.
    /// Options of vLLM that this version lacks, such as swap_space, are
    /// VRUST_ERROR_UNSUPPORTED unless their value asks for nothing; an unknown key is an error.
    pub extra_json: *const c_char,
    /// Bytes of `extra_json`.
    pub extra_json_len: usize,
    /// Bytes of the KV cache; 0: on the CPU the smaller of 4 GiB and a quarter of what the process
    /// may use, on a GPU what gpu_memory_utilization leaves.
    pub kv_cache_memory_bytes: u64,
    /// Bytes of undrained events of the default queue past which its requests wait. 64 MiB.
    pub max_undrained_bytes: u64,
    /// Seed of requests that bring none. 0.
    pub seed: u64,
    /// VRUST_LOAD_AUTO or VRUST_LOAD_DUMMY.
    pub load_format: u32,
    /// VRUST_DTYPE_AUTO, VRUST_DTYPE_FLOAT32 or VRUST_DTYPE_BFLOAT16.
    pub dtype: u32,
    /// VRUST_BACKEND_AUTO, VRUST_BACKEND_CPU or VRUST_BACKEND_REFERENCE.
    pub backend: u32,
    /// VRUST_SCHEDULING_FCFS or VRUST_SCHEDULING_PRIORITY.
    pub scheduling_policy: u32,
    /// Most positions of a sequence; 0: the model's own limit.
    pub max_model_len: u32,
    /// Most sequences of a step. 128.
    pub max_num_seqs: u32,
    /// Most tokens of a step. 2048.
    pub max_num_batched_tokens: u32,
    /// Positions of a KV block, a multiple of 8 up to 256. 16.
    pub block_size: u32,
    /// Longest part of a prompt in one step; 0: no such limit.
    pub long_prefill_token_threshold: u32,
    /// Most requests waiting; one more is VRUST_ERROR_QUEUE_FULL. 4096.
    pub max_num_queued_reqs: u32,
    /// Most logprobs a request may ask for. 20.
    pub max_logprobs: u32,
    /// Compute threads; 0: one for each physical core that the process may use.
    pub cpu_threads: u32,
    /// Ranks of tensor parallelism. This version has only 1.
    pub tensor_parallel_size: u32,
    /// Shares the KV blocks of equal prefixes. 1.
    pub enable_prefix_caching: u32,
    /// Cuts long prompts to the step's budget. 1.
    pub enable_chunked_prefill: u32,
    /// Takes sampling defaults from generation_config.json. 1.
    pub use_generation_config: u32,
    /// Runs without a tokenizer: token prompts only, no text. 0.
    pub skip_tokenizer: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C) of integers and pointers, whose sizes add up without padding (checked below).
unsafe impl Versioned for VrustEngineOptions {
    const NAME: &'static str = "VrustEngineOptions";
    const MIN_SIZE: usize = 168;

    fn defaults() -> Self {
        let defaults = EngineOptions::new("");
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        // SAFETY: integers and pointers may be zero.
        let zero: Self = unsafe { zeroed() };
        Self {
            struct_size: size_of::<Self>() as u32,
            abi_version: VRUST_ABI_VERSION,
            max_undrained_bytes: defaults.max_undrained_bytes as u64,
            seed: defaults.seed,
            backend: VRUST_BACKEND_AUTO,
            max_num_seqs: count(defaults.max_num_seqs),
            max_num_batched_tokens: count(defaults.max_num_batched_tokens),
            block_size: count(defaults.block_size),
            long_prefill_token_threshold: count(defaults.long_prefill_token_threshold),
            max_num_queued_reqs: count(defaults.max_num_queued_reqs),
            max_logprobs: count(defaults.max_logprobs),
            tensor_parallel_size: 1,
            enable_prefix_caching: defaults.enable_prefix_caching.into(),
            enable_chunked_prefill: defaults.enable_chunked_prefill.into(),
            use_generation_config: defaults.use_generation_config.into(),
            skip_tokenizer: defaults.skip_tokenizer.into(),
            ..zero
        }
    }
}

const _: () = assert!(size_of::<VrustEngineOptions>() == VrustEngineOptions::MIN_SIZE);

/// Fills `options`, `size` bytes (sizeof *options), with defaults. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vrust_engine_options_init(options: *mut VrustEngineOptions, size: usize) {
    // SAFETY: `options` is NULL or `size` bytes are writable (header, "Structs").
    unsafe { input::init(options, size) };
}

/// The engine's own options from the host's.
///
/// # Safety
/// The pointers in `c` are NULL or readable for their lengths.
pub(super) unsafe fn convert(c: &VrustEngineOptions) -> Result<EngineOptions> {
    // SAFETY: as this function's contract.
    let (model, tokenizer, template, extra) = unsafe {
        (
            text(c.model, c.model_len, "model")?,
            optional_text(c.tokenizer, c.tokenizer_len, "tokenizer")?,
            optional_text(c.chat_template, c.chat_template_len, "chat_template")?,
            optional_text(c.extra_json, c.extra_json_len, "extra_json")?,
        )
    };
    if model.is_empty() {
        return Err(Error::invalid("model", "model: a model folder is required"));
    }
    if c.tensor_parallel_size != 1 {
        let message = format!(
            "tensor_parallel_size: this version has only 1, got {}",
            c.tensor_parallel_size
        );
        let error = Error::new(ErrorKind::Unsupported, message);
        return Err(error.with("field", "tensor_parallel_size").with("limit", 1));
    }
    if c.reserved != 0 {
        return Err(Error::invalid("reserved", format!("reserved: must be 0, got {}", c.reserved)));
    }
    let nonzero = |value: u32| Some(value as usize).filter(|&v| v != 0);
    let mut options = EngineOptions {
        tokenizer: tokenizer.map(Into::into),
        skip_tokenizer: flag(c.skip_tokenizer, "skip_tokenizer")?,
        load_format: choice(c.load_format, "load_format", &LOAD_FORMATS)?,
        dtype: choice(c.dtype, "dtype", &DTYPES)?,
        max_model_len: nonzero(c.max_model_len),
        max_num_seqs: c.max_num_seqs as usize,
        max_num_batched_tokens: c.max_num_batched_tokens as usize,
        block_size: c.block_size as usize,
        kv_cache_memory_bytes: Some(c.kv_cache_memory_bytes).filter(|&bytes| bytes != 0),
        enable_prefix_caching: flag(c.enable_prefix_caching, "enable_prefix_caching")?,
        enable_chunked_prefill: flag(c.enable_chunked_prefill, "enable_chunked_prefill")?,
        long_prefill_token_threshold: c.long_prefill_token_threshold as usize,
        scheduling_policy: choice(c.scheduling_policy, "scheduling_policy", &POLICIES)?,
        max_num_queued_reqs: c.max_num_queued_reqs as usize,
        seed: c.seed,
        max_logprobs: c.max_logprobs as usize,
        use_generation_config: flag(c.use_generation_config, "use_generation_config")?,
        chat_template: template.map(owned).transpose()?,
        max_undrained_bytes: usize::try_from(c.max_undrained_bytes).unwrap_or(usize::MAX),
        backend: choice(c.backend, "backend", &BACKENDS)?,
        cpu_threads: nonzero(c.cpu_threads),
        ..EngineOptions::new(model)
    };
    if let Some(extra) = extra {
        set_extra(&mut options, &json::object(extra, "extra_json")?)?;
    }
    Ok(options)
}

const LOAD_FORMATS: [(u32, LoadFormat); 2] =
    [(VRUST_LOAD_AUTO, LoadFormat::Auto), (VRUST_LOAD_DUMMY, LoadFormat::Dummy)];
const DTYPES: [(u32, ModelDType); 3] = [
    (VRUST_DTYPE_AUTO, ModelDType::Auto),
    (VRUST_DTYPE_FLOAT32, ModelDType::Float32),
    (VRUST_DTYPE_BFLOAT16, ModelDType::BFloat16),
];
const POLICIES: [(u32, SchedulingPolicy); 2] = [
    (VRUST_SCHEDULING_FCFS, SchedulingPolicy::Fcfs),
    (VRUST_SCHEDULING_PRIORITY, SchedulingPolicy::Priority),
];
const BACKENDS: [(u32, BackendKind); 3] = [
    (VRUST_BACKEND_CPU, BackendKind::Cpu),
    (VRUST_BACKEND_REFERENCE, BackendKind::Reference),
    (VRUST_BACKEND_AUTO, BackendKind::Auto),
];

/// What a constant of the header stands for.
fn choice<T: Copy>(value: u32, name: &str, values: &[(u32, T)]) -> Result<T> {
    let found = values.iter().find(|(constant, _)| *constant == value);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let last = values.len() - 1;
        let message = format!("{name}: must be 0 to {last}, got {value}");
        Error::invalid(name, message).with("limit", last).with("value", value)
    })
}

fn set_extra(options: &mut EngineOptions, extra: &Map<String, Value>) -> Result<()> {
    for (key, value) in extra {
        if value.is_null() {
            continue;
        }
        match key.as_str() {
            "device" => options.device = device(json::string(value, key)?)?,
            "gpu_memory_utilization" => {
                options.gpu_memory_utilization = json::double(value, key)?;
            }
            "async_scheduling" => options.async_scheduling = json::boolean(value, key)?,
            "enforce_eager" => options.enforce_eager = json::boolean(value, key)?,
            "batch_invariant" => options.batch_invariant = json::boolean(value, key)?,
            "num_kv_blocks" => options.num_kv_blocks = Some(json::integer(value, key)?),
            "served_model_name" => {
                options.served_model_name = Some(json::string(value, key)?.to_owned());
            }
            "quantization" => options.quantization = quantization(json::string(value, key)?)?,
            "kv_cache_dtype" => {
                options.kv_cache_dtype = kv_cache_dtype(json::string(value, key)?)?;
            }
            "cpu_isa" => options.cpu_isa = Some(cpu_isa(json::string(value, key)?)?),
            "cpu_pin_threads" => options.cpu_pin_threads = json::boolean(value, key)?,
            "cpu_spin_us" => options.cpu_spin_us = json::integer(value, key)?,
            "cpu_commit_kv" => options.cpu_commit_kv = Some(json::boolean(value, key)?),
            "debug" => set_debug(&mut options.debug, json::map(value, key)?)?,
            _ => json::check_neutral(&NEUTRAL, key, value)?,
        }
    }
    Ok(())
}

fn set_debug(debug: &mut DebugOptions, fields: &Map<String, Value>) -> Result<()> {
    for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            "poison_free_blocks" => debug.poison_free_blocks = json::boolean(value, key)?,
            "shuffle_blocks" => debug.shuffle_blocks = Some(json::integer(value, key)?),
            "check_integrity" => debug.check_integrity = json::boolean(value, key)?,
            "panic_at_step" => debug.panic_at_step = Some(json::integer(value, key)?),
            "nan_logits_for" => debug.nan_logits_for = Some(json::integer(value, key)?),
            _ => return Err(Error::invalid(key, format!("debug.{key}: unknown field"))),
        }
    }
    Ok(())
}

/// Options of vLLM's which this version lacks, with the value that asks for nothing.
const NEUTRAL: [json::Neutral; 9] = [
    ("swap_space", json::Ask::Number(0.0)),
    ("cpu_offload_gb", json::Ask::Number(0.0)),
    ("kv_offloading_size", json::Ask::Number(0.0)),
    ("pipeline_parallel_size", json::Ask::Number(1.0)),
    ("data_parallel_size", json::Ask::Number(1.0)),
    ("enable_expert_parallel", json::Ask::False),
    ("enable_lora", json::Ask::False),
    ("trust_remote_code", json::Ask::Anything), // No code of a checkpoint is ever run.
    ("speculative_config", json::Ask::Nothing),
];

fn device(name: &str) -> Result<Device> {
    let ordinal = match name {
        "auto" => return Ok(Device::Auto),
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        other => other
            .strip_prefix("cuda:")
            .filter(|number| number.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|number| number.parse().ok()),
    };
    ordinal.map(Device::Cuda).ok_or_else(|| {
        let message = format!("device: must be auto, cpu, cuda or cuda:N, got {name:?}");
        Error::invalid("device", message).with("value", name)
    })
}

fn quantization(name: &str) -> Result<Option<Quantization>> {
    let known = [Quantization::Int8, Quantization::Int4].into_iter().find(|q| q.name() == name);
    if known.is_none() && name != "none" {
        let message = format!(
            "quantization: this version quantizes to int8 or int4 when it loads, not to {name:?}"
        );
        let error = Error::new(ErrorKind::Unsupported, message);
        return Err(error.with("field", "quantization").with("value", name));
    }
    Ok(known)
}

fn kv_cache_dtype(name: &str) -> Result<KvCacheDType> {
    let all =
        [KvCacheDType::Auto, KvCacheDType::Float32, KvCacheDType::BFloat16, KvCacheDType::Int8];
    all.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
        let message = format!(
            "kv_cache_dtype: this version has auto, float32, bfloat16 and int8, not {name:?}"
        );
        let error = Error::new(ErrorKind::Unsupported, message);
        error.with("field", "kv_cache_dtype").with("value", name)
    })
}

fn cpu_isa(name: &str) -> Result<CpuIsa> {
    match name {
        "amx" => Ok(CpuIsa::Amx),
        "avx512_bf16" => Ok(CpuIsa::Avx512Bf16),
        "avx512" => Ok(CpuIsa::Avx512),
        "avx2" => Ok(CpuIsa::Avx2),
        "neon_bf16" => Ok(CpuIsa::NeonBf16),
        "neon" => Ok(CpuIsa::Neon),
        "portable" => Ok(CpuIsa::Portable),
        _ => {
            let known = "amx, avx512_bf16, avx512, avx2, neon_bf16, neon or portable";
            let message = format!("cpu_isa: must be {known}, got {name:?}");
            Err(Error::invalid("cpu_isa", message).with("value", name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::input::read;

    fn options() -> VrustEngineOptions {
        VrustEngineOptions {
            model: b"m".as_ptr().cast(),
            model_len: 1,
            ..VrustEngineOptions::defaults()
        }
    }

    fn with_extra(extra: &str) -> Result<EngineOptions> {
        let c = VrustEngineOptions {
            extra_json: extra.as_ptr().cast(),
            extra_json_len: extra.len(),
            ..options()
        };
        // SAFETY: the pointers are to live strings.
        unsafe { convert(&c) }
    }

    #[test]
    fn defaults_are_the_rust_defaults() {
        // SAFETY: the pointers are to static strings.
        assert_eq!(unsafe { convert(&options()) }.unwrap(), EngineOptions::new("m"));
    }

    #[test]
    fn extra_options_are_strict() {
        let set = with_extra(r#"{"num_kv_blocks":9,"cpu_isa":"avx2","swap_space":0}"#).unwrap();
        let commits = with_extra(r#"{"cpu_commit_kv":false}"#).unwrap().cpu_commit_kv;
        assert_eq!((set.cpu_commit_kv, commits), (None, Some(false)));
        let named = with_extra(r#"{"served_model_name":"m"}"#).unwrap();
        assert_eq!(named.served_model_name.as_deref(), Some("m"));
        let int4 = with_extra(r#"{"quantization":"int4"}"#).unwrap();
        assert_eq!(int4.quantization, Some(Quantization::Int4));
        assert_eq!(with_extra(r#"{"quantization":"none"}"#).unwrap().quantization, None);
        for dtype in [KvCacheDType::Auto, KvCacheDType::BFloat16, KvCacheDType::Int8] {
            let extra = format!(r#"{{"kv_cache_dtype":"{}"}}"#, dtype.name());
            assert_eq!(with_extra(&extra).unwrap().kv_cache_dtype, dtype);
        }
        assert_eq!((set.num_kv_blocks, set.cpu_isa), (Some(9), Some(CpuIsa::Avx2)));
        for (name, meant) in [("cuda", Device::Cuda(0)), ("cuda:12", Device::Cuda(12))] {
            let extra = format!(r#"{{"device":"{name}","gpu_memory_utilization":0.5}}"#);
            let set = with_extra(&extra).unwrap();
            assert_eq!((set.device, set.gpu_memory_utilization), (meant, 0.5));
        }
        let cases = [
            (r#"{"swap_space":4}"#, ErrorKind::Unsupported, "swap_space"),
            (r#"{"quantization":"awq"}"#, ErrorKind::Unsupported, "quantization"),
            (r#"{"kv_cache_dtype":"fp8"}"#, ErrorKind::Unsupported, "kv_cache_dtype"),
            (r#"{"kv_cache_dtype":8}"#, ErrorKind::InvalidArgument, "kv_cache_dtype"),
            (r#"{"device":"cuda:x"}"#, ErrorKind::InvalidArgument, "device"),
            (r#"{"device":"cuda:+1"}"#, ErrorKind::InvalidArgument, "device"),
            (r#"{"device":"tpu"}"#, ErrorKind::InvalidArgument, "device"),
            (r#"{"async_scheduling":1}"#, ErrorKind::InvalidArgument, "async_scheduling"),
            (r#"{"enforce_eager":2}"#, ErrorKind::InvalidArgument, "enforce_eager"),
            (r#"{"debug":1}"#, ErrorKind::InvalidArgument, "debug"),
            (r#"{"debug":{"panic":1}}"#, ErrorKind::InvalidArgument, "panic"),
            (r#"{"debug":{"nan_logits_for":-1}}"#, ErrorKind::InvalidArgument, "nan_logits_for"),
            (r#"{"num_blocks":4}"#, ErrorKind::InvalidArgument, "num_blocks"),
            (r#"{"num_kv_blocks":-4}"#, ErrorKind::InvalidArgument, "num_kv_blocks"),
            (r#"{"cpu_isa":"mmx"}"#, ErrorKind::InvalidArgument, "cpu_isa"),
            ("[]", ErrorKind::InvalidArgument, "extra_json"),
            ("{", ErrorKind::InvalidArgument, "extra_json"),
        ];
        for (extra, kind, field) in cases {
            let error = with_extra(extra).unwrap_err();
            assert_eq!((error.kind(), &error.detail()["field"]), (kind, &field.into()), "{extra}");
        }
    }

    #[test]
    fn sizes_and_versions_of_other_headers() {
        // SAFETY: `bytes` is as long as the struct_size it claims, at most.
        let read = |bytes: &[u8]| unsafe { read(bytes.as_ptr().cast::<VrustEngineOptions>(), "o") };
        let mut bytes = vec![0u8; 200];
        let set = |bytes: &mut [u8], at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        let mismatch = |bytes: &[u8]| read(bytes).err().map(|e| e.kind());
        assert_eq!(mismatch(&bytes), Some(ErrorKind::AbiMismatch));
        set(&mut bytes, 4, VRUST_ABI_VERSION);
        for (size, expected) in [(167, Some(ErrorKind::AbiMismatch)), (168, None), (200, None)] {
            set(&mut bytes, 0, size);
            assert_eq!(mismatch(&bytes), expected, "{size}");
        }
        bytes[199] = 1;
        assert_eq!(mismatch(&bytes), Some(ErrorKind::AbiMismatch));
        for version in [VRUST_ABI_VERSION + 1, 1 << 16] {
            set(&mut bytes, 4, version);
            assert_eq!(mismatch(&bytes[..168]), Some(ErrorKind::AbiMismatch));
        }
    }
}
