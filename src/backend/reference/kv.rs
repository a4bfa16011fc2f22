//! The paged KV cache: for each layer `[blocks, block_size, kv_heads, head_dim]` of keys and of
//! values, in f32 (rounded to bf16 in that precision).

use crate::backend::{ComputeType, KvSpec};
use crate::error::Result;
use crate::ids::BlockId;

use super::too_large;
use super::weights::round_to_bf16;

/// Keys and values of all layers.
pub(super) struct KvCache {
    layers: Vec<Layer>,
    block_size: usize,
    compute: ComputeType,
}

#[derive(Clone, Default)]
struct Layer {
    group: usize,
    /// Elements of one position: `kv_heads * head_dim`.
    width: usize,
    /// `[slots, width]`.
    keys: Vec<f32>,
    /// `[slots, width]`.
    values: Vec<f32>,
}

impl KvCache {
    /// Bytes of one block over all layers.
    pub(super) fn block_bytes(spec: &KvSpec) -> usize {
        let width = |g: &crate::backend::KvGroup| g.layers.len() * g.num_kv_heads * g.head_dim;
        spec.groups.iter().map(width).sum::<usize>() * spec.block_size * 2 * size_of::<f32>()
    }

    /// A cache of zeroes.
    pub(super) fn new(spec: &KvSpec, num_blocks: usize, compute: ComputeType) -> Result<Self> {
        let mut cache = Self { layers: Vec::new(), block_size: spec.block_size, compute };
        let slots = num_blocks.checked_mul(spec.block_size).ok_or_else(too_large)?;
        for (group, g) in spec.groups.iter().enumerate() {
            let width = g.num_kv_heads * g.head_dim;
            let len = slots.checked_mul(width).ok_or_else(too_large)?;
            for &index in &g.layers {
                let mut layer = Layer { group, width, ..Layer::default() };
                for half in [&mut layer.keys, &mut layer.values] {
                    half.try_reserve_exact(len)?;
                    half.resize(len, 0.0);
                }
                if cache.layers.len() <= index {
                    cache.layers.resize(index + 1, Layer::default());
                }
                cache.layers[index] = layer;
            }
        }
        Ok(cache)
    }

    /// The group whose block table and slots layer `layer` goes by.
    pub(super) fn group_of(&self, layer: usize) -> usize {
        self.layers[layer].group
    }

    /// Writes one position's keys and values, `[kv_heads * head_dim]` each.
    pub(super) fn write(&mut self, layer: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let round = |x: &f32| match self.compute {
            ComputeType::F32 => *x,
            ComputeType::Bf16 => round_to_bf16(*x),
        };
        let layer = &mut self.layers[layer];
        let at = slot * layer.width..(slot + 1) * layer.width;
        for (half, from) in [(&mut layer.keys, keys), (&mut layer.values, values)] {
            for (to, x) in half[at.clone()].iter_mut().zip(from) {
                *to = round(x);
            }
        }
    }

    /// Keys and values of a position, `[kv_heads * head_dim]` each.
    pub(super) fn read(
        &self,
        layer: usize,
        blocks: &[BlockId],
        position: usize,
    ) -> (&[f32], &[f32]) {
        let block = blocks[position / self.block_size].index();
        let slot = block * self.block_size + position % self.block_size;
        let layer = &self.layers[layer];
        let at = slot * layer.width..(slot + 1) * layer.width;
        (&layer.keys[at.clone()], &layer.values[at])
    }

    /// Copies a block in every layer.
    pub(super) fn copy_block(&mut self, source: BlockId, destination: BlockId) {
        for layer in &mut self.layers {
            let len = self.block_size * layer.width;
            let from = source.index() * len..(source.index() + 1) * len;
            layer.keys.copy_within(from.clone(), destination.index() * len);
            layer.values.copy_within(from, destination.index() * len);
        }
    }

    /// Fills a block in every layer.
    pub(super) fn fill_block(&mut self, block: BlockId, value: f32) {
        for layer in &mut self.layers {
            let len = self.block_size * layer.width;
            let at = block.index() * len..(block.index() + 1) * len;
            layer.keys[at.clone()].fill(value);
            layer.values[at].fill(value);
        }
    }
}
