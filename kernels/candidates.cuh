// The tokens of a row that may still be chosen, by their logits: the largest, the k-th largest, and
// lists of those that are left.
//
// One block a row. Nothing is sorted: the k-th largest logit, or the one up to which weights reach
// a target, is found digit by digit. Once few tokens are left they move to shared memory.
#ifndef VRUST_CANDIDATES_CUH
#define VRUST_CANDIDATES_CUH
#include "args.cuh"
#include "histogram.cuh"
#include "row.cuh"

#define THREADS 1024
#define WARPS (THREADS / 32)
// Tokens that fit in shared memory.
#define MOST_KEPT 2048
// Groups of four logits that a thread reads at once.
#define LOADS 4

// A token in shared memory, by its logit or its scaled one.
struct Kept {
  float z;
  u32 token;
};

struct Shared {
  Kept kept[MOST_KEPT];  // or 2048 bins
  u32 few_bins[512];
  union {
    u64 words[WARPS];
    double scores[WARPS];
  };
  u32 tokens[WARPS];
  Found found;
  u32 count;
  u32 lead;
  u32 best;  // first token with the largest logit
  u32 unused[25];
};
static_assert(sizeof(Shared) == 18960, "as README.md says");

struct Candidates {
  Row<THREADS> row;
  u32 vocab;
  const SampleRow* how;  // set where a token is drawn
  Shared* s;
  float max, mine;    // the row's largest logit, and this thread's
  float floor_logit;  // no lower logit is left
  bool listed;        // what is asked about are tokens in `s->kept`
  bool whole;         // and those are all that are left

  __device__ __forceinline__ Candidates(const float* logits, u32 width)
      : row(logits, width),
        vocab(width),
        s(reinterpret_cast<Shared*>(ptx::dynamic_shared())),
        floor_logit(-infinity()),
        listed(false),
        whole(false) {}

  // The first of the largest logits; false if there is none that is finite, or a NaN.
  __device__ __forceinline__ bool find_best() {
    mine = -infinity();
    u32 at = NONE;
    const Token single = row.single();
    bool bad = single.x != single.x;
    row.each_in_groups<LOADS>([&](float x, u32 token) {
      bad |= x != x;
      if (x > mine) {
        mine = x;
        at = token;
      }
    });
    if (single.x > mine || (single.x == mine && single.id < at)) {
      mine = single.x;
      at = single.id;
    }
    // Greater logits, and of equals lower ids, make greater words.
    const u64 word = warp_max(static_cast<u64>(key_of(mine)) << 32 | ~at);
    if (threadIdx.x % 32 == 0) s->words[threadIdx.x / 32] = word;
    bad = __syncthreads_or(bad);
    const u64 first = warp_max(s->words[threadIdx.x % 32]);
    max = value_of(static_cast<u32>(first >> 32));
    if (threadIdx.x == 0) s->best = ~static_cast<u32>(first);
    __syncthreads();
    return !bad && max > -infinity() && max < infinity();
  }

  // Many bins, where the list of tokens would be, or few.
  __device__ __forceinline__ Bins bins() const {
    u32* words = reinterpret_cast<u32*>(s->kept);
    if (listed) return {s->few_bins, s->few_bins + 256, 8};
    return {words, words + MOST_KEPT, 11};
  }

