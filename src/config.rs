//! What an engine is made with.

use std::path::PathBuf;

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadFormat {
    /// The folder's safetensors files.
    #[default]
    Auto,
    /// Seeded random weights from config.json alone, for benchmarks.
    Dummy,
}

/// Precision of weights, linear layers and KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelDType {
    /// bf16 checkpoints run in bfloat16, all others in float32.
    #[default]
    Auto,
    /// float32 arithmetic; the weights keep the checkpoint's type.
    Float32,
    /// bfloat16.
    BFloat16,
}

/// How weights are rounded to integers when they are loaded. The inputs of linear layers are
/// rounded to 8 bits as they come; sums between groups, and everything else, stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8 bits, one scale for each output.
    Int8,
    /// 4 bits, one scale for each 32 inputs of an output; the vocabulary's matrices as `Int8`.
    Int4,
}

impl Quantization {
    /// As options and info spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// What keys and values are kept as. float32 and bfloat16 are what `Auto` means in that precision,
/// and only there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheDType {
    /// The model's own precision.
    #[default]
    Auto,
    /// float32.
    Float32,
    /// bfloat16.
    BFloat16,
    /// 8 bits, with one scale for each token and KV head.
    Int8,
}

impl KvCacheDType {
    /// As options and info spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }
}

/// Order of the waiting queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulingPolicy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// Lower `priority` first, then arrival.
    Priority,
}

/// Which backend runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// The fast one of the device.
    #[default]
    Auto,
    /// The fast CPU backend.
    Cpu,
    /// Plain loops in f32 on the CPU: the oracle, slow.
    Reference,
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if one can be used for this model, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This one of the GPUs that the CUDA driver shows; an error if it cannot be had.
    Cuda(u32),
}

/// Instruction path of the CPU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuIsa {
    /// AMX with BF16 and INT8, beside AVX-512 with BF16 and VNNI.
    Amx,
    /// AVX-512 with BF16 dot products.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX2, FMA, F16C.
    Avx2,
    /// NEON with BF16 dot products, on aarch64.
    NeonBf16,
    /// NEON, on aarch64; with DotProd for quantized weights where the machine has it.
    Neon,
    /// Plain Rust.
    Portable,
}

/// Aids for tests; off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugOptions {
    /// Fills blocks with NaN when they become free and uncached.
    pub poison_free_blocks: bool,
    /// Shuffles the order in which physical blocks are first handed out, by this seed.
    pub shuffle_blocks: Option<u64>,
    /// Checks the scheduler's and the cache's invariants after every step.
    pub check_integrity: bool,
    /// Panics in the worker at this step, to show what a bug does to the host.
    pub panic_at_step: Option<u64>,
    /// Turns the logits of requests with this `user_data` into NaN.
    pub nan_logits_for: Option<u64>,
}

