// What the attention kernels on tensor cores share.
//
// An accumulator of m16n8k16 holds, in lane (g, t) = (lane / 4, lane % 4): rows g and g + 8,
// columns 2 t and 2 t + 1. So a row's maximum and sum need four lanes.
#ifndef VRUST_TENSOR_CUH
#define VRUST_TENSOR_CUH
#include "args.cuh"
#include "reduce.cuh"

#define LOG2E 1.4426950408889634f

__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// A score, scaled and capped, as a power of two. tanh(x) is 1 - 2 / (e^2x + 1): off by some units
// of 2^-24 of the cap, and short, where tanhf would be most of a kernel.
__device__ __forceinline__ float shaped(float score, float scale, float softcap) {
  score *= scale;
  if (softcap != 0.0f) {
    const float power = ptx::exp2_fast(score * (2 * LOG2E / softcap));
    score = softcap - __fdividef(2 * softcap, power + 1.0f);
  }
  return score * LOG2E;
}

// The running softmax of two rows (g and g + 8), and their mixed values.
template <int D>
struct Running {
  float highest[2], sum[2], mixed[D / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      highest[r] = -infinity();
      sum[r] = 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < D / 8; i++) {
#pragma unroll
      for (u32 j = 0; j < 4; j++) mixed[i][j] = 0.0f;
    }
  }

  // Takes in N tiles of 8 scores (powers of two, -infinity where masked), which become weights.
  template <int N>
  __device__ __forceinline__ void weigh(float (&scores)[N][4]) {
    float shrink[2];
    take(scores, shrink);
    scale(shrink);
  }

  // The same but for the values mixed so far, which are to be scaled by `shrink`. Scores times
  // `unit`, which is positive, are the powers.
  template <int N>
  __device__ __forceinline__ void take(float (&scores)[N][4], float (&shrink)[2],
                                       float unit = 1.0f) {
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      float top = -infinity();
#pragma unroll
      for (u32 i = 0; i < N; i++) top = fmaxf(top, fmaxf(scores[i][2 * r], scores[i][2 * r + 1]));
      top = fmaxf(highest[r], row_max(top) * unit);
      // A row that has seen nothing stays as it is.
      const float base = top == -infinity() ? 0.0f : top;
      shrink[r] = ptx::exp2_fast(highest[r] - base);
      highest[r] = top;
      float added = 0.0f;
#pragma unroll
      for (u32 i = 0; i < N; i++) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
          const float weight = ptx::exp2_fast(scores[i][2 * r + j] * unit - base);
          scores[i][2 * r + j] = weight;
          added += weight;
        }
      }
      sum[r] = sum[r] * shrink[r] + added;
    }
  }

  __device__ __forceinline__ void scale(const float (&shrink)[2]) {
#pragma unroll
    for (u32 i = 0; i < D / 8; i++) {
#pragma unroll
      for (u32 j = 0; j < 4; j++) mixed[i][j] *= shrink[j / 2];
    }
  }

  // Writes the results of rows `row` and `row + 8` that come before `end`.
  template <class O>
  __device__ __forceinline__ void write(const Attention<bf16, O>& a, u32 head, u32 row, u32 end) {
#pragma unroll
    for (u32 r = 0; r < 2; r++, row += 8) {
      float total = row_sum(sum[r]), share = 1.0f;
      if (a.sinks != nullptr) {
        const float sink = a.sinks[head] * LOG2E, top = fmaxf(highest[r], sink);
        share = ptx::exp2_fast(highest[r] - top);
        total = total * share + ptx::exp2_fast(sink - top);
      }
      share /= total;
      if (row >= end) continue;
      O* to = a.out + (static_cast<u64>(row) * a.heads + head) * D + threadIdx.x % 4 * 2;
#pragma unroll
      for (u32 i = 0; i < D / 8; i++) {
        store2(to + i * 8, mixed[i][2 * r] * share, mixed[i][2 * r + 1] * share);
      }
    }
  }

  // Adds weights times values: tiles 2 i and 2 i + 1 of the weights are rows 16 i .. 16 i + 15 of
  // `values`, whose rows are `pitch` apart.
  template <int N>
  __device__ __forceinline__ void mix(const float (&weights)[N][4], const bf16* values, u32 pitch) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < N / 2; i++) {
      const u32 a[4] = {ptx::pack_bf16(weights[2 * i][0], weights[2 * i][1]),
                        ptx::pack_bf16(weights[2 * i][2], weights[2 * i][3]),
                        ptx::pack_bf16(weights[2 * i + 1][0], weights[2 * i + 1][1]),
                        ptx::pack_bf16(weights[2 * i + 1][2], weights[2 * i + 1][3])};
      const bf16* row = values + (i * 16 + lane % 16) * pitch + lane / 16 * 8;
#pragma unroll
      for (u32 d = 0; d < D / 16; d++) {
        u32 b[4];
        ptx::load_matrix_x4_transposed(b, row + d * 16);
        ptx::mma_16x8x16(mixed[2 * d], a, b);
        ptx::mma_16x8x16(mixed[2 * d + 1], a, b + 2);
      }
    }
  }
};

