// What is done to each element or row alone: embeddings, activations, biases, conversions, gathers.
//
// One block of 256 threads a row, or a piece of 1024 elements of one, of which a thread takes
// four in one access where they lie aligned.
#include "reduce.cuh"

enum Kind { kSilu = 0, kGeluTanh = 1, kGelu = 2, kRelu = 3 };

__device__ __forceinline__ float activation(u32 kind, float x) {
  switch (kind) {
    case kSilu:
      return x / (1.0f + expf(-x));
    case kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
    default:
      return fmaxf(x, 0.0f);
  }
}

// out[i] = f(x[i]) for this thread's four of `count` elements.
template <class O, class F>
__device__ __forceinline__ void map_four(O* out, const float* x, u64 count, F f) {
  const u64 start = static_cast<u64>(blockIdx.x) * 1024 + threadIdx.x * 4;
  if (start + 4 <= count) {
    const float4 v = load4(x + start);
    store4(out + start, make_float4(f(v.x), f(v.y), f(v.z), f(v.w)));
    return;
  }
  for (u64 i = start; i < count; i++) store(out + i, f(x[i]));
}

// Copies a row or adds it to another, N neighbours at a time; a row at null is zeros. A thread
// asks for four times N before it waits for the first: a row is a wait for memory, little else.
template <int N, bool kAdd, class T, class O>
__device__ __forceinline__ void copy_row_by(O* to, const T* from, u32 width) {
  constexpr u32 kStep = 256 * N;
  for (u32 first = threadIdx.x * N; first < width; first += 4 * kStep) {
    Vector<float, N> x[4] = {}, old[4] = {};
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      const u32 i = first + j * kStep;
      if (i >= width) continue;
      if (from != nullptr) x[j] = load_some<N>(from + i);
      if (kAdd) old[j] = load_some<N>(to + i);
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      const u32 i = first + j * kStep;
      if (i >= width) continue;
#pragma unroll
      for (u32 k = 0; kAdd && k < N; k++) x[j].at[k] += old[j].at[k];
      store_some(to + i, x[j]);
    }
  }
}

// Rows of odd widths do not lie aligned.
template <bool kAdd, class T, class O>
__device__ __forceinline__ void copy_row(O* to, const T* from, u32 width) {
  if (width % 4 == 0) {
    copy_row_by<4, kAdd>(to, from, width);
  } else {
    copy_row_by<1, kAdd>(to, from, width);
  }
}

template <class T>
__device__ __forceinline__ void embed(float* out, const T* table, const u32* ids, u32 width,
                                      u32 table_rows) {
  const u32 id = ids[blockIdx.x];
  const T* from = id < table_rows ? table + static_cast<u64>(id) * width : nullptr;
  copy_row<false>(out + static_cast<u64>(blockIdx.x) * width, from, width);
}

template <class T>
__device__ __forceinline__ void add_position(float* x, const T* table, const u32* positions,
                                             u32 width, u32 table_rows) {
  const u32 position = positions[blockIdx.x];
  if (position >= table_rows) return;
  copy_row<true>(x + static_cast<u64>(blockIdx.x) * width,
                 table + static_cast<u64>(position) * width, width);
}

#define INSTANCES(T)                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                         \
      embed_##T(float* out, const T* table, const u32* ids, u32 width, u32 table_rows) {    \
    ptx::take_turn();                                                                       \
    embed(out, table, ids, width, table_rows);                                              \
  }                                                                                         \
  extern "C" __global__ void __launch_bounds__(256) add_position_##T(                       \
      float* x, const T* table, const u32* positions, u32 width, u32 table_rows) {          \
    ptx::take_turn();                                                                       \
    add_position(x, table, positions, width, table_rows);                                   \
  }
INSTANCES(f32)
INSTANCES(bf16)
INSTANCES(f16)
#undef INSTANCES

template <class O>
__device__ __forceinline__ void activate(O* out, const float* x, u64 count, u32 kind) {
  map_four(out, x, count, [=](float v) { return activation(kind, v); });
}

template <class O>
__device__ __forceinline__ void gated_activation(O* out, const float* gate_up, u32 width,
                                                 u32 kind) {
  const float* gate = gate_up + static_cast<u64>(blockIdx.y) * 2 * width;
  O* to = out + static_cast<u64>(blockIdx.y) * width;
  const float* up = gate + width;
  const u32 start = blockIdx.x * 1024 + threadIdx.x * 4;
  if (width % 4 == 0) {
    if (start >= width) return;
    const float4 g = load4(gate + start), u = load4(up + start);
    store4(to + start,
           make_float4(activation(kind, g.x) * u.x, activation(kind, g.y) * u.y,
                       activation(kind, g.z) * u.z, activation(kind, g.w) * u.w));
    return;
  }
  for (u32 i = start; i < min(start + 4, width); i++) {
    store(to + i, activation(kind, gate[i]) * up[i]);
  }
}

#define INSTANCES(O)                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                         \
      activate_##O(O* out, const float* x, u64 count, u32 kind) {                           \
    ptx::take_turn();                                                                       \
    activate(out, x, count, kind);                                                          \
  }                                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                         \
      gated_activation_##O(O* out, const float* gate_up, u32 width, u32 kind) {             \
    ptx::take_turn();                                                                       \
    gated_activation(out, gate_up, width, kind);                                            \
  }
INSTANCES(f32)
INSTANCES(bf16)
#undef INSTANCES

extern "C" __global__ void __launch_bounds__(256)
    add_bias(float* y, const float* bias, u32 width) {
  ptx::take_turn();
  float* to = y + static_cast<u64>(blockIdx.y) * width;
  for (u32 j = 0; j < 4; j++) {
    const u32 i = blockIdx.x * 1024 + j * 256 + threadIdx.x;
    if (i < width) to[i] += bias[i];
  }
}

extern "C" __global__ void __launch_bounds__(256)
    convert_bf16(bf16* out, const float* x, u64 count) {
  ptx::take_turn();
  map_four(out, x, count, [](float v) { return v; });
}

template <class T, class O>
__device__ __forceinline__ void gather_rows(O* out, const T* x, const u32* rows, u32 width) {
  copy_row<false>(out + static_cast<u64>(blockIdx.x) * width,
                  x + static_cast<u64>(rows[blockIdx.x]) * width, width);
}

#define INSTANCE(T, O)                                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                         \
      gather_rows_##T##_##O(O* out, const T* x, const u32* rows, u32 width) {               \
    ptx::take_turn();                                                                       \
    gather_rows(out, x, rows, width);                                                       \
  }
INSTANCE(f32, f32)
INSTANCE(f32, bf16)
INSTANCE(bf16, bf16)
#undef INSTANCE
