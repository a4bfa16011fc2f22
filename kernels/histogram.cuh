// Where the masses of tokens, from the first key on, reach a target: histograms over one digit of
// the keys after another. Masses are integers, so that the order in which threads come does not
// matter.
#ifndef VRUST_HISTOGRAM_CUH
#define VRUST_HISTOGRAM_CUH
#include "types.cuh"

// ---- keys ----

// Greater floats have greater keys, and equal ones equal keys.
__device__ __forceinline__ u32 key_of(float x) {
  const u32 u = __float_as_uint(x + 0.0f);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float value_of(u32 key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

// The place of a scaled logit, which is at most 0, from the top.
__device__ __forceinline__ u32 depth_of(float z) { return __float_as_uint(z) & 0x7fffffffu; }
__device__ __forceinline__ float at_depth(u32 key) { return -__uint_as_float(key); }

// ---- sums over a warp ----

// Each lane's sum of its own and all lower lanes' values.
__device__ __forceinline__ u64 running_sum(u64 x) {
  for (u32 d = 1; d < 32; d *= 2) {
    const u64 lower = __shfl_up_sync(~0u, x, d);
    x += threadIdx.x % 32 >= d ? lower : 0;
  }
  return x;
}

__device__ __forceinline__ u64 warp_max(u64 x) {
  for (int d = 16; d != 0; d /= 2) {
    const u64 other = __shfl_xor_sync(~0u, x, d);
    x = other > x ? other : x;
  }
  return x;
}

// ---- histograms ----

// Sums of 64 bits in halves: shared memory adds 32 bits in one instruction, and 64 by trying.
struct Bins {
  u32* low;
  u32* high;
  int bits;  // there are 2^bits

  __device__ __forceinline__ u32 count() const { return 1u << bits; }

  __device__ __forceinline__ u64 mass(u32 bin) const {
    return static_cast<u64>(high[bin]) << 32 | low[bin];
  }

  __device__ __forceinline__ void add(u32 bin, u64 mass) const {
    const u32 part = static_cast<u32>(mass), before = atomicAdd(&low[bin], part);
    const u32 rest = static_cast<u32>(mass >> 32) + (before + part < part);
    if (rest != 0) atomicAdd(&high[bin], rest);
  }
};

// The keys from `begin` to `end`, both included, in bins of 2^shift from `knee` on; those before
// it belong to the first bin.
struct Digit {
  u32 begin, end, knee;
  int shift;

  // As narrow as the bins allow.
  __device__ __forceinline__ static Digit over(u32 begin, u32 end, int bits) {
    const int shift = 32 - __clz(static_cast<int>(end - begin)) - bits;
    return {begin, end, begin, shift > 0 ? shift : 0};
  }

  __device__ __forceinline__ bool has(u32 key) const { return key - begin <= end - begin; }

  __device__ __forceinline__ u32 bin(u32 key) const {
    return ((key > knee ? key : knee) - knee) >> shift;
  }

  // The keys of one bin, in bins of their own.
  __device__ __forceinline__ Digit inside(u32 bin, int bits) const {
    const u32 from = knee + (bin << shift), span = (1u << shift) - 1;
    return over(bin == 0 ? begin : from, end - from < span ? end : from + span, bits);
  }
};

// Adds masses to the bins of their keys. Those of a run of keys of one bin are added at once:
// where all tokens are alike, threads would wait for each other.
struct Tally {
  Bins bins;
  Digit digit;
  u32 bin;
  u64 mass;

  __device__ __forceinline__ void add(u32 key, u64 more) {
    const u32 next = digit.bin(key);
    if (next != bin) {
      flush();
      bin = next;
      mass = 0;
    }
    mass += more;
  }

  __device__ __forceinline__ void flush() const {
    if (mass != 0) bins.add(bin, mass);
  }
};

// The bin in which the masses, from the first bin on, reach `target`, and what is before it.
struct Found {
  u64 target, above, mass;
  u32 bin;
};

#endif
