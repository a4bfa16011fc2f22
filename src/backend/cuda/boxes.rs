//! The KV pool as Hopper's copy engine sees it: a tensor for each attention layer, of which a
//! kernel copies boxes. Addresses and strides never change, so that each is made once.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::driver::check;
use super::kernels::positions_of_tile;
use super::kv::KvPool;
use super::work::head_dim_index;
use crate::backend::{KvGroup, KvSpec};
use crate::error::Result;

/// By attention layer. Layers of other head sizes than the kernels', whose map nobody reads, have
/// an empty one.
pub(super) fn all_boxes(kv: &KvPool, spec: &KvSpec) -> Result<Vec<sys::CUtensorMap>> {
    let mut all = vec![sys::CUtensorMap { opaque: [0; 16] }; kv.layers.len()];
    for group in spec.groups.iter().filter(|group| head_dim_index(group.head_dim).is_some()) {
        for &layer in &group.layers {
            all[layer] = layer_boxes(kv, layer, group)?;
        }
    }
    Ok(all)
}

/// The layer's keys and values, `[blocks, 2 kv_heads * block_size, head_dim]` of bf16, in boxes of
/// one panel's width and as many positions as lie in one block and one tile, whatever the tile.
fn layer_boxes(kv: &KvPool, layer: usize, heads: &KvGroup) -> Result<sys::CUtensorMap> {
    let place = kv.layers[layer];
    let row = heads.head_dim * size_of::<u16>();
    let base = kv.memory + (place.k_offset * size_of::<u16>()) as u64;
    let rows = 2 * heads.num_kv_heads * kv.block_size;
    let dims = [heads.head_dim as u64, rows as u64, kv.num_blocks as u64];
    let strides = [row as u64, kv.block_bytes as u64];
    let (width, swizzle) = panel(heads.head_dim);
    let boxes = [width, box_positions(kv.block_size, heads.head_dim), 1];
    let steps = [1; 3];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have as many elements as three dimensions need; the map is written and
    // aligned as its type is. The pool lives as long as the backend.
    check("cuTensorMapEncodeTiled", unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            3,
            base as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    })?;
    Ok(map)
}

/// Elements of a panel's rows, and the swizzle as wide as they are.
fn panel(head_dim: usize) -> (u32, sys::CUtensorMapSwizzle) {
    use sys::CUtensorMapSwizzle as Swizzle;
    match head_dim {
        d if d.is_multiple_of(64) => (64, Swizzle::CU_TENSOR_MAP_SWIZZLE_128B),
        d if d.is_multiple_of(32) => (32, Swizzle::CU_TENSOR_MAP_SWIZZLE_64B),
        _ => (16, Swizzle::CU_TENSOR_MAP_SWIZZLE_32B),
    }
}

/// Positions of a box: the largest power of two that blocks and tiles are made of.
fn box_positions(block_size: usize, head_dim: usize) -> u32 {
    (1 << block_size.trailing_zeros()).min(positions_of_tile(head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_fit_blocks_tiles_and_swizzles() {
        for head_dim in super::super::work::HEAD_DIMS {
            let (width, _) = panel(head_dim);
            assert!(head_dim.is_multiple_of(width as usize));
            for block_size in (8..=256).step_by(8) {
                let positions = box_positions(block_size, head_dim);
                assert!(positions >= 8 && block_size.is_multiple_of(positions as usize));
                assert!(positions_of_tile(head_dim).is_multiple_of(positions));
                assert!(positions_of_tile(head_dim) / positions <= 32, "a lane for each box");
            }
        }
    }
}
