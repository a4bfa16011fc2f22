// Element access by type, and sums over a block.
#ifndef VRUST_REDUCE_CUH
#define VRUST_REDUCE_CUH
#include "ptx.cuh"

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) {
  return __uint_as_float(static_cast<u32>(x.bits) << 16);
}
__device__ __forceinline__ float widen(f16 x) { return ptx::to_f32(x); }

__device__ __forceinline__ void store(float* p, float x) { *p = x; }
__device__ __forceinline__ void store(bf16* p, float x) { *p = ptx::to_bf16(x); }

// Two at once, from and to addresses aligned for that.
__device__ __forceinline__ float2 load2(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}
__device__ __forceinline__ void store2(float* p, float x, float y) {
  *reinterpret_cast<float2*>(p) = make_float2(x, y);
}
__device__ __forceinline__ void store2(bf16* p, float x, float y) {
  *reinterpret_cast<u32*>(p) = ptx::pack_bf16(x, y);
}

// Four at once, from and to addresses aligned for that.
__device__ __forceinline__ float4 load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ void store4(float* p, const float4& x) {
  *reinterpret_cast<float4*>(p) = x;
}
__device__ __forceinline__ void store4(bf16* p, const float4& x) {
  *reinterpret_cast<uint2*>(p) = make_uint2(ptx::pack_bf16(x.x, x.y), ptx::pack_bf16(x.z, x.w));
}

// N neighbours, from and to addresses aligned for all of them at once.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ Vector<float, N> load_some(const T* p) {
  const Vector<T, N> from = *reinterpret_cast<const Vector<T, N>*>(p);
  Vector<float, N> x;
#pragma unroll
  for (u32 i = 0; i < N; i++) x.at[i] = widen(from.at[i]);
  return x;
}
template <int N>
__device__ __forceinline__ void store_some(float* p, const Vector<float, N>& x) {
  *reinterpret_cast<Vector<float, N>*>(p) = x;
}
template <int N>
__device__ __forceinline__ void store_some(bf16* p, const Vector<float, N>& x) {
  if constexpr (N == 1) {
    store(p, x.at[0]);
  } else {
    Vector<u32, N / 2> to;
#pragma unroll
    for (u32 i = 0; i < N / 2; i++) to.at[i] = ptx::pack_bf16(x.at[2 * i], x.at[2 * i + 1]);
    *reinterpret_cast<Vector<u32, N / 2>*>(p) = to;
  }
}

__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ float warp_sum(float x) {
  for (int d = 16; d != 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int d = 16; d != 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

// The block's sum, in every thread. `scratch` has a place for each warp and is free for the next
// use after one more barrier.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_sum(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

#endif
