//! The paged KV cache: where each key and value lies.
//!
//! ```text
//!  f32 compute
//!  K  [block][kv_head][dim][block_size]               sixteen positions of one element
//!  V  [block][kv_head][dim/16][block_size][16]        sixteen elements of one position
//!  bf16 compute
//!  K  [block][kv_head][dim/2][block_size][2]          sixteen positions of two elements
//!  V  [block][kv_head][dim/16][block_size/2][16][2]   sixteen elements of two positions
//!  int8, whatever the compute type: as bf16 in half the bytes, and behind each block of a head
//!     [block_size]                                    f32 scales of its positions
//! ```
//! So 64 bytes (int8: 32) are one step of `linear::Panel`, for K along a head's elements and for V
//! along the positions. Pages are committed as blocks are first written.
//!
//! Int8: each position's key and value have a scale of their own for each head, `max|x| / 127`, so
//! that both signs have as much room (the symmetric rule of Jacob et al., arXiv 1712.05877, and of
//! vLLM's int8 cache per token and head), keys after their rotation. What stands in a slot then
//! depends on its own token alone: chunks, batches and cached prefixes change nothing.
#![allow(unsafe_code, reason = "threads write disjoint slots of one buffer")]

use super::commit::Committer;
use super::memory::Buffer;
use super::simd::{Simd16, bf16_bits};
use crate::backend::{ComputeType, KvGroup, KvSpec};
use crate::error::Result;
use crate::ids::{BlockCopy, BlockId};

/// The cache of all layers.
pub(crate) struct KvCache {
    /// Before the memory that it commits, to end before it.
    committer: Option<Committer>,
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
    memory: (Buffer<u8>, Buffer<u8>),
}

/// What a cache's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvType {
    F32,
    Bf16,
    /// With a scale for each position of a head.
    Int8,
}

impl KvType {
    /// The compute type's own, or int8.
    pub(crate) fn of(compute: ComputeType, int8: bool) -> Self {
        match compute {
            _ if int8 => Self::Int8,
            ComputeType::F32 => Self::F32,
            ComputeType::Bf16 => Self::Bf16,
        }
    }
}

/// One layer's cache, as kernels see it.
#[derive(Clone, Copy)]
pub(crate) struct LayerKv {
    /// Keys.
    pub(crate) k: *mut u8,
    /// Values.
    pub(crate) v: *mut u8,
    /// What elements are.
    pub(crate) kind: KvType,
    /// Whether they are multiplied as bf16 (else as f32).
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
    pub(crate) fn block_bytes(spec: &KvSpec, compute: ComputeType, int8: bool) -> usize {
        let bytes = |g: &KvGroup| {
            let view = LayerKv::describe(g, spec.block_size, compute, int8);
            g.layers.len() * (view.k_block_bytes() + view.v_block_bytes())
        };
        spec.groups.iter().map(bytes).sum()
    }

    /// A cache of `num_blocks` blocks, of the compute type or of int8.
    pub(crate) fn new(
        spec: &KvSpec,
        compute: ComputeType,
        int8: bool,
        num_blocks: usize,
    ) -> Result<Self> {
        let count = spec.groups.iter().flat_map(|g| &g.layers).map(|l| l + 1).max().unwrap_or(0);
        let mut layers: Vec<Option<Layer>> = Vec::new();
        layers.try_reserve(count)?;
        layers.resize_with(count, || None);
        for (group, g) in spec.groups.iter().enumerate() {
            for &layer in &g.layers {
                let mut view = LayerKv::describe(g, spec.block_size, compute, int8);
                let k = Buffer::zeroed(num_blocks.saturating_mul(view.k_block_bytes()), NAME)?;
                let v = Buffer::zeroed(num_blocks.saturating_mul(view.v_block_bytes()), NAME)?;
                (view.k, view.v) = (k.as_ptr(), v.as_ptr());
                layers[layer] = Some(Layer { group, view, memory: (k, v) });
            }
        }
        Ok(Self { committer: None, layers, num_blocks, block_size: spec.block_size })
    }

    /// Has its pages committed from now on, by and by.
    pub(crate) fn commit(&mut self) {
        let memories = self.layers.iter().flatten().map(|l| &l.memory);
        let mappings = memories.flat_map(|(k, v)| [k.mapping(), v.mapping()]).flatten().collect();
        self.committer = Some(Committer::start(mappings));
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
                for head in 0..view.heads {
                    // SAFETY: the block lies in the buffer, and `self` is exclusive.
                    unsafe { view.fill_head(block.index(), head, value) };
                }
            }
        }
    }
}

const NAME: &str = "KV cache";

impl LayerKv {
    fn describe(g: &KvGroup, block_size: usize, compute: ComputeType, int8: bool) -> Self {
        assert!(block_size.is_multiple_of(8) && block_size > 0, "block_size {block_size}");
        Self {
            k: std::ptr::null_mut(),
            v: std::ptr::null_mut(),
            kind: KvType::of(compute, int8),
            bf16: compute == ComputeType::Bf16,
            heads: g.num_kv_heads,
            dim: g.head_dim,
            dim_padded: g.head_dim.next_multiple_of(16),
            block_size,
        }
    }

