//! The backend: about fifteen coarse ops on tensors, and nothing of llama, sequences or text.
//!
//! ```text
//!  load:  pack_linear · vector · rope_table · activation · allocate    (may fail, may allocate)
//!  step:  begin_step ─► embed ─► [norm ─► linear ─► rope_write_kv ─► attention ─► ...] ─► logits
//!                                                                                          │
//!                  map_logits / finish_step / submit ─► collect   ◄── synchronisation ─────┘
//! ```
//!
//! Inside a step an op only *describes* work: it does not allocate, synchronise or read back, so
//! that a CPU backend may run the whole step as one program on its hot threads and a GPU backend
//! may capture it as a graph. Faults of the device surface at the synchronisation points.
//! Shapes that contradict each other are programmer mistakes and assert.
//!
//! Weights enter as logical linear parts (`LinearSpec`) and leave as opaque handles; no op sees an
//! element type, so that quantized schemes and shards need no new op.

pub mod cpu;
#[allow(unsafe_code, reason = "the driver and its libraries are C, and device memory is raw")]
pub mod cuda;
pub mod reference;

use std::ops::Range;

use crate::error::Result;
use crate::ids::{BlockCopy, BlockId, TokenId};
use crate::request::{LogitChanges, RowScores};

/// A packed linear layer (or embedding table): weights `[out, in]` and an optional bias `[out]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearId(pub u32);
/// A small f32 parameter such as a norm's weight `[width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorId(pub u32);
/// A rotary embedding's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeId(pub u32);
/// An activation `[max_tokens, width]`, f32, one row a token of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActId(pub u32);

/// Element types of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Widens little-endian elements to f32; `raw` holds `out.len()` of them.
    pub fn widen(self, raw: &[u8], out: &mut [f32]) {
        assert_eq!(raw.len(), out.len() * self.size(), "raw holds exactly the elements of out");
        match self {
            Self::F32 => {
                for (o, b) in out.iter_mut().zip(raw.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => {
                for (o, b) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
                    *o = half::f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::Bf16 => {
                for (o, b) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
                    *o = half::bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }
}

/// The precision of linear layers and of the KV cache. Residuals, norms, softmax, accumulation
/// and logits are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeType {
    /// Inputs of linear layers stay f32; weights are kept in the checkpoint's own type and widened
    /// exactly, so bf16 and f16 checkpoints cost no extra memory. The KV cache is f32.
    F32,
    /// Weights and the inputs of linear layers are rounded to bf16, products summed in f32.
    /// The KV cache is bf16.
    Bf16,
}

/// Rows of a weight matrix, read on demand, so that no whole tensor need be in memory twice.
/// Several threads may read at once.
pub trait RowSource: Sync {
    /// The tensor's name in the checkpoint, for messages.
    fn name(&self) -> &str;
    /// Element type of what `read_rows` writes.
    fn dtype(&self) -> DType;
    /// Rows: output features.
    fn rows(&self) -> usize;
    /// Columns: input features.
    fn cols(&self) -> usize;
    /// Reads `rows` as little-endian elements, row-major `[rows.len(), cols]`, into `out`
    /// (`rows.len() * cols * dtype.size()` bytes). Fails on a short read and on NaN or infinity.
    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()>;
    /// Bytes of rows that are best read in one go: what stays in a core's cache, unless the source
    /// has its reasons.
    fn piece_bytes(&self) -> usize {
        256 << 10
    }
}

/// One source tensor of a linear layer.
pub struct LinearPart {
    /// The weights, `[out, in]`.
    pub weight: Box<dyn RowSource>,
    /// The bias, `[out]`.
    pub bias: Option<Vec<f32>>,
}

/// A linear layer as the model means it: parts stacked along the outputs (q, k, v; gate, up).
pub struct LinearSpec {
    /// The parts, in output order; all have the same number of columns.
    pub parts: Vec<LinearPart>,
    /// What the model does with it.
    pub role: LinearRole,
}

/// What a model does with a matrix: quantization treats them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearRole {
    /// A linear layer within the model.
    Hidden,
    /// Two parts of as many outputs, gate and up, whose output `gated_activation` takes: a backend
    /// may lay them out so that both are one step.
    GateUp,
    /// The embedding of tokens, the head, or both: rows are looked up, and logits come from it.
    Vocabulary,
    /// Learned positions: rows are looked up.
    Positions,
}

/// The largest step that the engine will ask for; activations and scratch are sized by it.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Tokens (rows) of one step.
    pub max_tokens: usize,
    /// Sequences of one step.
    pub max_seqs: usize,
    /// Rows of one `logits` call.
    pub max_logits_rows: usize,
    /// Entries of the flat block table of one group.
    pub max_block_table: usize,
}

/// One group of layers that share a block table (all layers, until hybrid models come).
#[derive(Clone, Debug)]
pub struct KvGroup {
    /// Attention layers of this group, by index.
    pub layers: Vec<usize>,
    /// Key-value heads of each layer.
    pub num_kv_heads: usize,
    /// Elements of each head.
    pub head_dim: usize,
}

/// What the KV cache must hold; how it lies in memory is the backend's business.
#[derive(Clone, Debug)]
pub struct KvSpec {
    /// Groups; `StepInput` has one block table and one slot mapping for each.
    pub groups: Vec<KvGroup>,
    /// Token positions of one block.
    pub block_size: usize,
}

/// A rotary embedding, as inverse frequencies: dimension pair `i` of a head turns by
/// `position * inv_freq[i]`. Pairs are `(i, i + rotary_dim / 2)`, the GPT-NeoX layout.
#[derive(Clone, Debug)]
pub struct RopeSpec {
    /// Inverse frequencies, `[rotary_dim / 2]`, scaling already applied.
    pub inv_freq: Vec<f64>,
    /// Factor on sine and cosine (yarn's magnitude; 1 otherwise).
    pub magnitude: f32,
    /// Positions that the table must cover.
    pub max_positions: usize,
}

/// Heads of an attention layer. A QKV activation is `[tokens, (heads + 2 * kv_heads) * head_dim]`:
/// all query heads, then all key heads, then all value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; divides `num_heads`. Query head `h` reads KV head
    /// `h / (num_heads / num_kv_heads)`.
    pub num_kv_heads: usize,
    /// Elements of each head.
    pub head_dim: usize,
}

