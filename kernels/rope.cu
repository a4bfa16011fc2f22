// Normalises and rotates queries and keys, then writes keys and values to the cache.
//
// A warp takes one head of one row. A lane owns whole pairs (i, i + rotary_dim / 2), and elements
// past the rotation, so that no lane reads what another writes. It takes N neighbours in one
// access where they lie aligned, and asks for all that it needs before it writes anything.
#include "args.cuh"
#include "reduce.cuh"

template <class T>
struct Head {
  const RopeWrite<T>& a;
  const u32 lane = threadIdx.x % 32, row = blockIdx.y, head = blockIdx.x * 4 + threadIdx.x / 32;
  const bool is_query = head < a.heads, is_value = head >= a.heads + a.kv_heads;
  float* x;
  u32 slot;

  __device__ __forceinline__ explicit Head(const RopeWrite<T>& args) : a(args) {
    x = a.qkv + (static_cast<u64>(row) * (a.heads + 2 * a.kv_heads) + head) * a.head_dim;
    slot = a.slots[row];
  }

  // Where keys and values go in the cache; null: nowhere.
  __device__ __forceinline__ T* place() const {
    if (is_query || slot == NONE) return nullptr;
    const u32 kv_head = (head - a.heads) % a.kv_heads;
    return a.kv + slot / a.block_size * a.block_stride + (is_value ? a.v_offset : a.k_offset) +
           (static_cast<u64>(kv_head) * a.block_size + slot % a.block_size) * a.head_dim;
  }

  template <int N>
  __device__ __forceinline__ void write_value() const {
    u32 i = lane * N;
    Vector<float, N> next = {};
    if (i < a.head_dim) next = load_some<N>(x + i);
    T* to = place();
    if (to == nullptr) return;
#pragma unroll 1
    while (i < a.head_dim) {
      store_some(to + i, next);
      i += 32 * N;
      if (i < a.head_dim) next = load_some<N>(x + i);
    }
  }

  // What the head is scaled by before its weights are.
  __device__ __forceinline__ float norm() const {
    float squares = 0.0f;
    for (u32 i = lane; i < a.head_dim; i += 32) squares += x[i] * x[i];
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(a.head_dim) + a.eps);
    // Nobody may write before everybody has read.
    __syncwarp();
    return scale;
  }

  // N elements and what they are multiplied by.
  template <int N>
  struct Weighed {
    Vector<float, N> x, weight;

    __device__ __forceinline__ Vector<float, N> scaled(float scale) const {
      Vector<float, N> v;
#pragma unroll
      for (u32 j = 0; j < N; j++) v.at[j] = x.at[j] * scale * weight.at[j];
      return v;
    }
  };
  template <int N>
  __device__ __forceinline__ Weighed<N> take(const float* weight, u32 i) const {
    Weighed<N> taken = {load_some<N>(x + i), {}};
#pragma unroll
    for (u32 j = 0; j < N; j++) taken.weight.at[j] = 1.0f;
    if (weight != nullptr) taken.weight = load_some<N>(weight + i);
    return taken;
  }
  template <int N>
  __device__ __forceinline__ void put(T* to, u32 i, const Vector<float, N>& v) const {
    store_some(x + i, v);
    if (to != nullptr) store_some(to + i, v);
  }

  // Pairs on their way, with cosines and sines.
  template <int N>
  struct Pairs {
    Weighed<N> first, second;
    Vector<float, N> cosine, sine;
  };
  template <int N>
  __device__ __forceinline__ Pairs<N> take_pairs(const float* weight, u32 half, u32 i) const {
    const float* turn = a.rope + static_cast<u64>(a.positions[row]) * a.rotary_dim + i;
    return {take<N>(weight, i), take<N>(weight, i + half), load_some<N>(turn),
            load_some<N>(turn + half)};
  }
  template <int N>
  __device__ __forceinline__ void put_pairs(const Pairs<N>& pairs, float scale, T* to, u32 half,
                                            u32 i) const {
    const Vector<float, N> p = pairs.first.scaled(scale), q = pairs.second.scaled(scale);
    Vector<float, N> first, second;
#pragma unroll
    for (u32 j = 0; j < N; j++) {
      const float cosine = pairs.cosine.at[j], sine = pairs.sine.at[j];
      first.at[j] = p.at[j] * cosine - q.at[j] * sine;
      second.at[j] = q.at[j] * cosine + p.at[j] * sine;
    }
    put(to, i, first);
    put(to, i + half, second);
  }

  template <int N>
  __device__ __forceinline__ void rotate() const {
    const float* weight = is_query ? a.q_norm : a.k_norm;
    const u32 half = a.rope != nullptr ? a.rotary_dim / 2 : 0;
    u32 i = lane * N;
    Pairs<N> next = {};
    if (i < half) next = take_pairs<N>(weight, half, i);
    const float scale = weight != nullptr ? norm() : 1.0f;
    T* to = place();
#pragma unroll 1
    while (i < half) {
      put_pairs(next, scale, to, half, i);
      i += 32 * N;
      if (i < half) next = take_pairs<N>(weight, half, i);
    }
#pragma unroll 1
    for (i = 2 * half + lane * N; i < a.head_dim; i += 32 * N) {
      put(to, i, take<N>(weight, i).scaled(scale));
    }
  }

  __device__ __forceinline__ void run() const {
    if (is_value) {
      if (a.head_dim % 4 == 0) {
        write_value<4>();
      } else {
        write_value<1>();
      }
    } else if (a.head_dim % 2 == 0 && a.rotary_dim % 4 == 0) {
      rotate<2>();
    } else {
      rotate<1>();
    }
  }
};

template <class T>
__device__ __forceinline__ void rope_write_kv(const RopeWrite<T>& a) {
  if (blockIdx.x * 4 + threadIdx.x / 32 < a.heads + 2 * a.kv_heads) Head<T>(a).run();
}

extern "C" __global__ void __launch_bounds__(128, 10) rope_write_kv_f32(RopeWrite<f32> a) {
  ptx::take_turn();
  rope_write_kv(a);
}
extern "C" __global__ void __launch_bounds__(128, 10) rope_write_kv_bf16(RopeWrite<bf16> a) {
  ptx::take_turn();
  rope_write_kv(a);
}
