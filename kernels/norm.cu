// RMS norm and layer norm: one block of 256 threads a row, which is read from memory once and from
// the caches again.
#include "reduce.cuh"

template <class O>
__device__ __forceinline__ void rms_norm(O* out, const float* x, const float* weight, u32 width,
                                         float eps) {
  __shared__ float scratch[8];
  const float* row = x + static_cast<u64>(blockIdx.x) * width;
  O* to = out + static_cast<u64>(blockIdx.x) * width;
  float squares = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += row[i] * row[i];
  const float mean = block_sum(squares, scratch) / static_cast<float>(width);
  const float scale = 1.0f / sqrtf(mean + eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) store(to + i, row[i] * scale * weight[i]);
}

template <class O>
__device__ __forceinline__ void layer_norm(O* out, const float* x, const float* weight,
                                           const float* bias, u32 width, float eps) {
  __shared__ float sums[8], squares[8];
  const float* row = x + static_cast<u64>(blockIdx.x) * width;
  O* to = out + static_cast<u64>(blockIdx.x) * width;
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += row[i];
  const float mean = block_sum(sum, sums) / static_cast<float>(width);
  float square = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
    const float d = row[i] - mean;
    square += d * d;
  }
  const float variance = block_sum(square, squares) / static_cast<float>(width);
  const float scale = 1.0f / sqrtf(variance + eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
    store(to + i, (row[i] - mean) * scale * weight[i] + bias[i]);
  }
}

#define INSTANCES(O)                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                         \
      rms_norm_##O(O* out, const float* x, const float* weight, u32 width, float eps) {     \
    rms_norm(out, x, weight, width, eps);                                                   \
  }                                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                         \
      layer_norm_##O(O* out, const float* x, const float* weight, const float* bias,        \
                     u32 width, float eps) {                                                \
    layer_norm(out, x, weight, bias, width, eps);                                           \
  }
INSTANCES(f32)
INSTANCES(bf16)