impl Heads {
    /// Width of a QKV row.
    pub fn qkv_width(self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Width of a query row, and of the attention's output.
    pub fn q_width(self) -> usize {
        self.num_heads * self.head_dim
    }
}

/// What happens to queries and keys before they are cached and used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeWrite {
    /// Head counts.
    pub heads: Heads,
    /// RMS norm over each query head and each key head, before the rotation: weights
    /// `[head_dim]` of both, and epsilon.
    pub qk_norm: Option<(VectorId, VectorId, f32)>,
    /// The rotation, if the model has one.
    pub rope: Option<RopeId>,
}

/// How queries attend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Head counts.
    pub heads: Heads,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Position `p` sees positions `p - window + 1 ..= p`; everything up to `p` when absent.
    pub sliding_window: Option<usize>,
}

/// Activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, Hugging Face's `gelu_new`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

/// One sequence's rows of a step.
#[derive(Clone, Copy, Debug)]
pub struct SeqInput {
    /// First row of this sequence; its rows are consecutive.
    pub query_start: usize,
    /// Rows of this sequence in this step, at least 1.
    pub query_len: usize,
    /// Positions before this step; row `i` has position `context_len + i`.
    pub context_len: usize,
    /// First entry of this sequence in each group's flat block table.
    pub block_table_start: usize,
    /// Blocks of this sequence: enough for `context_len + query_len` positions.
    pub num_blocks: usize,
}

/// One step's input, flattened.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// `[tokens]`.
    pub token_ids: &'a [TokenId],
    /// `[tokens]`, position of each row in its sequence.
    pub positions: &'a [u32],
    /// Sequences, in row order.
    pub seqs: &'a [SeqInput],
    /// By group: flat block table, indexed by `SeqInput::block_table_start`.
    pub block_tables: &'a [Vec<BlockId>],
    /// By group: `[tokens]`, `block * block_size + offset` where each row's K and V are written.
    pub slot_mapping: &'a [Vec<u64>],
    /// Copies to make before anything else.
    pub block_copies: &'a [BlockCopy],
    /// The rows whose logits may be asked for, ascending; any of them where absent.
    pub wanted: Option<&'a [u32]>,
}

/// How a row's token is drawn by the backend, as `sampling` would, which is the oracle.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawRule {
    /// Seed of the noise.
    pub seed: u64,
    /// The new token's place in its sequence.
    pub position: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// `ln(min_p)`; -inf is off.
    pub ln_min_p: f32,
    /// What is done to the logits before, if anything.
    pub changes: Option<LogitChanges>,
    /// Scores the token drawn and so many of the most likely ones, by the logits before changes.
    pub top_n: Option<usize>,
    /// Scores this token, and draws none.
    pub target: Option<TokenId>,
}

/// What came of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// `None` if the row's logits are none that a healthy model gives, or all are masked.
    pub token: Option<TokenId>,
    /// If they were asked for.
    pub scores: Option<RowScores>,
}

/// What a backend did since it was made. Counted inside the ops, not by their callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// Rows that went through `embed`.
    pub token_rows: u64,
    /// Rows that went through `logits`.
    pub logits_rows: u64,
    /// Steps begun.
    pub steps: u64,
}

/// A place where models run. Made, used and dropped on the engine's worker thread.
pub trait Backend {
    /// Name for info and logs, e.g. `cpu (avx512-bf16, 2 threads)`.
    fn describe(&self) -> String;

    // ---- load time: may fail, may allocate ----

