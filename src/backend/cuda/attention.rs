//! Launches of what reads and writes the KV cache.

use super::driver::{DevicePtr, Grid};
use super::kernels::{
    PREFILL_SM90_BLOCK, decode_block, decode_shared, prefill_block, prefill_shared,
    prefill_sm90_shared,
};
use super::launch::{Launcher, params};
use super::work::{head_dim_index, head_groups, most_shares};
use crate::backend::{ActId, Attention, ComputeType, RopeWrite, VectorId};
use crate::error::Result;

/// The parameter of `rope_write_kv_T`.
#[repr(C)]
struct RopeArgs {
    qkv: DevicePtr,
    kv: DevicePtr,
    positions: DevicePtr,
    slots: DevicePtr,
    q_norm: DevicePtr,
    k_norm: DevicePtr,
    rope: DevicePtr,
    block_stride: u64,
    k_offset: u64,
    v_offset: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    block_size: u32,
    eps: f32,
}

/// The parameter of the attention kernels.
#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionArgs {
    out: DevicePtr,
    qkv: DevicePtr,
    kv: DevicePtr,
    block_table: DevicePtr,
    seqs: DevicePtr,
    row_seq: DevicePtr,
    sinks: DevicePtr,
    work: DevicePtr,
    num_work: DevicePtr,
    partial: DevicePtr,
    block_stride: u64,
    k_offset: u64,
    v_offset: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    block_size: u32,
    qkv_width: u32,
    window: u32,
    scale: f32,
    softcap: f32,
}

const _: () = assert!(size_of::<RopeArgs>() == 104 && size_of::<AttentionArgs>() == 136);

