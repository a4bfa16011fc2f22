// One kernel for each wrapper of ptx.cuh that sm_90a alone has.
#include "tensor.cuh"

// Two boxes of [16][64] of a tensor, as they lie in shared memory; the second begins past the end.
extern "C" __global__ void wrap_boxes(u32* out, const __grid_constant__ TensorMap map, u32 y) {
  u8* shared = ptx::dynamic_shared();
  u64* barriers = reinterpret_cast<u64*>(shared + 4096);
  if (threadIdx.x == 0) {
    ptx::barrier_init(barriers, 1);
    ptx::barrier_init(barriers + 1, 32);
    ptx::barrier_init_fence();
    ptx::barrier_expect(barriers, 4096);
    ptx::copy_box(shared, &map, 64, 3, 1, barriers);
    ptx::copy_box(shared + 2048, &map, 64, y, 2, barriers);
  }
  __syncwarp();
  ptx::barrier_wait(barriers, 0);
  for (u32 i = threadIdx.x; i < 1024; i += 32) out[i] = reinterpret_cast<u32*>(shared)[i];
  // Nobody passes before all have arrived, twice.
  ptx::barrier_arrive(barriers + 1);
  ptx::barrier_wait(barriers + 1, 0);
  ptx::barrier_arrive(barriers + 1);
  ptx::barrier_wait(barriers + 1, 1);
}

// d = A B by a warpgroup, then d += A B once more, A from registers and B's rows contiguous.
//   a [64][16], b [N][16], b_rows [16][N] of bf16; swizzled by the kernel, R bytes a row
template <u32 N, u32 R>
__device__ __forceinline__ void wrap_products(float* out, const u16* a, const u16* b,
                                              const u16* b_rows) {
  constexpr u32 kWidth = R / 2, kPanels = (N + kWidth - 1) / kWidth;
  u8* left = ptx::dynamic_shared();
  u8 *right = left + 64 * R, *rows = right + N * R;
  for (u32 i = threadIdx.x; i < 64 * 16; i += 128) {
    *reinterpret_cast<u16*>(left + swizzled<R>(i / 16 * R + i % 16 * 2)) = a[i];
  }
  for (u32 i = threadIdx.x; i < N * 16; i += 128) {
    *reinterpret_cast<u16*>(right + swizzled<R>(i / 16 * R + i % 16 * 2)) = b[i];
    const u32 k = i / N, n = i % N;
    u8* panel = rows + n / kWidth * 16 * R;
    *reinterpret_cast<u16*>(panel + swizzled<R>(k * R + n % kWidth * 2)) = b_rows[i];
  }
  static_assert(kPanels * kWidth == N, "whole panels");
  ptx::async_fence();
  ptx::sync_some(1, 128);
  const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
  float d[N / 8][4] = {};
  ptx::wgmma_fence();
  ptx::wgmma(d, matrix<R>(left, 0), matrix<R>(right, 0), 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(d);
  u32 fragment[1][4];
  for (u32 i = 0; i < 4; i++) {
    const u16* from = a + (row + i % 2 * 8) * 16 + column + i / 2 * 8;
    fragment[0][i] = from[0] | static_cast<u32>(from[1]) << 16;
  }
  ptx::pin(d);
  ptx::pin(fragment);
  ptx::wgmma_fence();
  ptx::wgmma_transposed(d, fragment[0], matrix<R>(rows, 16 * R));
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(d);
  for (u32 i = 0; i < N / 2; i++) {
    out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i / 4][i % 4];
  }
}

#define INSTANCE(N, R)                                                                      \
  extern "C" __global__ void __launch_bounds__(128)                                         \
      wrap_wgmma_##N##_##R(float* out, const u16* a, const u16* b, const u16* b_rows) {     \
    wrap_products<N, R>(out, a, b, b_rows);                                                 \
  }
INSTANCE(64, 128)
INSTANCE(64, 64)
INSTANCE(64, 32)
INSTANCE(128, 128)
INSTANCE(128, 32)

// The shapes that take A from registers alone.
template <u32 N, u32 R>
__device__ __forceinline__ void wrap_transposed(float* out, const u16* a, const u16* b_rows) {
  constexpr u32 kWidth = R / 2;
  u8* rows = ptx::dynamic_shared();
  for (u32 i = threadIdx.x; i < N * 16; i += 128) {
    u8* panel = rows + i % N / kWidth * 16 * R;
    *reinterpret_cast<u16*>(panel + swizzled<R>(i / N * R + i % N % kWidth * 2)) = b_rows[i];
  }
  ptx::async_fence();
  ptx::sync_some(1, 128);
  const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
  float d[N / 8][4] = {};
  u32 fragment[1][4];
  for (u32 i = 0; i < 4; i++) {
    const u16* from = a + (row + i % 2 * 8) * 16 + column + i / 2 * 8;
    fragment[0][i] = from[0] | static_cast<u32>(from[1]) << 16;
  }
  ptx::pin(d);
  ptx::pin(fragment);
  ptx::wgmma_fence();
  ptx::wgmma_transposed(d, fragment[0], matrix<R>(rows, 16 * R));
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(d);
  for (u32 i = 0; i < N / 2; i++) {
    out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i / 4][i % 4];
  }
}

#define TRANSPOSED(N, R)                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                         \
      wrap_transposed_##N##_##R(float* out, const u16* a, const u16* b_rows) {              \
    wrap_transposed<N, R>(out, a, b_rows);                                                  \
  }
TRANSPOSED(80, 32)
TRANSPOSED(96, 64)
TRANSPOSED(192, 128)
TRANSPOSED(256, 128)

extern "C" __global__ void __launch_bounds__(256, 1) wrap_registers(u32* out) {
  if (threadIdx.x / 128 == 0) {
    ptx::fewer_registers<40>();
  } else {
    ptx::more_registers<200>();
  }
  out[threadIdx.x] = threadIdx.x;
}
