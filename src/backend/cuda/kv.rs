//! The KV pool: where layers' keys and values lie within a block. kernels/README.md has the
//! layout: a block holds all layers, so that it moves in one copy.

use cudarc::driver::sys;

use super::driver::DevicePtr;
use crate::backend::{ComputeType, KvSpec};
use crate::error::{Error, ErrorKind, Result};

/// An attention layer's part of a block, in elements.
#[derive(Clone, Copy, Default)]
pub(super) struct KvLayer {
    /// Whose block table and slots it goes by.
    pub(super) group: usize,
    pub(super) k_offset: usize,
    pub(super) v_offset: usize,
}

/// The pool.
pub(super) struct KvPool {
    /// `[num_blocks, block_elements]`.
    pub(super) memory: DevicePtr,
    /// By attention layer.
    pub(super) layers: Vec<KvLayer>,
    pub(super) block_elements: usize,
    pub(super) block_bytes: usize,
    pub(super) block_size: usize,
    pub(super) num_blocks: usize,
    pub(super) num_groups: usize,
    /// By attention layer: the tensor that Hopper's copy engine sees; none where it copies nothing.
    pub(super) boxes: Vec<sys::CUtensorMap>,
}

impl KvPool {
    /// The pool of a cache, in memory of `num_blocks * block_bytes` at `memory`.
    pub(super) fn new(
        spec: &KvSpec,
        compute: ComputeType,
        num_blocks: usize,
        memory: DevicePtr,
    ) -> Result<Self> {
        let slots = num_blocks.saturating_mul(spec.block_size);
        if slots >= u32::MAX as usize {
            let limit = u32::MAX as usize / spec.block_size;
            let message = format!(
                "num_kv_blocks: the CUDA backend has at most {limit} blocks of {} positions, got \
                 {num_blocks}",
                spec.block_size
            );
            let error = Error::new(ErrorKind::Unsupported, message).with("field", "num_kv_blocks");
            return Err(error.with("limit", limit).with("value", num_blocks));
        }
        let mut layers = Vec::new();
        let mut at = 0;
        for (group, g) in spec.groups.iter().enumerate() {
            let half = g.num_kv_heads * spec.block_size * g.head_dim;
            for &index in &g.layers {
                if layers.len() <= index {
                    layers.resize(index + 1, KvLayer::default());
                }
                layers[index] = KvLayer { group, k_offset: at, v_offset: at + half };
                at += 2 * half;
            }
        }
        Ok(Self {
            memory,
            layers,
            block_elements: at,
            block_bytes: block_bytes(spec, compute),
            block_size: spec.block_size,
            num_blocks,
            num_groups: spec.groups.len(),
            boxes: Vec::new(),
        })
    }

    /// The address of a block.
    pub(super) fn block(&self, block: usize) -> DevicePtr {
        assert!(block < self.num_blocks, "a block is within the pool");
        self.memory + (block * self.block_bytes) as u64
    }
}

/// Bytes of one block over all layers.
pub(super) fn block_bytes(spec: &KvSpec, compute: ComputeType) -> usize {
    let element = match compute {
        ComputeType::F32 => 4,
        ComputeType::Bf16 => 2,
    };
    let width = |g: &crate::backend::KvGroup| g.layers.len() * g.num_kv_heads * g.head_dim;
    spec.groups.iter().map(width).sum::<usize>() * spec.block_size * 2 * element
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvGroup;

    #[test]
    fn layers_fill_a_block_without_gaps() {
        let group = |layers, num_kv_heads| KvGroup { layers, num_kv_heads, head_dim: 8 };
        let spec = KvSpec { groups: vec![group(vec![0, 2], 2), group(vec![1], 1)], block_size: 16 };
        let pool = KvPool::new(&spec, ComputeType::Bf16, 3, 4096).unwrap();
        assert_eq!(pool.block_bytes, 2 * pool.block_elements);
        let ends = [(0, 0, 256), (2, 512, 768), (1, 1024, 1152)];
        for (layer, k_offset, v_offset) in ends {
            let layer = pool.layers[layer];
            assert_eq!((layer.k_offset, layer.v_offset), (k_offset, v_offset));
        }
        assert_eq!(pool.block_elements, 1280);
        assert_eq!(pool.block(2), 4096 + 2 * 2560);
        let error = KvPool::new(&spec, ComputeType::Bf16, 1 << 28, 0).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
