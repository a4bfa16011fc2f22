// A row of logits, as a block reads it.
#ifndef VRUST_ROW_CUH
#define VRUST_ROW_CUH
#include "reduce.cuh"

struct Token {
  float x;
  u32 id;
};

// Calls f(x, id) for four neighbours.
template <class F>
__device__ __forceinline__ void each_of(const float4& x, u32 id, F f) {
  f(x.x, id);
  f(x.y, id + 1);
  f(x.z, id + 2);
  f(x.w, id + 3);
}

// One row of logits, for a block of T threads. Most of it is read in groups of four that memory has
// aligned; up to three tokens before those and as many behind go to a thread each.
template <u32 T>
struct Row {
  const float* logits;
  u32 vocab, head, grouped;  // tokens before the groups, and in them

  __device__ __forceinline__ Row(const float* all, u32 width)
      : logits(all + static_cast<u64>(blockIdx.x) * width), vocab(width) {
    const u32 skew = static_cast<u32>(reinterpret_cast<u64>(logits) / 4 % 4);
    head = min((4 - skew) % 4, vocab);
    grouped = (vocab - head) & ~3u;
  }

  // This thread's token outside of the groups; not below `vocab` if it has none.
  __device__ __forceinline__ u32 single_id() const {
    return threadIdx.x < head ? threadIdx.x : threadIdx.x + grouped;
  }
  // The same with its logit; -infinity and NONE if there is none.
  __device__ __forceinline__ Token single() const {
    const u32 id = single_id();
    return id < vocab ? Token{logits[id], id} : Token{-infinity(), NONE};
  }

  // Calls f(x, first) with L groups at once: x[j] are the tokens from first + 4 T j on, or
  // -infinity behind the last group. Ends early where `more` says so.
  template <u32 L, class F, class M>
  __device__ __forceinline__ void groups(F f, M more) const {
    const u32 end = head + grouped;
    for (u32 first = head + 4 * threadIdx.x; first < end && more(); first += 4 * T * L) {
      const float* from = logits + first;
      float4 x[L];
#pragma unroll
      for (u32 j = 0; j < L; j++) {
        x[j] = make_float4(-infinity(), -infinity(), -infinity(), -infinity());
        if (first + 4 * T * j < end) x[j] = load4(from + 4 * T * j);
      }
      f(x, first);
    }
  }
  template <u32 L, class F>
  __device__ __forceinline__ void groups(F f) const {
    groups<L>(f, [] { return true; });
  }

  // Calls f(x, id) for the tokens in groups, in the order of ids; and for some that are -infinity
  // and no tokens of the row, as their ids say.
  template <u32 L, class F, class M>
  __device__ __forceinline__ void each_in_groups(F f, M more) const {
    groups<L>(
        [&](const float4(&x)[L], u32 first) {
#pragma unroll
          for (u32 j = 0; j < L; j++) {
            const u32 at = first + 4 * T * j;
            each_of(x[j], at < head + grouped ? at : NONE - 3, f);
          }
        },
        more);
  }
  template <u32 L, class F>
  __device__ __forceinline__ void each_in_groups(F f) const {
    each_in_groups<L>(f, [] { return true; });
  }

  // The same for all tokens.
  template <u32 L, class F, class M>
  __device__ __forceinline__ void each(F f, M more) const {
    const Token token = single();
    f(token.x, token.id);
    each_in_groups<L>(f, more);
  }
  template <u32 L, class F>
  __device__ __forceinline__ void each(F f) const {
    each<L>(f, [] { return true; });
  }
};

#endif
