//! The paged KV cache: for each layer `[blocks, block_size, kv_heads, head_dim]` of keys and of
//! values, in f32 (rounded to bf16 in that precision, or to an int8 cache's values).

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
    int8: bool,
}

#[derive(Clone, Default)]
struct Layer {
    group: usize,
    /// Elements of one head.
    head_dim: usize,
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
    pub(super) fn new(
        spec: &KvSpec,
        num_blocks: usize,
        compute: ComputeType,
        int8: bool,
    ) -> Result<Self> {
        let mut cache = Self { layers: Vec::new(), block_size: spec.block_size, compute, int8 };
        let slots = num_blocks.checked_mul(spec.block_size).ok_or_else(too_large)?;
        for (group, g) in spec.groups.iter().enumerate() {
            let (head_dim, width) = (g.head_dim, g.num_kv_heads * g.head_dim);
            let len = slots.checked_mul(width).ok_or_else(too_large)?;
            for &index in &g.layers {
                let mut layer = Layer { group, head_dim, width, ..Layer::default() };
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
        let layer = &mut self.layers[layer];
        let at = slot * layer.width..(slot + 1) * layer.width;
        for (half, from) in [(&mut layer.keys, keys), (&mut layer.values, values)] {
            let heads = from.chunks_exact(layer.head_dim);
            for (to, head) in half[at.clone()].chunks_exact_mut(layer.head_dim).zip(heads) {
                to.copy_from_slice(head);
                match self.compute {
                    _ if self.int8 => round_to_int8(to),
                    ComputeType::F32 => {}
                    ComputeType::Bf16 => to.iter_mut().for_each(|x| *x = round_to_bf16(*x)),
                }
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

/// Rounds one head of one position to multiples of a 127th of its greatest magnitude. Where that is
/// no number, nothing is.
fn round_to_int8(head: &mut [f32]) {
    let finite = head.iter().all(|x| x.is_finite());
    let greatest = head.iter().fold(0f32, |most, x| most.max(x.abs()));
    for x in head {
        *x = match greatest {
            _ if !finite => f32::NAN,
            greatest if greatest > 1e-30 => {
                (*x * (127.0 / greatest)).round_ties_even() * (greatest / 127.0)
            }
            _ => 0.0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int8_keeps_the_greatest_and_is_within_half_a_step() {
        let exact: Vec<f32> = (0..100).map(|i| (i * 37 % 101) as f32 / 40.0 - 1.0).collect();
        let greatest = exact.iter().fold(0f32, |most, x| most.max(x.abs()));
        let mut rounded = exact.clone();
        round_to_int8(&mut rounded);
        for (x, y) in exact.iter().zip(&rounded) {
            assert!((x - y).abs() <= greatest / 127.0 * 0.50001, "{x} {y}");
            assert!(x.abs() < greatest || (x - y).abs() < 1e-6 * greatest, "{x} {y}");
        }
        let mut zeros = [0.0, -0.0, 1e-31];
        round_to_int8(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut head = [1.0, wrong];
            round_to_int8(&mut head);
            assert!(head[0].is_nan());
        }
    }
}