    /// Packs a linear layer's parts into this backend's own layout.
    fn pack_linear(&mut self, spec: LinearSpec) -> Result<LinearId>;
    /// Keeps a small f32 parameter.
    fn vector(&mut self, values: Vec<f32>) -> Result<VectorId>;
    /// Makes a rotary embedding's table.
    fn rope_table(&mut self, spec: &RopeSpec) -> Result<RopeId>;
    /// Reserves an activation of `width` columns; committed by `allocate`.
    fn activation(&mut self, width: usize) -> ActId;
    /// Bytes of one block over all layers and groups.
    fn kv_block_bytes(&self, spec: &KvSpec) -> usize;
    /// Bytes that a device has for the KV cache, beside the weights and what steps within `limits`
    /// need; `None` where the cache lies in the process's own memory.
    fn kv_memory(&self, _limits: &StepLimits, _kv: &KvSpec) -> Result<Option<u64>> {
        Ok(None)
    }
    /// Allocates activations, scratch and a KV cache of `num_blocks` blocks (the null block
    /// included). Called once, after the model is loaded.
    fn allocate(&mut self, limits: StepLimits, kv: &KvSpec, num_blocks: usize) -> Result<()>;

    // ---- a step: describe work ----

    /// Takes the step's input and plans it.
    fn begin_step(&mut self, input: &StepInput<'_>);
    /// `out[t] = table[token_ids[t]]`.
    fn embed(&mut self, table: LinearId, out: ActId);
    /// `x[t] += table[positions[t]]`, learned positions.
    fn add_position(&mut self, table: LinearId, x: ActId);
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId);
    /// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, row by row.
    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId);
    /// `out = x W^T + b`.
    fn linear(&mut self, weight: LinearId, x: ActId, out: ActId);
    /// `residual += x W^T + b`.
    fn linear_add(&mut self, weight: LinearId, x: ActId, residual: ActId);
    /// Normalises and rotates the queries and keys of `qkv` in place, then writes keys and values
    /// of attention layer `layer` to the KV cache.
    fn rope_write_kv(&mut self, layer: usize, qkv: ActId, spec: &RopeWrite);
    /// `out[t] = softmax(q[t] K^T * scale) V` over the cached positions that row `t` may see, this
    /// step's included. `out` is `[tokens, heads * head_dim]`.
    fn paged_attention(&mut self, layer: usize, qkv: ActId, spec: &Attention, out: ActId);
    /// `out = act(gate) * up`, where a row of `gate_up` is gate then up. `gate_up` may be undefined
    /// afterwards: a backend need not keep what only this op reads.
    fn gated_activation(&mut self, gate_up: ActId, kind: Activation, out: ActId);
    /// `x = act(x)`.
    fn activate(&mut self, x: ActId, kind: Activation);
    /// From here on the step needs the rows that `StepInput::wanted` lists, and no others: keys and
    /// values are written, and later ops read `acts` alone of what ops before made. A backend may
    /// bring these rows of them together and leave the others out. `logits` is still asked for rows
    /// of the step.
    fn keep_rows(&mut self, _acts: &[ActId]) {}
    /// Logits `[rows.len(), vocab]` of the given rows of `x`, kept until the next `logits` call.
    fn logits(&mut self, head: LinearId, x: ActId, rows: &[u32]);

    // ---- synchronisation ----

    /// Runs what was described and then `f(i, logits)` for each row `i` of the last `logits` call,
    /// concurrently and in no order. `f` may change the logits; a panic in `f` is passed on.
    fn map_logits(&mut self, f: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Result<()>;
    /// Runs what was described.
    fn finish_step(&mut self) -> Result<()>;

    // ---- drawing on the device, and steps that run while the host goes on ----

    /// Whether `submit` ever does anything.
    fn draws(&self) -> bool {
        false
    }
    /// Starts what was described and draws a token from each of `rows` of `x` by its rule, where
    /// this backend can; `false`, and nothing done, leaves the step to `logits` and `map_logits`.
    /// One step may be submitted behind another one; the oldest must be collected before a third.
    fn submit(
        &mut self,
        _head: LinearId,
        _x: ActId,
        _rows: &[u32],
        _rules: &[DrawRule],
    ) -> Result<bool> {
        Ok(false)
    }
    /// In the step that was begun, the token of row `.0` is the one drawn from row `.1` of the step
    /// that was submitted last, whether the host has collected it or not.
    fn feed(&mut self, _places: &[(u32, u32)]) {}
    /// Waits for the oldest step that was submitted: what came of its rows.
    fn collect(&mut self) -> Result<Vec<Drawn>> {
        Ok(Vec::new())
    }

    // ---- around steps ----

    /// What was done so far.
    fn counters(&self) -> BackendCounters;
    /// Fills blocks with `value` in every layer: an aid for tests, which fill free blocks with NaN.
    fn fill_blocks(&mut self, blocks: &[BlockId], value: f32);
}