/// Options of an engine. `None` means "the engine decides".
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Model folder, in Hugging Face's layout.
    pub model: PathBuf,
    /// Tokenizer folder; the model folder when absent.
    pub tokenizer: Option<PathBuf>,
    /// Runs without a tokenizer: token prompts only, no text.
    pub skip_tokenizer: bool,
    /// Where weights come from.
    pub load_format: LoadFormat,
    /// Precision.
    pub dtype: ModelDType,
    /// Most positions of a sequence; the model's own limit when absent.
    pub max_model_len: Option<usize>,
    /// How weights are rounded when they are loaded; not at all when absent.
    pub quantization: Option<Quantization>,
    /// What keys and values are kept as. Default `Auto`.
    pub kv_cache_dtype: KvCacheDType,
    /// Most sequences of a step. Default 128.
    pub max_num_seqs: usize,
    /// Most tokens of a step. Default 2048.
    pub max_num_batched_tokens: usize,
    /// Positions of a KV block, a multiple of 8 up to 256. Default 16.
    pub block_size: usize,
    /// Bytes of the KV cache; when absent, on the CPU, the smaller of 4 GiB and a quarter of what
    /// the process may use; on a GPU what `gpu_memory_utilization` leaves.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Blocks of the KV cache (without the null block), instead of bytes: for tests.
    pub num_kv_blocks: Option<usize>,
    /// What the metrics' label `model_name` says; the model's folder when absent.
    pub served_model_name: Option<String>,
    /// Shares the KV blocks of equal prefixes. Default true.
    pub enable_prefix_caching: bool,
    /// Cuts long prompts to the step's budget. Default true.
    pub enable_chunked_prefill: bool,
    /// Longest part of a prompt in one step; 0 is no such limit.
    pub long_prefill_token_threshold: usize,
    /// Order of the waiting queue.
    pub scheduling_policy: SchedulingPolicy,
    /// Most requests waiting; one more is `QUEUE_FULL`. Default 4096.
    pub max_num_queued_reqs: usize,
    /// Seed of requests that bring none. Default 0.
    pub seed: u64,
    /// Most logprobs a request may ask for. Default 20.
    pub max_logprobs: usize,
    /// Takes sampling defaults from generation_config.json. Default true.
    pub use_generation_config: bool,
    /// Jinja chat template to use instead of the checkpoint's.
    pub chat_template: Option<String>,
    /// Bytes of undrained events of one queue past which its sequences wait. Default 64 MiB.
    pub max_undrained_bytes: usize,
    /// Which backend.
    pub backend: BackendKind,
    /// Where the model runs. Default `Auto`.
    pub device: Device,
    /// Share of a GPU's memory, as far as it is free when the engine starts, which weights,
    /// activations and KV cache may fill: above 0, at most 1. Default 0.92.
    pub gpu_memory_utilization: f64,
    /// Prepares a step while the device runs the one before, where the device draws the tokens.
    /// Default true.
    pub async_scheduling: bool,
    /// Does without CUDA graphs. Default false.
    pub enforce_eager: bool,
    /// On a GPU in bfloat16: only kernels whose result for a row does not depend on what else runs,
    /// at the cost of speed. Everywhere else that is so anyway. Default false.
    pub batch_invariant: bool,
    /// Compute threads; one for each physical core that the process may use when absent.
    pub cpu_threads: Option<usize>,
    /// Instruction path; the best one when absent.
    pub cpu_isa: Option<CpuIsa>,
    /// Binds each compute thread to a core. Default false: the host's threads need cores too.
    pub cpu_pin_threads: bool,
    /// Microseconds that a compute thread which waits for others looks before it sleeps, letting
    /// other threads run between its looks; 0: it sleeps at once. Default 10,000.
    pub cpu_spin_us: usize,
    /// Whether a thread commits the KV cache's pages behind the engine's start, while it is idle;
    /// they are committed as they are touched else. When absent, whether `kv_cache_memory_bytes` is
    /// given.
    pub cpu_commit_kv: Option<bool>,
    /// Aids for tests.
    pub debug: DebugOptions,
}

/// `cpu_spin_us` where nobody says.
pub(crate) const CPU_SPIN_US: usize = 10_000;

impl EngineOptions {
    /// Defaults for the model in `model`.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            tokenizer: None,
            skip_tokenizer: false,
            load_format: LoadFormat::Auto,
            dtype: ModelDType::Auto,
            quantization: None,
            kv_cache_dtype: KvCacheDType::Auto,
            max_model_len: None,
            max_num_seqs: 128,
            max_num_batched_tokens: 2048,
            block_size: 16,
            kv_cache_memory_bytes: None,
            num_kv_blocks: None,
            served_model_name: None,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            long_prefill_token_threshold: 0,
            scheduling_policy: SchedulingPolicy::Fcfs,
            max_num_queued_reqs: 4096,
            seed: 0,
            max_logprobs: 20,
            use_generation_config: true,
            chat_template: None,
            max_undrained_bytes: 64 << 20,
            backend: BackendKind::Auto,
            device: Device::Auto,
            gpu_memory_utilization: 0.92,
            async_scheduling: true,
            enforce_eager: false,
            batch_invariant: false,
            cpu_threads: None,
            cpu_isa: None,
            cpu_pin_threads: false,
            cpu_spin_us: CPU_SPIN_US,
            cpu_commit_kv: None,
            debug: DebugOptions::default(),
        }
    }
}
