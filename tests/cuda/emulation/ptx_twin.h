// The twin of kernels/ptx.cuh: what each wrapper does, written out for the host. It takes that
// header's include guard, so that a kernel's own include of it brings nothing.
//
// These repeat their author's reading of the PTX manual: tests/gpu compares each with a GPU.
#define VRUST_PTX_CUH
#pragma once
#include "../../../kernels/types.cuh"
#include "device.h"
#include "hopper.h"

namespace ptx {

inline unsigned char* dynamic_shared() { return emu::fiber->block->shared; }

inline float to_f32(f16 x) {
  unsigned sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, part = x.bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | part << 13);
  if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | part << 13);
  float tiny = static_cast<float>(part) * 0x1p-24f;
  return sign ? -tiny : tiny;
}

inline bf16 to_bf16(float x) {
  u32 u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
  u += 0x7fffu + (u >> 16 & 1);
  return bf16{static_cast<u16>(u >> 16)};
}

// The first argument in the low half.
inline u32 pack_bf16(float low, float high) {
  return to_bf16(low).bits | u32{to_bf16(high).bits} << 16;
}

inline void check_aligned(const void* p, unsigned bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) emu::fail("%s: %p is not aligned", what, p);
}

// Kernels run one after the other here; one that would be let begin early must have waited.
inline void wait_for_previous() { emu::fiber->has_waited = true; }
inline void let_next_begin() {
  if (!emu::fiber->has_waited) emu::fail("lets the next kernel begin before it has waited");
}
inline void take_turn() {
  wait_for_previous();
  let_next_begin();
}

// Begun here, done when it is waited for; until then its destination holds NaNs.
inline void copy_async_16(void* shared, const void* global, u32 bytes = 16) {
  check_aligned(shared, 16, "cp.async");
  check_aligned(global, 16, "cp.async");
  std::memset(shared, 0xff, 16);
  emu::fiber->open.push_back({shared, global, 16, bytes});
}

inline void copy_async_commit() {
  emu::fiber->groups.push_back(std::move(emu::fiber->open));
  emu::fiber->open.clear();
}

template <int N>
inline void copy_async_wait() {
  auto& groups = emu::fiber->groups;
  while (groups.size() > N) {
    for (const auto& copy : groups.front()) {
      if (copy.read) std::memcpy(copy.to, copy.from, copy.read);
      std::memset(static_cast<char*>(copy.to) + copy.read, 0, copy.bytes - copy.read);
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(u32* r, const void* row, bool transposed) {
  check_aligned(row, 16, "ldmatrix");
  unsigned lane = emu::fiber->lane;
  auto rows = emu::exchange(~0u, row, "ldmatrix");
  for (unsigned m = 0; m < 4; m++) {
    for (unsigned half = 0; half < 2; half++) {
      unsigned i = lane / 4, j = lane % 4 * 2 + half;
      if (transposed) std::swap(i, j);
      u32 value = static_cast<const u16*>(emu::value_of<const void*>(rows, m * 8 + i))[j];
      r[m] = half ? r[m] | value << 16 : value;
    }
  }
  __syncwarp();
}

inline void load_matrix_x4(u32* r, const void* row) { load_matrices(r, row, false); }
inline void load_matrix_x4_transposed(u32* r, const void* row) { load_matrices(r, row, true); }

// c += A B: A 16x16 by rows, B 16x8 by columns.
inline void mma_16x8x16(float* c, const u32* a, const u32* b) {
  struct Fragments {
    u32 a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  auto all = emu::exchange(~0u, mine, "mma.m16n8k16");
  const Fragments* of = reinterpret_cast<const Fragments*>(all);
  auto low = [](u32 x) { return __uint_as_float(x << 16); };
  auto high = [](u32 x) { return __uint_as_float(x & 0xffff0000u); };
  unsigned lane = emu::fiber->lane, row = lane / 4;
  for (unsigned half = 0; half < 2; half++) {
    for (unsigned j = 0; j < 2; j++) {
      unsigned column = lane % 4 * 2 + j;
      float sum = 0;
      for (unsigned q = 0; q < 4; q++) {
        const u32* fa = of[row * 4 + q].a;
        const u32* fb = of[column * 4 + q].b;
        u32 a0 = fa[half], a1 = fa[2 + half], b0 = fb[0], b1 = fb[1];
        sum += low(a0) * low(b0) + high(a0) * high(b0) + low(a1) * low(b1) + high(a1) * high(b1);
      }
      c[half * 2 + j] += sum;
    }
  }
}

// 16 bytes that are read once.
inline uint4 load_streaming(const void* p) {
  check_aligned(p, 16, "ld.global.nc.v4");
  return *static_cast<const uint4*>(p);
}

// 2^x.
inline float exp2_fast(float x) { return std::exp2(x); }

inline void sync_some(u32 id, u32 threads) {
  if (id == 0 || threads % 32) emu::fail("bar.sync %u, %u", id, threads);
  emu::arrive_and_wait(id, threads, 0, "bar.sync");
}

// In bytes from the start of the block's dynamic shared memory.
inline u32 shared_address(const void* p) {
  return static_cast<u32>(static_cast<const unsigned char*>(p) - emu::fiber->block->shared);
}

inline void barrier_init(u64* barrier, u32 arrivals) {
  check_aligned(barrier, 8, "mbarrier.init");
  auto& barriers = emu::hopper().barriers;
  if (barriers.count(barrier)) emu::fail("an mbarrier is initialised twice");
  barriers[barrier].pending = barriers[barrier].count = arrivals;
}
inline void barrier_init_fence() {
  for (auto& [at, barrier] : emu::hopper().barriers) barrier.visible = true;
}
inline void barrier_arrive(u64* barrier) { emu::hopper().arrive(barrier); }
inline void barrier_expect(u64* barrier, u32 bytes) {
  emu::hopper().barrier(barrier).bytes += bytes;
  emu::hopper().arrive(barrier);
}
inline void barrier_wait(u64* barrier, u32 parity) {
  const emu::CopyBarrier& b = emu::hopper().barrier(barrier);
  if (b.phase % 2 == parity) emu::wait_on(b.phase, b.phase, "mbarrier");
}
inline void copy_box(void* shared, const TensorMap* map, u32 x, u32 y, u32 z, u64* barrier) {
  emu::hopper().begin_copy(shared, map, x, y, z, barrier);
}
inline void async_fence() { emu::hopper().fence(); }

// There are no registers to count here; the limits are the manual's.
template <int N>
inline void fewer_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}
template <int N>
inline void more_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}

template <int N>
inline void pin(float (&d)[N][4]) {
  if (emu::hopper().under_way(&d[0][0])) emu::fail("registers of a wgmma under way are used");
}
template <int N>
inline void pin(u32 (&)[N][4]) {}

inline void wgmma_fence() {
  emu::hopper().threads[emu::fiber->warp * 32 + emu::fiber->lane].fenced = true;
}
inline void wgmma_commit() { emu::hopper().commit(); }
template <int N, int T>
inline void wgmma_wait(float (&d)[T][4]) {
  emu::hopper().wait(N);
  pin(d);
}
template <int T>
inline void wgmma(float (&d)[T][4], u64 a, u64 b, u32 add) {
  emu::hopper().issue(&d[0][0], T * 8, nullptr, a, b, add != 0);
}
template <int T>
inline void wgmma_transposed(float (&d)[T][4], const u32 (&a)[4], u64 b) {
  emu::hopper().issue(&d[0][0], T * 8, a, 0, b, true);
}

}  // namespace ptx
