//! The paged KV cache: where each key and value lies.
//!
//! ```text
//!  f32 compute
//!  K  [block][kv_head][dim][block_size]               sixteen positions of one element
//!  V  [block][kv_head][dim/16][block_size][16]        sixteen elements of one position
//!  bf16 compute
//!  K  [block][kv_head][dim/2][block_size][2]          sixteen positions of two elements
//!  V  [block][kv_head][dim/16][block_size/2][16][2]   sixteen elements of two positions
//! ```
//! So 64 bytes are one step of `linear::Panel`, for K along a head's elements and for V along the
//! positions. Pages are committed as blocks are first written.
#![allow(unsafe_code, reason = "threads write disjoint slots of one buffer")]

use super::memory::Buffer;
use super::simd::{Simd16, bf16_bits};
use crate::backend::{ComputeType, KvSpec};
use crate::error::Result;
use crate::ids::{BlockCopy, BlockId};

/// The cache of all layers.
pub(crate) struct KvCache {
    /// By layer index; layers without attention are absent.
    layers: Vec<Option<Layer>>,
    num_blocks: usize,
    block_size: usize,
}

struct Layer {
    /// Index of the group whose block table it uses.
    group: usize,
    view: LayerKv,
    /// Owns what `view` points to.
    _memory: (Buffer<u8>, Buffer<u8>),
}

/// One layer's cache, as kernels see it.
#[derive(Clone, Copy)]
pub(crate) struct LayerKv {
    /// Keys.
    pub(crate) k: *mut u8,
    /// Values.
    pub(crate) v: *mut u8,
    /// Whether elements are bf16 (else f32).
    pub(crate) bf16: bool,
    /// KV heads.
    pub(crate) heads: usize,
    /// Elements of a head.
    pub(crate) dim: usize,
    /// Elements of a head, padded to whole vectors.
    pub(crate) dim_padded: usize,
    /// Positions of a block.
    pub(crate) block_size: usize,
}

impl KvCache {
    /// Bytes of one block over all layers.
    pub(crate) fn block_bytes(spec: &KvSpec, compute: ComputeType) -> usize {
        let bytes = |g: &crate::backend::KvGroup| {
            let view = LayerKv::describe(g, spec.block_size, compute);
            g.layers.len() * (view.k_block_bytes() + view.v_block_bytes())
        };
        spec.groups.iter().map(bytes).sum()
    }

    /// A cache of `num_blocks` blocks.
    pub(crate) fn new(spec: &KvSpec, compute: ComputeType, num_blocks: usize) -> Result<Self> {
        let count = spec.groups.iter().flat_map(|g| &g.layers).map(|l| l + 1).max().unwrap_or(0);
        let mut layers: Vec<Option<Layer>> = Vec::new();
        layers.try_reserve(count)?;
        layers.resize_with(count, || None);
        for (group, g) in spec.groups.iter().enumerate() {
            for &layer in &g.layers {
                let mut view = LayerKv::describe(g, spec.block_size, compute);
                let k = Buffer::zeroed(num_blocks.saturating_mul(view.k_block_bytes()), NAME)?;
                let v = Buffer::zeroed(num_blocks.saturating_mul(view.v_block_bytes()), NAME)?;
                (view.k, view.v) = (k.as_ptr(), v.as_ptr());
                layers[layer] = Some(Layer { group, view, _memory: (k, v) });
            }
        }
        Ok(Self { layers, num_blocks, block_size: spec.block_size })
    }

    /// Blocks.
    pub(crate) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Positions of a block.
    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// A layer's group and cache.
    pub(crate) fn layer(&self, layer: usize) -> (usize, LayerKv) {
        let found = self.layers.get(layer).and_then(Option::as_ref);
        let layer = found.unwrap_or_else(|| panic!("attention layer {layer} has no KV cache"));
        (layer.group, layer.view)
    }

    /// Copies whole blocks, one after the other, in one layer of every `threads`.
    pub(crate) fn copy(&self, copies: &[BlockCopy], thread: usize, threads: usize) {
        for layer in self.layers.iter().flatten().skip(thread).step_by(threads) {
            for copy in copies {
                let (from, to) = (copy.source.index(), copy.destination.index());
                let parts = [
                    (layer.view.k, layer.view.k_block_bytes()),
                    (layer.view.v, layer.view.v_block_bytes()),
                ];
                for (base, bytes) in parts {
                    assert!(from < self.num_blocks && to < self.num_blocks, "block out of range");
                    // SAFETY: both blocks lie in the buffer; `copy` allows that they are one.
                    unsafe { std::ptr::copy(base.add(from * bytes), base.add(to * bytes), bytes) };
                }
            }
        }
    }

