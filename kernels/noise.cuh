// Noise and weights: which random variable a token gets, and how likely it is. Bit for bit as in
// src/sampling on the host, but for the bound that decides about most tokens.
#ifndef VRUST_NOISE_CUH
#define VRUST_NOISE_CUH
#include "ptx.cuh"

#define NOISE_STEP 0x9e3779b97f4a7c15ull
// A weight of 1.
#define ONE 4398046511104.0f
#define LOG2_E 1.44269504f

// ---- noise ----

__device__ __forceinline__ u64 mix(u64 x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__device__ __forceinline__ u64 noise_key(u64 seed, u32 position) {
  return mix(mix(seed + NOISE_STEP) ^ position * NOISE_STEP);
}

// A uniform variable of 52 bits.
__device__ __forceinline__ u64 noise_bits(u64 key, u32 token) {
  return mix(key + token * NOISE_STEP) >> 12;
}

__device__ __forceinline__ double noisy(float z, u64 bits) {
  const double v = static_cast<double>(2 * bits + 1) * 0x1p-53;
  return static_cast<double>(z) - log(-log1p(-v));
}

// ---- weights ----

// x * y + z, rounded twice, as on the host.
__device__ __forceinline__ float times_plus(float x, float y, float z) {
  return __fadd_rn(__fmul_rn(x, y), z);
}

// exp(x) for x <= 0, bit for bit as on the host; what is below -87 counts as -87.
__device__ __forceinline__ float fast_exp(float x) {
  x = x > -87.0f ? x : -87.0f;
  const float rounded = times_plus(x, 1.44269504088896f, 12582912.0f), n = rounded - 12582912.0f;
  const float r = times_plus(n, 2.1219444e-4f, times_plus(n, -355.0f / 512.0f, x));
  float p = 1.0f / 5040.0f;
  p = times_plus(p, r, 1.0f / 720.0f);
  p = times_plus(p, r, 1.0f / 120.0f);
  p = times_plus(p, r, 1.0f / 24.0f);
  p = times_plus(p, r, 1.0f / 6.0f);
  p = times_plus(p, r, 0.5f);
  p = times_plus(p, r, 1.0f);
  p = times_plus(p, r, 1.0f);
  return p * __uint_as_float((__float_as_uint(rounded) << 23) + __float_as_uint(1.0f));
}

// Of a scaled logit, which is at most 0.
__device__ __forceinline__ u64 weight_of(float z) {
  return static_cast<u64>(fast_exp(z) * ONE);
}

// ---- the bound ----

// Whether a token can reach a score: its uniform variable must be below exp(scaled logit - score).
// `z` is the scaled logit and `lead` the score, both times log2(e). Errs on the side of yes: by a
// thousandth, which is more than the roundings of `z` and `lead` make, and by 2^-22, as the
// variable is cut to 23 bits.
__device__ __forceinline__ bool may_win(u64 key, u32 token, float z, float lead) {
  u64 x = key + token * NOISE_STEP;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  const u32 high = static_cast<u32>(x >> 32);
  // The variable's first bits, plus 1.
  const float v = __uint_as_float((high ^ high >> 31) >> 9 | 0x3f800000u);
  // Not `v < ...`: what is no number must be looked at.
  return !(v >= fmaf(ptx::exp2_fast(z - lead), 1.001f, 1.0f + 0x1p-22f));
}

#endif
