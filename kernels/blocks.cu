// Whole blocks of the KV cache: all layers of a block are contiguous.
#include "reduce.cuh"

extern "C" __global__ void __launch_bounds__(256)
    copy_blocks(u8* kv, const u32* pairs, u64 block_bytes) {
  ptx::take_turn();
  const u64 count = block_bytes / 16;
  const u64 source = pairs[2 * blockIdx.y], destination = pairs[2 * blockIdx.y + 1];
  const uint4* from = reinterpret_cast<const uint4*>(kv + source * block_bytes);
  uint4* to = reinterpret_cast<uint4*>(kv + destination * block_bytes);
  for (u64 i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) to[i] = from[i];
}

template <class T>
__device__ __forceinline__ void fill_blocks(T* kv, const u32* blocks, u64 block_elements,
                                            float value) {
  ptx::take_turn();
  T* to = kv + blocks[blockIdx.y] * block_elements;
  for (u64 i = blockIdx.x * 256 + threadIdx.x; i < block_elements; i += gridDim.x * 256) {
    store(to + i, value);
  }
}

extern "C" __global__ void __launch_bounds__(256)
    fill_blocks_f32(f32* kv, const u32* blocks, u64 block_elements, float value) {
  fill_blocks(kv, blocks, block_elements, value);
}
extern "C" __global__ void __launch_bounds__(256)
    fill_blocks_bf16(bf16* kv, const u32* blocks, u64 block_elements, float value) {
  fill_blocks(kv, blocks, block_elements, value);
}