    /// Fills blocks with `value` in every layer.
    pub(crate) fn fill(&mut self, blocks: &[BlockId], value: f32) {
        for view in self.layers.iter().flatten().map(|l| l.view) {
            for block in blocks {
                assert!(block.index() < self.num_blocks, "block {block} out of range");
                for (base, bytes) in
                    [(view.k, view.k_block_bytes()), (view.v, view.v_block_bytes())]
                {
                    for i in 0..bytes / view.element_bytes() {
                        // SAFETY: the block lies in the buffer, and `self` is exclusive.
                        unsafe { view.put(base.add(block.index() * bytes), i, value) };
                    }
                }
            }
        }
    }
}

const NAME: &str = "KV cache";

impl LayerKv {
    fn describe(g: &crate::backend::KvGroup, block_size: usize, compute: ComputeType) -> Self {
        assert!(block_size.is_multiple_of(8) && block_size > 0, "block_size {block_size}");
        Self {
            k: std::ptr::null_mut(),
            v: std::ptr::null_mut(),
            bf16: compute == ComputeType::Bf16,
            heads: g.num_kv_heads,
            dim: g.head_dim,
            dim_padded: g.head_dim.next_multiple_of(16),
            block_size,
        }
    }

    fn element_bytes(&self) -> usize {
        if self.bf16 { 2 } else { 4 }
    }

    /// Elements of K, or positions of V, in four bytes: one step of a kernel.
    #[inline(always)]
    pub(crate) fn step(&self) -> usize {
        if self.bf16 { 2 } else { 1 }
    }

    fn k_block_bytes(&self) -> usize {
        self.heads * self.dim.div_ceil(self.step()) * self.block_size * 4
    }

    fn v_block_bytes(&self) -> usize {
        self.heads * self.dim_padded * self.block_size * self.element_bytes()
    }

    /// Byte of K where `(block, head, first element, slot)` lies; steps are `4 * block_size` apart.
    #[inline(always)]
    pub(crate) fn k_at(&self, block: usize, head: usize, slot: usize) -> usize {
        let steps = self.dim.div_ceil(self.step());
        ((block * self.heads + head) * steps * self.block_size + slot) * 4
    }

    /// Byte of V where the step of `(block, head, columns from 16 * group on, slot)` lies; steps
    /// are 64 apart.
    #[inline(always)]
    pub(crate) fn v_at(&self, block: usize, head: usize, group: usize, slot: usize) -> usize {
        let first = (block * self.heads + head) * (self.dim_padded / 16) + group;
        (first * self.block_size + slot) / self.step() * 64
    }

    /// Writes element `i` at `base`, rounding to nearest even.
    #[inline(always)]
    unsafe fn put(&self, base: *mut u8, i: usize, value: f32) {
        // SAFETY: the caller vouches for the element.
        unsafe {
            if self.bf16 {
                *base.cast::<u16>().add(i) = bf16_bits(value);
            } else {
                *base.cast::<f32>().add(i) = value;
            }
        }
    }

    /// Writes one head's key, `[dim]`, to a slot of the whole cache, and 0 where a step is padded.
    #[inline(always)]
    pub(crate) unsafe fn write_k<S: Simd16>(&self, slot: usize, head: usize, x: *const f32) {
        let at = self.k_at(slot / self.block_size, head, slot % self.block_size);
        for i in (0..self.dim).step_by(16) {
            let n = (self.dim - i).min(16);
            // SAFETY: the slot was checked when the step began; `x` is `[dim]`.
            unsafe {
                let v = S::load_first(x.add(i), n);
                let to = self.k.add(at).cast::<u32>().add(i / self.step() * self.block_size);
                let words = self.words(v);
                for (j, word) in words.iter().enumerate().take(n.div_ceil(self.step())) {
                    *to.add(j * self.block_size) = *word;
                }
            }
        }
    }

    /// Sixteen elements as words of one step each; the later half is unused in bf16.
    #[inline(always)]
    unsafe fn words<S: Simd16>(&self, v: S) -> [u32; 16] {
        let mut words = [0u32; 16];
        // SAFETY: the array has room for sixteen elements of either type.
        unsafe {
            if self.bf16 {
                v.store_bf16(words.as_mut_ptr().cast());
            } else {
                v.store(words.as_mut_ptr().cast());
            }
        }
        words
    }

    /// Writes one head's value, `[dim]`, to a slot of the whole cache. The padding is written, too:
    /// it may hold a NaN from `fill`.
    #[inline(always)]
    pub(crate) unsafe fn write_v<S: Simd16>(&self, slot: usize, head: usize, x: *const f32) {
        let (block, slot) = (slot / self.block_size, slot % self.block_size);
        for i in (0..self.dim_padded).step_by(16) {
            // SAFETY: as in `write_k`.
            unsafe {
                let v = S::load_first(x.add(i.min(self.dim)), self.dim.saturating_sub(i).min(16));
                let to = self.v.add(self.v_at(block, head, i / 16, slot));
                if !self.bf16 {
                    v.store(to.cast());
                    continue;
                }
                let mut halves = [0u16; 16];
                v.store_bf16(halves.as_mut_ptr());
                for (j, half) in halves.into_iter().enumerate() {
                    *to.cast::<u16>().add(2 * j + slot % 2) = half;
                }
            }
        }
    }
}
