// RMS norm and layer norm: one block of 256 threads a row. The first 4096 elements of a row stay in
// registers; what is behind them is read again. Weights and biases are asked for before the kernel
// that makes the row has ended, so that nothing is waited for after the row's sums.
#include "reduce.cuh"

#define KEPT 4

// A row in pieces of four elements, `KEPT` of which each thread holds. A row whose width is no
// multiple of four has pieces of one.
struct Row {
  const float* x;
  u32 width;
  bool fours;
  float4 kept[KEPT];

  __device__ __forceinline__ Row(const float* from, u32 n) : x(from), width(n), fours(n % 4 == 0) {
#pragma unroll
    for (u32 j = 0; j < KEPT; j++) {
      const u32 i = (j * 256 + threadIdx.x) * 4;
      if (fours && i < width) kept[j] = load4(x + i);
    }
  }

  // Calls f(value) for each of this thread's elements.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    if (!fours) {
      for (u32 i = threadIdx.x; i < width; i += 256) f(x[i]);
      return;
    }
    auto all = [&](const float4& v) {
      f(v.x);
      f(v.y);
      f(v.z);
      f(v.w);
    };
#pragma unroll
    for (u32 j = 0; j < KEPT; j++) {
      if ((j * 256 + threadIdx.x) * 4 < width) all(kept[j]);
    }
    for (u32 i = (KEPT * 256 + threadIdx.x) * 4; i < width; i += 1024) all(load4(x + i));
  }

  // out[i] = f(value, values of other rows) for each of this thread's elements.
  template <class O, class F, class... Rows>
  __device__ __forceinline__ void put(O* out, F f, const Rows&... rows) const {
    if (!fours) {
      for (u32 i = threadIdx.x; i < width; i += 256) store(out + i, f(x[i], rows.x[i]...));
      return;
    }
#pragma unroll
    for (u32 j = 0; j < KEPT; j++) {
      const u32 i = (j * 256 + threadIdx.x) * 4;
      if (i < width) store4(out + i, four(f, kept[j], rows.kept[j]...));
    }
    for (u32 i = (KEPT * 256 + threadIdx.x) * 4; i < width; i += 1024) {
      store4(out + i, four(f, load4(x + i), load4(rows.x + i)...));
    }
  }

  template <class F, class... Fours>
  static __device__ __forceinline__ float4 four(F f, const Fours&... v) {
    return make_float4(f(v.x...), f(v.y...), f(v.z...), f(v.w...));
  }
};

template <class O>
__device__ __forceinline__ void rms_norm(O* out, const float* x, const float* weight, u32 width,
                                         float eps) {
  __shared__ float scratch[8];
  const Row weights(weight, width);
  ptx::take_turn();
  const Row row(x + static_cast<u64>(blockIdx.x) * width, width);
  float squares = 0.0f;
  row.each([&](float v) { squares += v * v; });
  const float mean = block_sum(squares, scratch) / static_cast<float>(width);
  const float scale = rsqrtf(mean + eps);
  row.put(out + static_cast<u64>(blockIdx.x) * width,
          [&](float v, float w) { return v * scale * w; }, weights);
}

template <class O>
__device__ __forceinline__ void layer_norm(O* out, const float* x, const float* weight,
                                           const float* bias, u32 width, float eps) {
  __shared__ float sums[8], squares[8];
  const Row weights(weight, width), biases(bias, width);
  ptx::take_turn();
  const Row row(x + static_cast<u64>(blockIdx.x) * width, width);
  float sum = 0.0f;
  row.each([&](float v) { sum += v; });
  const float mean = block_sum(sum, sums) / static_cast<float>(width);
  float square = 0.0f;
  row.each([&](float v) { square += (v - mean) * (v - mean); });
  const float variance = block_sum(square, squares) / static_cast<float>(width);
  const float scale = rsqrtf(variance + eps);
  row.put(out + static_cast<u64>(blockIdx.x) * width,
          [&](float v, float w, float b) { return (v - mean) * scale * w + b; }, weights, biases);
}

#define INSTANCES(O)                                                                        \
  extern "C" __global__ void __launch_bounds__(256, 4)                                      \
      rms_norm_##O(O* out, const float* x, const float* weight, u32 width, float eps) {     \
    rms_norm(out, x, weight, width, eps);                                                   \
  }                                                                                         \
  extern "C" __global__ void __launch_bounds__(256, 2)                                      \
      layer_norm_##O(O* out, const float* x, const float* weight, const float* bias,        \
                     u32 width, float eps) {                                                \
    layer_norm(out, x, weight, bias, width, eps);                                           \
  }
INSTANCES(f32)
INSTANCES(bf16)
