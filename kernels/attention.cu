// Attention of one row over the paged cache, for any head size: the kernel that others are held to.
//
// A block of 4 warps takes one query head of one row. Each warp takes every fourth position, with
// a running maximum and sum; the four results are merged at the end. The order of additions
// depends on the row's position alone.
#include "args.cuh"
#include "reduce.cuh"

#define WARPS 4
// Elements of a head in one lane: heads of up to 512.
#define MOST_PER_LANE 16

template <class T, class O>
__device__ __forceinline__ void paged_attention(const Attention<T, O>& a) {
  ptx::take_turn();
  // By warp: [head_dim] of mixed values, then maximum and sum.
  float* scratch = reinterpret_cast<float*>(ptx::dynamic_shared());
  const u32 head = blockIdx.x, row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  O* out = a.out + (static_cast<u64>(row) * a.heads + head) * a.head_dim;
  const u32 index = a.row_seq[row];
  if (index == NONE) {
    for (u32 i = threadIdx.x; i < a.head_dim; i += blockDim.x) store(out + i, 0.0f);
    return;
  }
  const Seq seq = a.seqs[index];
  const u32 end = seq.context_len + (row - seq.query_start) + 1;
  const u32 begin = a.window != 0 && end > a.window ? end - a.window : 0;
  const u32* table = a.block_table + seq.block_table_start;
  const u64 head_start = static_cast<u64>(head / (a.heads / a.kv_heads)) * a.block_size;

  const float* q = a.qkv + static_cast<u64>(row) * a.qkv_width + head * a.head_dim;
  float query[MOST_PER_LANE], mixed[MOST_PER_LANE];
#pragma unroll
  for (u32 j = 0; j < MOST_PER_LANE; j++) {
    const u32 d = j * 32 + lane;
    query[j] = d < a.head_dim ? q[d] : 0.0f;
    mixed[j] = 0.0f;
  }
  float highest = -infinity(), sum = 0.0f;
  for (u32 position = begin + warp; position < end; position += WARPS) {
    const T* k = a.kv + table[position / a.block_size] * a.block_stride + a.k_offset +
                 (head_start + position % a.block_size) * a.head_dim;
    const T* v = k + (a.v_offset - a.k_offset);
    float score = 0.0f;
#pragma unroll
    for (u32 j = 0; j < MOST_PER_LANE; j++) {
      const u32 d = j * 32 + lane;
      if (d < a.head_dim) score += query[j] * widen(k[d]);
    }
    score = warp_sum(score) * a.scale;
    if (a.softcap != 0.0f) score = a.softcap * tanhf(score / a.softcap);
    const float higher = fmaxf(highest, score);
    const float shrink = expf(highest - higher), weight = expf(score - higher);
    highest = higher;
    sum = sum * shrink + weight;
#pragma unroll
    for (u32 j = 0; j < MOST_PER_LANE; j++) {
      const u32 d = j * 32 + lane;
      if (d < a.head_dim) mixed[j] = mixed[j] * shrink + weight * widen(v[d]);
    }
  }
  float* mine = scratch + warp * (a.head_dim + 2);
#pragma unroll
  for (u32 j = 0; j < MOST_PER_LANE; j++) {
    const u32 d = j * 32 + lane;
    if (d < a.head_dim) mine[d] = mixed[j];
  }
  if (lane == 0) {
    mine[a.head_dim] = highest;
    mine[a.head_dim + 1] = sum;
  }
  __syncthreads();

  float top = a.sinks != nullptr ? a.sinks[head] : -infinity();
  const u32 stride = a.head_dim + 2;
  for (u32 w = 0; w < WARPS; w++) top = fmaxf(top, scratch[w * stride + a.head_dim]);
  float total = a.sinks != nullptr ? expf(a.sinks[head] - top) : 0.0f;
  float share[WARPS];
#pragma unroll
  for (u32 w = 0; w < WARPS; w++) {
    share[w] = expf(scratch[w * stride + a.head_dim] - top);
    total += share[w] * scratch[w * stride + a.head_dim + 1];
  }
  for (u32 d = threadIdx.x; d < a.head_dim; d += blockDim.x) {
    float x = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) x += share[w] * scratch[w * stride + d];
    store(out + d, x / total);
  }
}

#define INSTANCE(T, O)                                                                      \
  extern "C" __global__ void __launch_bounds__(128)                                         \
      paged_attention_##T##_##O(Attention<T, O> a) {                                        \
    paged_attention(a);                                                                     \
  }
INSTANCE(f32, f32)
INSTANCE(bf16, f32)
INSTANCE(bf16, bf16)
