// What nvcc and NVRTC have built in, for kernels that run on the host. Force-included before a
// kernel's source, together with the twin of kernels/ptx.cuh.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "fiber.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#define threadIdx (emu::fiber->thread)
#define blockIdx (emu::fiber->block->index)
#define blockDim (emu::fiber->block->size)
#define gridDim (emu::fiber->block->grid)

inline void __syncthreads() { emu::arrive_and_wait(0, 0, 0, "__syncthreads"); }
inline int __syncthreads_or(int p) {
  unsigned set = emu::arrive_and_wait(0, 0, p, "__syncthreads_or");
  return emu::fiber->block->barriers[0].result_any[set];
}
inline int __syncthreads_and(int p) {
  unsigned set = emu::arrive_and_wait(0, 0, p, "__syncthreads_and");
  return emu::fiber->block->barriers[0].result_all[set];
}
inline int __syncthreads_count(int p) {
  unsigned set = emu::arrive_and_wait(0, 0, p, "__syncthreads_count");
  return emu::fiber->block->barriers[0].result_count[set];
}
inline void __syncwarp(unsigned mask = ~0u) { emu::exchange(mask, 0, "__syncwarp"); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  unsigned lane = emu::fiber->lane;
  auto all = emu::exchange(mask, v, "__shfl_sync");
  return emu::value_of<T>(all, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32) {
  unsigned lane = emu::fiber->lane, from = lane ^ x;
  auto all = emu::exchange(mask, v, "__shfl_xor_sync");
  bool inside = (from & ~(width - 1)) == (lane & ~(width - 1));
  return emu::value_of<T>(all, inside ? from : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32) {
  unsigned lane = emu::fiber->lane;
  auto all = emu::exchange(mask, v, "__shfl_down_sync");
  bool inside = (lane & (width - 1)) + d < static_cast<unsigned>(width);
  return emu::value_of<T>(all, inside ? lane + d : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32) {
  unsigned lane = emu::fiber->lane;
  auto all = emu::exchange(mask, v, "__shfl_up_sync");
  return emu::value_of<T>(all, (lane & (width - 1)) >= d ? lane - d : lane);
}
inline unsigned __ballot_sync(unsigned mask, int p) {
  auto all = emu::exchange(mask, p, "__ballot_sync");
  unsigned result = 0;
  for (unsigned i = 0; i < 32; i++) {
    if ((mask >> i & 1) && emu::value_of<int>(all, i)) result |= 1u << i;
  }
  return result;
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline float __uint_as_float(unsigned u) { return std::bit_cast<float>(u); }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline float __int_as_float(int i) { return std::bit_cast<float>(i); }
inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
// Hidden from the compiler: it would fuse the product with a sum.
inline float __fmul_rn(float a, float b) {
  float product = a * b;
  asm("" : "+x"(product));
  return product;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
using std::max;
using std::min;

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T, class U>
T atomicAdd(T* p, U v) {
  return std::atomic_ref<T>(*p).fetch_add(static_cast<T>(v));
}
template <class T>
T atomicMax(T* p, T v) {
  std::atomic_ref<T> a(*p);
  T old = a;
  while (old < v && !a.compare_exchange_weak(old, v)) {
  }
  return old;
}
template <class T>
T atomicMin(T* p, T v) {
  std::atomic_ref<T> a(*p);
  T old = a;
  while (old > v && !a.compare_exchange_weak(old, v)) {
  }
  return old;
}
template <class T>
T atomicOr(T* p, T v) {
  return std::atomic_ref<T>(*p).fetch_or(v);
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
  std::atomic_ref<T>(*p).compare_exchange_strong(expected, v);
  return expected;
}