  // Where the bins' masses reach the target. Two bins a thread.
  __device__ __forceinline__ void find(const Bins& bins) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, bin = 2 * threadIdx.x;
    u64 target = s->found.target, above = s->found.above, mass[2] = {0, 0};
    if (bin < bins.count()) {
      mass[0] = bins.mass(bin);
      mass[1] = bins.mass(bin + 1);
    }
    const u64 through = running_sum(mass[0] + mass[1]);
    if (lane == 31) s->words[warp] = through;
    __syncthreads();
    const u64 warps = running_sum(s->words[lane]);
    const u64 earlier = __shfl_sync(~0u, warps, warp == 0 ? 0 : warp - 1);
    if (target == 0) target = share_of(__shfl_sync(~0u, warps, 31));
    above += (warp == 0 ? 0 : earlier) + through - mass[0] - mass[1];
    for (u32 i = 0; i < 2; i++) {
      const u64 before = above;
      above += mass[i];
      if (before < target && target <= above) s->found = {target, before, mass[i], bin + i};
    }
    __syncthreads();
  }

  __device__ __forceinline__ u64 share_of(u64 total) const {
    const double share = static_cast<double>(how->top_p);
    const u64 target = static_cast<u64>(ceil(share * static_cast<double>(total)));
    return target > 1 ? target : 1;
  }

  // What the next levels look for; top_p of all masses if it is 0.
  __device__ __forceinline__ void aim(u64 target) {
    __syncthreads();
    if (threadIdx.x == 0) s->found = {target, 0, 0, 0};
  }

  // Sums masses by bin, and finds where they reach the target: the keys of that bin are what is
  // left of the digit. each(tally) adds every key of the digit.
  template <class E>
  __device__ __forceinline__ void level(Digit* digit, E each) {
    const Bins bins = this->bins();
    for (u32 i = threadIdx.x; i < bins.count(); i += THREADS) bins.low[i] = bins.high[i] = 0;
    __syncthreads();
    // Should the target be out of reach.
    if (threadIdx.x == 0) s->found.bin = bins.count() - 1;
    Tally tally{bins, *digit, 0, 0};
    each(tally);
    tally.flush();
    __syncthreads();
    find(bins);
    *digit = digit->inside(s->found.bin, bins.bits);
  }

  // The least key such that the masses of all keys up to it reach `target`.
  template <class E>
  __device__ __forceinline__ u32 crossing(u32 begin, u32 end, u64 target, E each) {
    Digit digit = Digit::over(begin, end, bins().bits);
    aim(target);
    bool last = false;
    while (!last) {
      last = digit.shift == 0;
      level(&digit, each);
    }
    return digit.begin;
  }

  // Lists the tokens for which wanted(x, token, &z) is true, with z, if they are few enough.
  template <class W>
  __device__ __forceinline__ bool list(W wanted) {
    __syncthreads();
    if (threadIdx.x == 0) s->count = 0;
    __syncthreads();
    const volatile u32* count = &s->count;
    row.each<LOADS>(
        [&](float x, u32 token) {
          float z = x;
          if (x < floor_logit || token >= vocab || !wanted(x, token, &z)) return;
          const u32 at = atomicAdd(&s->count, 1u);
          if (at < MOST_KEPT) s->kept[at] = {z, token};
        },
        [&] { return *count <= MOST_KEPT; });
    __syncthreads();
    return s->count <= MOST_KEPT;
  }

  // Lists the logits from `floor_logit` on.
  __device__ __forceinline__ void list_logits() {
    listed = whole = list([](float, u32, float*) { return true; });
  }

  // Calls f(x, token) for the logits that are asked about.
  template <class F>
  __device__ __forceinline__ void each_logit(F f) const {
    if (listed) {
      for (u32 i = threadIdx.x; i < s->count; i += THREADS) f(s->kept[i].z, s->kept[i].token);
    } else {
      row.each<LOADS>([&](float x, u32 token) {
        if (x >= floor_logit && token < vocab) f(x, token);
      });
    }
  }

  // The k-th largest of the logits that are asked about.
  __device__ __forceinline__ float largest(u32 k) {
    return value_of(~crossing(~key_of(max), ~key_of(floor_logit), k, [&](Tally& put) {
      each_logit([&](float x, u32) {
        if (put.digit.has(~key_of(x))) put.add(~key_of(x), 1);
      });
    }));
  }

  // Lists all logits from one on that is not above the k-th largest: the k-th largest of the
  // threads' own largest. Few others are as large.
  __device__ __forceinline__ void list_largest(u32 k) {
    if (k > THREADS) return;
    const u32 key = crossing(~key_of(max), ~key_of(-infinity()), k, [&](Tally& put) {
      if (put.digit.has(~key_of(mine))) put.add(~key_of(mine), 1);
    });
    floor_logit = value_of(~key);
    list_logits();
  }

  // Lists the n largest logits, of equals the lowest ids, and perhaps some more; how many.
  __device__ __forceinline__ u32 list_top(u32 n) {
    list_largest(n);
    if (!listed) {
      const float edge = largest(n);
      const u32 last = id_of(n - s->found.above, [&](float x) { return x == edge; });
      list([&](float x, u32 token, float*) { return x > edge || (x == edge && token <= last); });
    }
    return min(s->count, static_cast<u32>(MOST_KEPT));
  }

  // The highest id of the first `count` logits, in the order of ids, for which is(x).
  template <class I>
  __device__ __forceinline__ u32 id_of(u64 count, I is) {
    return crossing(0, vocab - 1, count, [&](Tally& put) {
      each_logit([&](float x, u32 token) {
        if (is(x) && put.digit.has(token)) put.add(token, 1);
      });
    });
  }
};

#endif
