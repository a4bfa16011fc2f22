// The most likely token: one block a row of logits.
#include "row.cuh"

#define THREADS 512
#define WARPS (THREADS / 32)
// Groups of four logits that a thread reads at once.
#define LOADS 8

// The first of the largest logits, and the logarithm of the sum of all exponentials.
extern "C" __global__ void __launch_bounds__(THREADS)
    argmax(u32* token, float* max, float* logsumexp, const float* logits, u32 vocab) {
  ptx::take_turn();
  __shared__ float values[WARPS], sums[WARPS];
  __shared__ u32 places[WARPS];
  const Row<THREADS> row(logits, vocab);
  const u32 single = row.single_id();
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float best = -infinity();
  u32 at = NONE;
  bool nan = false;
  auto take = [&](float x, u32 i) {
    if (x > best || (x == best && i < at)) {
      best = x;
      at = i;
    }
  };
  auto look = [&](float x, u32 i) {
    nan |= x != x;
    if (x > best) {
      best = x;
      at = i;
    }
  };
  // Not each_in_groups: behind the groups all is -infinity, and no place of it is asked for.
  row.groups<LOADS>([&](const float4(&x)[LOADS], u32 first) {
#pragma unroll
    for (u32 j = 0; j < LOADS; j++) each_of(x[j], first + 4 * THREADS * j, look);
  });
  if (single < vocab) {
    const float x = row.logits[single];
    nan |= x != x;
    take(x, single);
  }
  nan = __syncthreads_or(nan);
  auto take_from_lanes = [&] {
    for (int d = 16; d != 0; d /= 2) {
      const float x = __shfl_xor_sync(~0u, best, d);
      const u32 i = __shfl_xor_sync(~0u, at, d);
      take(x, i);
    }
  };
  take_from_lanes();
  if (lane == 0) {
    values[warp] = best;
    places[warp] = at;
  }
  __syncthreads();
  best = values[lane % WARPS];
  at = places[lane % WARPS];
  take_from_lanes();
  float sum = 0.0f;
  if (logsumexp != nullptr) {
    if (single < vocab) sum = expf(row.logits[single] - best);
    row.each_in_groups<LOADS>([&](float x, u32) { sum += expf(x - best); });
    sum = block_sum(sum, sums);
  }
  if (threadIdx.x != 0) return;
  const float not_a_number = __uint_as_float(0x7fc00000u);
  // Where all are -infinity none was larger than nothing.
  token[blockIdx.x] = nan ? NONE : best == -infinity() ? 0 : at;
  if (max != nullptr) max[blockIdx.x] = nan ? not_a_number : best;
  if (logsumexp != nullptr) logsumexp[blockIdx.x] = nan ? not_a_number : best + logf(sum);
}
