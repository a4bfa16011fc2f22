// Choosing tokens: one block a row of logits.
#include "reduce.cuh"

#define THREADS 512

// The first of the largest logits, and the logarithm of the sum of all exponentials.
extern "C" __global__ void __launch_bounds__(THREADS)
    argmax(u32* token, float* max, float* logsumexp, const float* logits, u32 vocab) {
  __shared__ float values[THREADS / 32], sums[THREADS / 32];
  __shared__ u32 places[THREADS / 32];
  const float* row = logits + static_cast<u64>(blockIdx.x) * vocab;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float best = -infinity();
  u32 at = NONE;
  bool nan = false;
#pragma unroll 4
  for (u32 i = threadIdx.x; i < vocab; i += THREADS) {
    const float x = row[i];
    nan |= x != x;
    if (x > best || at == NONE) {
      best = x;
      at = i;
    }
  }
  nan = __syncthreads_or(nan);
  auto take = [&](float x, u32 i) {
    if (i != NONE && (at == NONE || x > best || (x == best && i < at))) {
      best = x;
      at = i;
    }
  };
  for (int d = 16; d != 0; d /= 2) {
    const float x = __shfl_xor_sync(~0u, best, d);
    const u32 i = __shfl_xor_sync(~0u, at, d);
    take(x, i);
  }
  if (lane == 0) {
    values[warp] = best;
    places[warp] = at;
  }
  __syncthreads();
  for (u32 w = 0; w < THREADS / 32; w++) take(values[w], places[w]);
  float sum = 0.0f;
  if (logsumexp != nullptr) {
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) sum += expf(row[i] - best);
    sum = block_sum(sum, sums);
  }
  if (threadIdx.x != 0) return;
  const float not_a_number = __uint_as_float(0x7fc00000u);
  token[blockIdx.x] = nan ? NONE : at;
  if (max != nullptr) max[blockIdx.x] = nan ? not_a_number : best;
  if (logsumexp != nullptr) logsumexp[blockIdx.x] = nan ? not_a_number : best + logf(sum);
}
