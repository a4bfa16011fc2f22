// Every instruction that kernels write by hand, as functions. The emulation of tests/cuda has a
// twin of this file; nothing else holds inline PTX.
#ifndef VRUST_PTX_CUH
#define VRUST_PTX_CUH
#include "types.cuh"

namespace ptx {

// The block's dynamic shared memory.
__device__ __forceinline__ u8* dynamic_shared() {
  extern __shared__ __align__(1024) u8 shared_memory[];
  return shared_memory;
}

__device__ __forceinline__ u32 shared_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ float to_f32(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Rounds to nearest even.
__device__ __forceinline__ bf16 to_bf16(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Two in one; the first argument in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// Begins a copy of 16 bytes to shared memory past the first-level cache; of the bytes read only the
// first `bytes`, the rest becomes 0. Memory is asked for the whole 128 bytes around them, as in
// `load_streaming`.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, u32 bytes = 16) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the last N groups of this thread's copies are under way.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane 8 i + j points at row j of matrix i.
__device__ __forceinline__ void load_matrix_x4(u32* r, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrix_x4_transposed(u32* r, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += A B in f32: A 16x16 by rows, B 16x8 by columns, both bf16.
__device__ __forceinline__ void mma_16x8x16(float* c, const u32* a, const u32* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 bytes that are read once: they need not stay in the first-level cache. Memory is asked for the
// whole 128 bytes around them: where a warp reads 64 bytes of each of 8 rows at a time, asking for
// halves leaves an H200's memory at 0.87 of its speed.
__device__ __forceinline__ uint4 load_streaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 2^x, the hardware's approximation.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Waits for `threads` threads of the block that name barrier `id` (1 to 15).
__device__ __forceinline__ void sync_some(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A kernel launched as dependent may begin before the one before it has ended: waits until that
// one has, and what it wrote can be seen. All threads call it, before they read or write what
// kernels write; weights and a step's metadata may be read earlier. Devices before 9.0 begin no
// kernel early.
__device__ __forceinline__ void wait_for_previous() {
  if constexpr (__CUDA_ARCH__ >= 900) asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Once all blocks have called it, the next kernel may begin. After `wait_for_previous` in each
// kernel, so that at most two kernels are under way.
__device__ __forceinline__ void let_next_begin() {
  if constexpr (__CUDA_ARCH__ >= 900) asm volatile("griddepcontrol.launch_dependents;");
}

// Both.
__device__ __forceinline__ void take_turn() {
  wait_for_previous();
  let_next_begin();
}

// From here on for sm_90a alone.

// A barrier in shared memory whose phase ends with `arrivals` arrivals and all bytes announced.
__device__ __forceinline__ void barrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// After `barrier_init`, for copies to see it.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(
                   shared_address(barrier))
               : "memory");
}

// Arrives, and announces `bytes` that copies will bring.
__device__ __forceinline__ void barrier_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of that parity: the first phase's is 0.
__device__ __forceinline__ void barrier_wait(u64* barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred ended;\n"
      "WAIT_%=:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra WAIT_%=;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Begins the copy of a box of a tensor of three dimensions; what lies outside is zeros. The
// barrier gets its bytes.
__device__ __forceinline__ void copy_box(void* shared, const TensorMap* map, u32 x, u32 y, u32 z,
                                         u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(shared)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
      : "memory");
}

// What this thread wrote to shared memory before, copies and `wgmma` after it see.
__device__ __forceinline__ void async_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The warpgroup leaves registers to others, or takes what they left: N for each thread.
template <int N>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Keeps the compiler from moving uses of registers across.
template <int N>
__device__ __forceinline__ void pin(float (&d)[N][4]) {
#pragma unroll
  for (u32 i = 0; i < N * 4; i++) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(u32 (&a)[N][4]) {
#pragma unroll
  for (u32 i = 0; i < N * 4; i++) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

// Before the first `wgmma` of a group: registers are as the warpgroup left them.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most the last N groups are under way; `d` was of one before.
template <int N, int T>
__device__ __forceinline__ void wgmma_wait(float (&d)[T][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
  pin(d);
}

// d += A B in f32, for a warpgroup: A is 64x16, B 16 x 8 T, both bf16; d is as mma_16x8x16 has it,
// 16 rows a warp. A and B by descriptors of shared memory, k contiguous; `add` 0: d = A B.
#define VRUST_TEN(p)                                                                        \
  "%" #p "0, %" #p "1, %" #p "2, %" #p "3, %" #p "4, %" #p "5, %" #p "6, %" #p "7, %" #p    \
  "8, %" #p "9, "
#define VRUST_30 VRUST_TEN() VRUST_TEN(1) VRUST_TEN(2)
#define VRUST_60 VRUST_30 VRUST_TEN(3) VRUST_TEN(4) VRUST_TEN(5)
#define VRUST_90 VRUST_60 VRUST_TEN(6) VRUST_TEN(7) VRUST_TEN(8)
#define VRUST_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define VRUST_D16(i) VRUST_D4(i), VRUST_D4(i + 1), VRUST_D4(i + 2), VRUST_D4(i + 3)
#define VRUST_D32(i) VRUST_D16(i), VRUST_D16(i + 4)
#define VRUST_D64(i) VRUST_D32(i), VRUST_D32(i + 8)

#define VRUST_WGMMA_SHARED(N, REGISTERS, A, B, ADD, ...)                                    \
  __device__ __forceinline__ void wgmma(float (&d)[N / 8][4], u64 a, u64 b, u32 add) {      \
    asm volatile(                                                                           \
        "{\n.reg .pred add;\nsetp.ne.u32 add, " ADD ", 0;\n"                                \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS "}, " A      \
        ", " B ", add, 1, 1, 0, 0;\n}"                                                      \
        : __VA_ARGS__                                                                       \
        : "l"(a), "l"(b), "r"(add)                                                          \
        : "memory");                                                                        \
  }
VRUST_WGMMA_SHARED(64, VRUST_30 "%30, %31", "%32", "%33", "%34", VRUST_D32(0))
VRUST_WGMMA_SHARED(128, VRUST_60 "%60, %61, %62, %63", "%64", "%65", "%66", VRUST_D64(0))

// The same with A in registers, as mma_16x8x16 has it, and B's rows contiguous; adds to d.
#define VRUST_WGMMA_MIXED(N, REGISTERS, A, B, ...)                                          \
  __device__ __forceinline__ void wgmma_transposed(float (&d)[N / 8][4],                    \
                                                   const u32 (&a)[4], u64 b) {              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS     \
                 "}, {" A "}, " B ", 1, 1, 1, 1;"                                           \
                 : __VA_ARGS__                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                       \
                 : "memory");                                                               \
  }
VRUST_WGMMA_MIXED(64, VRUST_30 "%30, %31", "%32, %33, %34, %35", "%36", VRUST_D32(0))
VRUST_WGMMA_MIXED(80, VRUST_30 "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39",
                  "%40, %41, %42, %43", "%44", VRUST_D32(0), VRUST_D4(8), VRUST_D4(9))
VRUST_WGMMA_MIXED(96, VRUST_30 VRUST_TEN(3) "%40, %41, %42, %43, %44, %45, %46, %47",
                  "%48, %49, %50, %51", "%52", VRUST_D32(0), VRUST_D16(8))
VRUST_WGMMA_MIXED(128, VRUST_60 "%60, %61, %62, %63", "%64, %65, %66, %67", "%68", VRUST_D64(0))
VRUST_WGMMA_MIXED(192, VRUST_90 "%90, %91, %92, %93, %94, %95", "%96, %97, %98, %99", "%100",
                  VRUST_D64(0), VRUST_D32(16))
VRUST_WGMMA_MIXED(256,
                  VRUST_90 VRUST_TEN(9) VRUST_TEN(10) VRUST_TEN(11)
                  "%120, %121, %122, %123, %124, %125, %126, %127",
                  "%128, %129, %130, %131", "%132", VRUST_D64(0), VRUST_D64(16))

}  // namespace ptx

#endif
