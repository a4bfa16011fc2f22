// y = x W^T + bias in f32, tiled through shared memory: exact about its inputs, not made for speed.
//
// A block of 256 threads makes a tile of 64 x 64 outputs, a thread 4 x 4 of them. Every output is
// one sum over k in ascending order, so that a row does not depend on the rows beside it.
#include "reduce.cuh"

#define TILE 64
#define DEPTH 16

template <class T>
__device__ __forceinline__ void gemm(float* y, const float* x, const T* w, const float* bias,
                                     u32 rows, u32 n, u32 k, u32 accumulate) {
  ptx::take_turn();
  // By depth, then row or column; padded against bank conflicts.
  __shared__ float xs[DEPTH][TILE + 4], ws[DEPTH][TILE + 4];
  const u32 row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
  const u32 ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  float sums[4][4] = {};
  for (u32 k0 = 0; k0 < k; k0 += DEPTH) {
    for (u32 i = threadIdx.x; i < TILE * DEPTH; i += 256) {
      const u32 line = i / DEPTH, depth = i % DEPTH;
      const bool inside = k0 + depth < k;
      const u32 row = row0 + line, column = column0 + line;
      xs[depth][line] =
          inside && row < rows ? x[static_cast<u64>(row) * k + k0 + depth] : 0.0f;
      ws[depth][line] =
          inside && column < n ? widen(w[static_cast<u64>(column) * k + k0 + depth]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (u32 depth = 0; depth < DEPTH; depth++) {
      float a[4], b[4];
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        a[i] = xs[depth][ty * 4 + i];
        b[i] = ws[depth][tx * 4 + i];
      }
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) sums[i][j] += a[i] * b[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 row = row0 + ty * 4 + i;
    if (row >= rows) break;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      const u32 column = column0 + tx * 4 + j;
      if (column >= n) break;
      float* to = y + static_cast<u64>(row) * n + column;
      const float sum = sums[i][j] + (bias != nullptr ? bias[column] : 0.0f);
      *to = accumulate ? *to + sum : sum;
    }
  }
}

#define INSTANCE(T)                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                         \
      gemm_##T(float* y, const float* x, const T* w, const float* bias, u32 rows, u32 n,    \
               u32 k, u32 accumulate) {                                                     \
    gemm(y, x, w, bias, rows, n, k, accumulate);                                            \
  }
INSTANCE(f32)
INSTANCE(bf16)
INSTANCE(f16)