    fn element_bytes(&self) -> usize {
        match self.kind {
            KvType::F32 => 4,
            KvType::Bf16 => 2,
            KvType::Int8 => 1,
        }
    }

    /// Elements of K, or positions of V, that one step of a kernel takes.
    #[inline(always)]
    pub(crate) fn step(&self) -> usize {
        if self.kind == KvType::F32 { 1 } else { 2 }
    }

    /// Bytes of one step of one output.
    #[inline(always)]
    fn step_bytes(&self) -> usize {
        self.step() * self.element_bytes()
    }

    /// Bytes of a block's scales of one head, of keys or of values.
    #[inline(always)]
    fn scale_bytes(&self) -> usize {
        if self.kind == KvType::Int8 { 4 * self.block_size } else { 0 }
    }

    /// Bytes from one step of K to the next.
    #[inline(always)]
    pub(crate) fn k_apart(&self) -> usize {
        self.step_bytes() * self.block_size
    }

    /// Bytes from one step of V to the next.
    #[inline(always)]
    pub(crate) fn v_step_bytes(&self) -> usize {
        16 * self.step_bytes()
    }

    /// Bytes from sixteen elements of V to the next sixteen.
    #[inline(always)]
    pub(crate) fn v_apart(&self) -> usize {
        16 * self.element_bytes() * self.block_size
    }

    /// Bytes of a block of one head's keys, scales included.
    #[inline(always)]
    pub(crate) fn k_head_bytes(&self) -> usize {
        self.dim.div_ceil(self.step()) * self.k_apart() + self.scale_bytes()
    }

    /// Bytes of a block of one head's values, scales included.
    #[inline(always)]
    pub(crate) fn v_head_bytes(&self) -> usize {
        self.dim_padded / 16 * self.v_apart() + self.scale_bytes()
    }

    fn k_block_bytes(&self) -> usize {
        self.heads * self.k_head_bytes()
    }

    fn v_block_bytes(&self) -> usize {
        self.heads * self.v_head_bytes()
    }

    /// Byte of K where `(block, head, first element, slot)` lies; steps are `k_apart` apart.
    #[inline(always)]
    pub(crate) fn k_at(&self, block: usize, head: usize, slot: usize) -> usize {
        (block * self.heads + head) * self.k_head_bytes() + slot * self.step_bytes()
    }

    /// Byte of V where the step of `(block, head, columns from 16 * group on, slot)` lies; steps
    /// follow each other.
    #[inline(always)]
    pub(crate) fn v_at(&self, block: usize, head: usize, group: usize, slot: usize) -> usize {
        (block * self.heads + head) * self.v_head_bytes()
            + group * self.v_apart()
            + slot / self.step() * self.v_step_bytes()
    }

    /// Where the scale of a key lies, those of the block's next slots behind it.
    #[inline(always)]
    pub(crate) fn k_scale(&self, block: usize, head: usize, slot: usize) -> *mut f32 {
        let end = (block * self.heads + head + 1) * self.k_head_bytes();
        self.k.wrapping_add(end - self.scale_bytes()).cast::<f32>().wrapping_add(slot)
    }

    /// Where the scale of a value lies, those of the block's next slots behind it.
    #[inline(always)]
    pub(crate) fn v_scale(&self, block: usize, head: usize, slot: usize) -> *mut f32 {
        let end = (block * self.heads + head + 1) * self.v_head_bytes();
        self.v.wrapping_add(end - self.scale_bytes()).cast::<f32>().wrapping_add(slot)
    }

    /// Fills one head's block, padding included.
    unsafe fn fill_head(&self, block: usize, head: usize, value: f32) {
        let k = (self.k.wrapping_add(self.k_at(block, head, 0)), self.k_head_bytes());
        let v = (self.v.wrapping_add(self.v_at(block, head, 0, 0)), self.v_head_bytes());
        for (base, bytes) in [k, v] {
            for i in 0..(bytes - self.scale_bytes()) / self.element_bytes() {
                // SAFETY: the caller vouches for the block.
                unsafe {
                    match self.kind {
                        KvType::F32 => *base.cast::<f32>().add(i) = value,
                        KvType::Bf16 => *base.cast::<u16>().add(i) = bf16_bits(value),
                        KvType::Int8 => *base.cast::<i8>().add(i) = MOST as i8,
                    }
                }
            }
        }
        for slot in 0..self.scale_bytes() / 4 {
            // SAFETY: as above.
            unsafe {
                *self.k_scale(block, head, slot) = value / MOST;
                *self.v_scale(block, head, slot) = value / MOST;
            }
        }
    }