// 16 queries of D elements as fragments: in registers, or, for large heads, taken from rows of
// shared memory each time.
template <int D, bool kInRegisters>
struct Queries;

template <int D>
struct Queries<D, true> {
  u32 fragments[D / 16][4];

  // From 16 rows `pitch` apart.
  __device__ __forceinline__ void take(const bf16* rows, u32 pitch) {
    const u32 lane = threadIdx.x % 32;
    const bf16* from = rows + lane % 16 * pitch + lane / 16 * 8;
#pragma unroll
    for (u32 d = 0; d < D / 16; d++) ptx::load_matrix_x4(fragments[d], from + d * 16);
  }
  __device__ __forceinline__ void get(u32 (&a)[4], u32 d) const {
#pragma unroll
    for (u32 i = 0; i < 4; i++) a[i] = fragments[d][i];
  }
};

template <int D>
struct Queries<D, false> {
  const bf16* from;

  __device__ __forceinline__ void take(const bf16* rows, u32 pitch) {
    const u32 lane = threadIdx.x % 32;
    from = rows + lane % 16 * pitch + lane / 16 * 8;
  }
  __device__ __forceinline__ void get(u32 (&a)[4], u32 d) const {
    ptx::load_matrix_x4(a, from + d * 16);
  }
};

// scores += queries times keys: 8 N keys in rows `pitch` apart.
template <int D, int N, bool kInRegisters>
__device__ __forceinline__ void score(float (&scores)[N][4],
                                      const Queries<D, kInRegisters>& queries, const bf16* keys,
                                      u32 pitch) {
  const u32 lane = threadIdx.x % 32;
  const bf16* row = keys + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
#pragma unroll
  for (u32 d = 0; d < D / 16; d++) {
    u32 a[4];
    queries.get(a, d);
#pragma unroll
    for (u32 n = 0; n < N / 2; n++) {
      u32 b[4];
      ptx::load_matrix_x4(b, row + n * 16 * pitch + d * 16);
      ptx::mma_16x8x16(scores[2 * n], a, b);
      ptx::mma_16x8x16(scores[2 * n + 1], a, b + 2);
    }
  }
}

// Where a byte of a matrix lies whose rows of R bytes are swizzled as wide as they are: among the
// pieces of 16 bytes of its row by a bit or more of its place in the pattern. Copies in boxes and
// `wgmma` do the same by themselves.
template <u32 R>
__device__ __forceinline__ u32 swizzled(u32 at) {
  return at ^ (at / 128 % (R / 16) * 16);
}

// Describes such a matrix in shared memory to `wgmma`, from `start` on: eight rows after eight,
// and, where rows are k, further columns `next` bytes on.
template <u32 R>
__device__ __forceinline__ u64 matrix(const void* start, u32 next) {
  const u64 address = (ptx::shared_address(start) & 0x3ffff) / 16;
  const u64 mode = R == 128 ? 1 : R == 64 ? 2 : 3;
  return address | static_cast<u64>(next / 16) << 16 | static_cast<u64>(R / 2) << 32 | mode << 62;
}

#endif
