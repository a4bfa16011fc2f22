// y = x W^T + bias for at most 16 rows: every weight is read once, so the memory's speed decides.
//
// A block of 8 warps makes 16 outputs of each row; the warps share k in pieces of 128. The
// weights are the tensor core's A and the rows its B. Neither passes through shared memory: a
// product does not care in which order k is summed, so a lane takes 8 consecutive elements of a
// row, 16 bytes in one load, and calls them the k that its registers stand for, in A and B alike.
//
//   registers of lane (g, t): A rows g and g + 8, B column g; each k = 8 t .. 8 t + 7 of 32
//
// Sums are taken in one order for each (n, k, splits), whatever the number of rows.
#include "reduce.cuh"

#define WARPS 8
// k of one warp's turn, as 4 loads of 32.
#define STEP 128

__device__ __forceinline__ uint4 zero4() { return make_uint4(0, 0, 0, 0); }

// Two products of 16 k each.
__device__ __forceinline__ void multiply(float* sums, const uint4& w0, const uint4& w1,
                                         const uint4& x) {
  const u32 a[4] = {w0.x, w1.x, w0.y, w1.y}, b[2] = {x.x, x.y};
  ptx::mma_16x8x16(sums, a, b);
  const u32 c[4] = {w0.z, w1.z, w0.w, w1.w}, d[2] = {x.z, x.w};
  ptx::mma_16x8x16(sums, c, d);
}

// TILES: 8 rows each.
template <int TILES>
__device__ __forceinline__ void skinny_gemm(float* y, const bf16* x, const bf16* w,
                                            const float* bias, float* partial, u32 rows, u32 n,
                                            u32 k, u32 accumulate) {
  // By warp, row and output.
  __shared__ float results[WARPS][TILES * 8][17];
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const u32 first = blockIdx.x * 16, splits = gridDim.y;
  // This block's share of k, in whole steps.
  const u32 steps = (k + STEP - 1) / STEP, share = (steps + splits - 1) / splits;
  const u32 begin = blockIdx.y * share * STEP, end = min(k, begin + share * STEP);
  const bool low = first + g < n, high = first + g + 8 < n;
  const bf16* w0 = w + static_cast<u64>(first + g) * k;
  const bf16* w1 = w0 + static_cast<u64>(8) * k;

  float sums[TILES][4] = {};
  for (u32 k0 = begin + warp * STEP; k0 < end; k0 += WARPS * STEP) {
    uint4 a0[4], a1[4], b[TILES][4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u32 at = k0 + i * 32 + t * 8;
      const bool inside = at < end;
      a0[i] = inside && low ? ptx::load_streaming(w0 + at) : zero4();
      a1[i] = inside && high ? ptx::load_streaming(w1 + at) : zero4();
    }
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
      const u32 row = tile * 8 + g;
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const u32 at = k0 + i * 32 + t * 8;
        const bool inside = at < end && row < rows;
        const bf16* from = x + static_cast<u64>(row) * k + at;
        b[tile][i] = inside ? *reinterpret_cast<const uint4*>(from) : zero4();
      }
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
      for (u32 tile = 0; tile < TILES; tile++) multiply(sums[tile], a0[i], a1[i], b[tile][i]);
    }
  }
#pragma unroll
  for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      results[warp][tile * 8 + t * 2 + i % 2][g + i / 2 * 8] = sums[tile][i];
    }
  }
  __syncthreads();

  const u32 row = threadIdx.x / 16, output = first + threadIdx.x % 16;
  if (row >= rows || row >= TILES * 8 || output >= n) return;
  float sum = 0.0f;
#pragma unroll
  for (u32 i = 0; i < WARPS; i++) sum += results[i][row][threadIdx.x % 16];
  const u64 at = static_cast<u64>(row) * n + output;
  if (partial != nullptr) {
    partial[static_cast<u64>(blockIdx.y) * rows * n + at] = sum;
    return;
  }
  if (bias != nullptr) sum += bias[output];
  y[at] = accumulate ? y[at] + sum : sum;
}

extern "C" __global__ void __launch_bounds__(256)
    skinny_gemm_8(float* y, const bf16* x, const bf16* w, const float* bias, float* partial,
                  u32 rows, u32 n, u32 k, u32 accumulate) {
  skinny_gemm<1>(y, x, w, bias, partial, rows, n, k, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    skinny_gemm_16(float* y, const bf16* x, const bf16* w, const float* bias, float* partial,
                   u32 rows, u32 n, u32 k, u32 accumulate) {
  skinny_gemm<2>(y, x, w, bias, partial, rows, n, k, accumulate);
}

// Adds up what the splits left, in order.
extern "C" __global__ void __launch_bounds__(256)
    skinny_sum(float* y, const float* bias, const float* partial, u32 splits, u32 n,
               u32 accumulate) {
  const u32 i = blockIdx.x * 256 + threadIdx.x, rows = gridDim.y;
  if (i >= n) return;
  const u64 at = static_cast<u64>(blockIdx.y) * n + i;
  float sum = 0.0f;
  for (u32 s = 0; s < splits; s++) sum += partial[static_cast<u64>(s) * rows * n + at];
  if (bias != nullptr) sum += bias[i];
  y[at] = accumulate ? y[at] + sum : sum;
}
