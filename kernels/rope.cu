// Normalises and rotates queries and keys, then writes keys and values to the cache.
//
// A warp takes one head of one row. A lane owns whole pairs (i, i + rotary_dim / 2), and elements
// past the rotation, so that no lane reads what another writes.
#include "args.cuh"
#include "reduce.cuh"

template <class T>
__device__ __forceinline__ void rope_write_kv(const RopeWrite<T>& a) {
  const u32 lane = threadIdx.x % 32, row = blockIdx.y;
  const u32 head = blockIdx.x * 4 + threadIdx.x / 32;
  if (head >= a.heads + 2 * a.kv_heads) return;
  float* x = a.qkv + (static_cast<u64>(row) * (a.heads + 2 * a.kv_heads) + head) * a.head_dim;
  const bool is_query = head < a.heads, is_value = head >= a.heads + a.kv_heads;

  const u32 slot = a.slots[row];
  T* to = nullptr;
  if (!is_query && slot != NONE) {
    const u32 kv_head = (head - a.heads) % a.kv_heads;
    to = a.kv + slot / a.block_size * a.block_stride + (is_value ? a.v_offset : a.k_offset) +
         (static_cast<u64>(kv_head) * a.block_size + slot % a.block_size) * a.head_dim;
  }
  if (is_value) {
    if (to == nullptr) return;
    for (u32 i = lane; i < a.head_dim; i += 32) store(to + i, x[i]);
    return;
  }

  const float* weight = is_query ? a.q_norm : a.k_norm;
  float scale = 1.0f;
  if (weight != nullptr) {
    float squares = 0.0f;
    for (u32 i = lane; i < a.head_dim; i += 32) squares += x[i] * x[i];
    scale = rsqrtf(warp_sum(squares) / static_cast<float>(a.head_dim) + a.eps);
    // Nobody may write before everybody has read.
    __syncwarp();
  }
  auto normed = [&](u32 i) { return weight != nullptr ? x[i] * scale * weight[i] : x[i]; };
  auto put = [&](u32 i, float value) {
    x[i] = value;
    if (to != nullptr) store(to + i, value);
  };
  const u32 half = a.rope != nullptr ? a.rotary_dim / 2 : 0;
  const float* turn = a.rope + static_cast<u64>(a.positions[row]) * a.rotary_dim;
  for (u32 i = lane; i < half; i += 32) {
    const float p = normed(i), q = normed(i + half), cosine = turn[i], sine = turn[half + i];
    put(i, p * cosine - q * sine);
    put(i + half, q * cosine + p * sine);
  }
  for (u32 i = 2 * half + lane; i < a.head_dim; i += 32) put(i, normed(i));
}

extern "C" __global__ void __launch_bounds__(128) rope_write_kv_f32(RopeWrite<f32> a) {
  rope_write_kv(a);
}
extern "C" __global__ void __launch_bounds__(128) rope_write_kv_bf16(RopeWrite<bf16> a) {
  rope_write_kv(a);
}