    /// Writes one head's key, `[dim]`, to a slot of the whole cache, and 0 where a step is padded.
    #[inline(always)]
    pub(crate) unsafe fn write_k<S: Simd16>(&self, slot: usize, head: usize, x: *const f32) {
        let (block, slot) = (slot / self.block_size, slot % self.block_size);
        // SAFETY: the slot was checked when the step began; `x` is `[dim]`.
        unsafe {
            let to = self.k.add(self.k_at(block, head, slot));
            let inverse = self.scale::<S>(x, self.k_scale(block, head, slot));
            for i in (0..self.dim).step_by(16) {
                let n = (self.dim - i).min(16);
                let steps = i / self.step()..(i + n).div_ceil(self.step());
                let v = S::load_first(x.add(i), n);
                if self.kind == KvType::Int8 {
                    let mut pairs = [0u16; 8];
                    v.mul(inverse).round().store_i8(pairs.as_mut_ptr().cast());
                    for (step, pair) in steps.zip(pairs) {
                        *to.cast::<u16>().add(step * self.block_size) = pair;
                    }
                } else {
                    for (step, word) in steps.zip(self.words(v)) {
                        *to.cast::<u32>().add(step * self.block_size) = word;
                    }
                }
            }
        }
    }

    /// Whether `write_v_pair` serves: whole vectors of bf16.
    #[inline(always)]
    pub(crate) fn takes_pairs(&self) -> bool {
        self.kind == KvType::Bf16 && self.dim == self.dim_padded
    }

    /// Writes one head's values of an even slot of the whole cache and of the next, `[dim]` each.
    #[inline(always)]
    pub(crate) unsafe fn write_v_pair<S: Simd16>(
        &self,
        slot: usize,
        head: usize,
        even: *const f32,
        odd: *const f32,
    ) {
        let (block, slot) = (slot / self.block_size, slot % self.block_size);
        for i in (0..self.dim).step_by(16) {
            // SAFETY: as in `write_k`, for both slots; together they are a step.
            unsafe {
                let to = self.v.add(self.v_at(block, head, i / 16, slot));
                S::load(even.add(i)).store_bf16_pairs(S::load(odd.add(i)), to.cast());
            }
        }
    }

    /// Sixteen elements as words of one step each; the later half is unused in bf16.
    #[inline(always)]
    unsafe fn words<S: Simd16>(&self, v: S) -> [u32; 16] {
        let mut words = [0u32; 16];
        // SAFETY: the array has room for sixteen elements of either type.
        unsafe {
            if self.kind == KvType::Bf16 {
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
        // SAFETY: as in `write_k`.
        unsafe {
            let inverse = self.scale::<S>(x, self.v_scale(block, head, slot));
            for i in (0..self.dim_padded).step_by(16) {
                let v = S::load_first(x.add(i.min(self.dim)), self.dim.saturating_sub(i).min(16));
                let to = self.v.add(self.v_at(block, head, i / 16, slot));
                match self.kind {
                    KvType::F32 => v.store(to.cast()),
                    KvType::Bf16 => {
                        let mut halves = [0u16; 16];
                        v.store_bf16(halves.as_mut_ptr());
                        scatter(halves, to.cast(), slot);
                    }
                    KvType::Int8 => {
                        let mut bytes = [0i8; 16];
                        v.mul(inverse).round().store_i8(bytes.as_mut_ptr());
                        scatter(bytes, to.cast(), slot);
                    }
                }
            }
        }
    }

    /// In int8 keeps the scale of one head, `[dim]`, and gives what its elements are to be
    /// multiplied with. A NaN or an infinity makes the scale NaN, as integers can be neither.
    #[inline(always)]
    unsafe fn scale<S: Simd16>(&self, x: *const f32, to: *mut f32) -> S {
        let zero = S::splat(0.0);
        if self.kind != KvType::Int8 {
            return zero;
        }
        let (mut greatest, mut wrong) = (zero, zero);
        for i in (0..self.dim).step_by(16) {
            // SAFETY: the caller vouches for `dim` elements.
            let v = unsafe { S::load_first(x.add(i), (self.dim - i).min(16)) };
            greatest = greatest.max(v).max(zero.sub(v));
            wrong = v.mul_add(zero, wrong);
        }
        let (greatest, wrong) = (greatest.greatest(), wrong.sum());
        let (scale, inverse) =
            if greatest > LEAST { (greatest / MOST, MOST / greatest) } else { (0.0, 0.0) };
        // SAFETY: the caller vouches for the scale's place.
        unsafe { *to = scale + wrong };
        S::splat(inverse)
    }
}

/// Writes the elements of one of a step's two positions.
#[inline(always)]
unsafe fn scatter<T: Copy>(elements: [T; 16], to: *mut T, slot: usize) {
    for (i, element) in elements.into_iter().enumerate() {
        // SAFETY: the caller vouches for a step.
        unsafe { *to.add(2 * i + slot % 2) = element };
    }
}

/// The integer that the greatest element becomes.
const MOST: f32 = 127.0;
/// Heads with nothing greater are zeros.
const LEAST: f32 = 1e-30;
