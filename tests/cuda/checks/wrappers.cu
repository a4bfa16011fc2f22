// One kernel for each wrapper of ptx.cuh, so that a device's instructions and their twins on the
// host can be held to the same results. One warp each.
#include "reduce.cuh"

extern "C" __global__ void wrap_convert(bf16* rounded, u32* packed, float* widened, const float* x,
                                        const f16* halves, u32 n) {
  for (u32 i = threadIdx.x; i < n; i += 32) {
    rounded[i] = ptx::to_bf16(x[i]);
    packed[i] = ptx::pack_bf16(x[i], x[(i + 1) % n]);
    widened[i] = ptx::to_f32(halves[i]);
  }
}

// 32 rows of 8 through shared memory as four matrices, plain and transposed.
extern "C" __global__ void wrap_matrices(u32* plain, u32* transposed, const u16* rows) {
  u16* shared = reinterpret_cast<u16*>(ptx::dynamic_shared());
  ptx::copy_async_16(shared + threadIdx.x * 8, rows + threadIdx.x * 8);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncwarp();
  ptx::load_matrix_x4(plain + threadIdx.x * 4, shared + threadIdx.x * 8);
  ptx::load_matrix_x4_transposed(transposed + threadIdx.x * 4, shared + threadIdx.x * 8);
}

extern "C" __global__ void wrap_mma(float* c, const u32* a, const u32* b) {
  ptx::mma_16x8x16(c + threadIdx.x * 4, a + threadIdx.x * 4, b + threadIdx.x * 2);
}

// Copies of fewer bytes leave zeros; two groups, waited for one by one.
extern "C" __global__ void wrap_copies(u32* out, const uint4* x) {
  uint4* shared = reinterpret_cast<uint4*>(ptx::dynamic_shared());
  const u32 t = threadIdx.x;
  ptx::copy_async_16(shared + t, x + t, t % 17);
  ptx::copy_async_commit();
  ptx::copy_async_16(shared + 32 + t, x + 32 + t);
  ptx::copy_async_commit();
  ptx::copy_async_wait<1>();
  const uint4 first = shared[t];
  ptx::copy_async_wait<0>();
  const uint4 second = shared[32 + t], third = ptx::load_streaming(x + t);
  out[t] = first.x ^ first.y ^ first.z ^ first.w;
  out[32 + t] = second.x ^ second.y ^ second.z ^ second.w;
  out[64 + t] = third.x ^ third.y ^ third.z ^ third.w;
}

extern "C" __global__ void wrap_exp2(float* out, const float* x, u32 n) {
  for (u32 i = threadIdx.x; i < n; i += 32) out[i] = ptx::exp2_fast(x[i]);
}