impl Launcher<'_> {
    pub(super) fn rope_write(&self, layer: usize, qkv: ActId, spec: &RopeWrite) -> Result<()> {
        let (kv, heads) = (self.backend.kv_pool(), spec.heads);
        assert_eq!(self.width(qkv), heads.qkv_width(), "a row is queries, keys and values");
        let place = kv.layers[layer];
        let norm = |vector: VectorId| {
            let vector = self.backend.vector_of(vector);
            assert_eq!(vector.len, heads.head_dim, "a head's norm is as wide as the head");
            vector.memory
        };
        let (q_norm, k_norm, eps) =
            spec.qk_norm.map_or((0, 0, 0.0), |(q, k, eps)| (norm(q), norm(k), eps));
        let rope = spec.rope.map(|rope| self.backend.ropes[rope.0 as usize]);
        let args = RopeArgs {
            qkv: self.ptr(qkv),
            kv: kv.memory,
            positions: self.word(self.layout.positions()),
            slots: self.word(self.layout.slots(place.group)),
            q_norm,
            k_norm,
            rope: rope.map_or(0, |rope| rope.memory),
            block_stride: kv.block_elements as u64,
            k_offset: place.k_offset as u64,
            v_offset: place.v_offset as u64,
            heads: heads.num_heads as u32,
            kv_heads: heads.num_kv_heads as u32,
            head_dim: heads.head_dim as u32,
            rotary_dim: rope.map_or(0, |rope| rope.rotary_dim as u32),
            block_size: kv.block_size as u32,
            eps,
        };
        let heads = heads.num_heads + 2 * heads.num_kv_heads;
        let grid = Grid::new(heads.div_ceil(4), self.layout.rows, 128);
        let kernel = self.backend.kernels.rope_write_kv;
        // SAFETY: `qkv` has the layout's rows; slots are within the pool or say that nothing is
        // written; positions are within the table (`begin_step` checks both).
        unsafe { self.backend.stream.launch(kernel, grid, params![args]) }
    }

    pub(super) fn attention(
        &self,
        layer: usize,
        qkv: ActId,
        spec: &Attention,
        out: ActId,
        bf16: bool,
    ) -> Result<()> {
        let (kv, heads) = (self.backend.kv_pool(), spec.heads);
        let bf16_cache = self.backend.compute() == ComputeType::Bf16;
        let widths = (self.width(qkv), self.width(out));
        assert_eq!(widths, (heads.qkv_width(), heads.q_width()), "widths are the heads'");
        let place = kv.layers[layer];
        let args = AttentionArgs {
            out: self.ptr(out),
            qkv: self.ptr(qkv),
            kv: kv.memory,
            block_table: self.word(self.layout.block_table(place.group)),
            seqs: self.word(self.layout.seqs()),
            row_seq: self.word(self.layout.row_seq()),
            sinks: 0,
            work: 0,
            num_work: 0,
            partial: 0,
            block_stride: kv.block_elements as u64,
            k_offset: place.k_offset as u64,
            v_offset: place.v_offset as u64,
            heads: heads.num_heads as u32,
            kv_heads: heads.num_kv_heads as u32,
            head_dim: heads.head_dim as u32,
            block_size: kv.block_size as u32,
            qkv_width: heads.qkv_width() as u32,
            window: spec.sliding_window.map_or(0, |w| u32::try_from(w).unwrap_or(u32::MAX)),
            scale: spec.scale,
            softcap: 0.0,
        };
        if bf16_cache && let Some(window) = self.backend.work.index(spec) {
            self.prefill(layer, spec, args, bf16)?;
            return self.decode(window, spec, args, bf16);
        }
        let shared = 16 * (heads.head_dim as u32 + 2);
        let grid = Grid { shared, ..Grid::new(heads.num_heads, self.layout.rows, 128) };
        let kernel = self.backend.kernels.paged_attention.of(bf16);
        // SAFETY: activations have the layout's rows; block tables name blocks of the pool.
        unsafe { self.backend.stream.launch(kernel, grid, params![args]) }
    }

    /// The rows of prompts, by the step's tiles.
    fn prefill(
        &self,
        layer: usize,
        spec: &Attention,
        args: AttentionArgs,
        bf16: bool,
    ) -> Result<()> {
        let (stream, heads) = (&self.backend.stream, spec.heads);
        let tensor = self.backend.kernels.tensor.as_ref().expect("bfloat16 has these kernels");
        let at = head_dim_index(heads.head_dim).expect("only such heads are planned");
        let tiles = self.backend.work.tiles.len();
        if tiles == 0 {
            return Ok(());
        }
        let args = AttentionArgs { work: self.word(self.layout.tiles()), ..args };
        if let Some(kernels) = &tensor.prefill_attention_sm90 {
            let map = self.backend.kv_pool().boxes[layer];
            let shared = prefill_sm90_shared(heads.head_dim);
            let grid = Grid { shared, ..Grid::new(tiles, heads.num_heads, PREFILL_SM90_BLOCK) };
            // SAFETY: as below; the map is of the layer's part of the pool.
            return unsafe { stream.launch(kernels[at].of(bf16), grid, params![args, map]) };
        }
        let shared = prefill_shared(heads.head_dim);
        let block = prefill_block(heads.head_dim);
        let grid = Grid { shared, ..Grid::new(tiles, heads.num_heads, block) };
        let kernel = tensor.prefill_attention[at].of(bf16);
        // SAFETY: activations have the layout's rows; tiles name the step's sequences and rows,
        // block tables blocks of the pool.
        unsafe { stream.launch(kernel, grid, params![args]) }
    }

    /// Single rows, by the lists that the step has for this window.
    fn decode(
        &self,
        window: usize,
        spec: &Attention,
        args: AttentionArgs,
        bf16: bool,
    ) -> Result<()> {
        let (stream, heads) = (&self.backend.stream, spec.heads);
        let tensor = self.backend.kernels.tensor.as_ref().expect("bfloat16 has these kernels");
        let at = head_dim_index(heads.head_dim).expect("only such heads are planned");
        let lists = &self.backend.work;
        // A graph serves steps whose lists are of other lengths.
        let is_decode = self.backend.step.is_decode;
        if !is_decode && lists.windows()[window].pieces.is_empty() {
            return Ok(());
        }
        let counts = self.layout.counts(window);
        let partial = self.memory.partial;
        let pieces = AttentionArgs {
            work: self.word(self.layout.pieces(window)),
            num_work: self.word(counts),
            partial,
            ..args
        };
        let blocks = match is_decode {
            true => most_shares(head_groups(spec), self.backend.device.multiprocessors),
            false => lists.windows()[window].shares,
        };
        let block = decode_block(heads.head_dim);
        let shared = decode_shared(heads.head_dim);
        let grid = Grid { shared, ..Grid::new(blocks, head_groups(spec), block) };
        let kernel = tensor.decode_attention[at].of(bf16);
        // SAFETY: as above; partial results have room for every piece, and the list for as many as
        // there are blocks.
        unsafe { stream.launch(kernel, grid, params![pieces])? };
        if !is_decode && lists.windows()[window].merges.is_empty() {
            return Ok(());
        }
        let merges = AttentionArgs {
            work: self.word(self.layout.merges(window)),
            num_work: self.word(counts + 4),
            partial,
            ..args
        };
        let rows = match is_decode {
            true => self.layout.rows,
            false => lists.windows()[window].merges.len(),
        };
        let grid = Grid::new(rows, heads.num_heads, 128);
        // SAFETY: as above; merges name pieces that were computed before.
        unsafe { stream.launch(tensor.attention_merge.of(bf16), grid, params![merges]) }
    }
}
