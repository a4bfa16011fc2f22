// Choosing tokens at random, as src/sampling does: masks, biases and penalties, then temperature,
// min_p, top_k and top_p, then Gumbel-max with noise that follows from (seed, position, token).
//
// One block a row. Nothing is sorted: the k-th largest logit, and the value where the largest
// weights reach top_p, are found digit by digit, by histograms over the digits of an
// order-preserving key. Weights are added as integers, so that the order in which threads come
// does not matter. Once few tokens are left they move to shared memory.
#include "args.cuh"
#include "reduce.cuh"

#define THREADS 1024
#define WARPS (THREADS / 32)
// Tokens that fit in shared memory.
#define MOST_KEPT 2048
// A weight of 1.
#define ONE 4398046511104.0f
#define BIGGEST 3.402823466e+38f

// ---- noise, bit for bit as in src/sampling/noise.rs ----

#define NOISE_STEP 0x9e3779b97f4a7c15ull

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

// Only below this many bits can a token of scaled logit 0 or less reach the score `best`.
__device__ __forceinline__ u64 winning_bits(double best) {
  const float lead = static_cast<float>(best > 0.0 ? -best : 0.0);
  const double v = static_cast<double>(fast_exp(lead) * 1.0001f);
  return static_cast<u64>(fmin(v * 0x1p52 + 0.5, 0x1p52));
}

// ---- keys ----

// Greater floats have greater keys, and equal ones equal keys.
__device__ __forceinline__ u32 key_of(float x) {
  const u32 u = __float_as_uint(x + 0.0f);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float value_of(u32 key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

struct Kept {
  float z;
  u32 token;
};

struct Shared {
  u64 mass[256];
  Kept kept[MOST_KEPT];
  u64 target;
  double scores[WARPS];
  float values[WARPS];
  u32 tokens[WARPS];
  u32 digit, count;
};
static_assert(sizeof(Shared) == 18960, "as README.md says");

// Adds masses by the next digit of keys that begin with `prefix`.
struct Tally {
  u64* masses;
  u32 prefix;
  int shift;

  __device__ __forceinline__ void operator()(u32 key, u64 mass) const {
    if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&masses[key >> shift & 255], mass);
  }
};

struct Sampler {
  const float* row;
  u32 vocab;
  SampleRow how;
  Shared* s;
  float max, floor_logit, floor_z;
  u32 best;          // first token with the largest logit
  bool in_shared;    // the tokens that are left are `s->kept`
  u32 kept;

  __device__ __forceinline__ float scaled(float x) const { return (x - max) / how.temperature; }

  // Calls f(z, token) for every token that is left.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    if (in_shared) {
      for (u32 i = threadIdx.x; i < kept; i += THREADS) f(s->kept[i].z, s->kept[i].token);
      return;
    }
#pragma unroll 4
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) {
      const float x = row[i];
      if (x < floor_logit) continue;
      const float z = scaled(x);
      if (z >= floor_z) f(z, i);
    }
  }

  // The first of the largest logits; false if there is none that is finite, or a NaN.
  __device__ __forceinline__ bool find_best() {
    float value = -infinity();
    u32 at = NONE;
    bool bad = false;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) {
      const float x = row[i];
      bad |= x != x;
      if (x > value) {
        value = x;
        at = i;
      }
    }
    bad = __syncthreads_or(bad);
    auto take = [&](float x, u32 i) {
      if (x > value || (x == value && i < at)) {
        value = x;
        at = i;
      }
    };
    for (int d = 16; d != 0; d /= 2) {
      const float x = __shfl_xor_sync(~0u, value, d);
      const u32 i = __shfl_xor_sync(~0u, at, d);
      take(x, i);
    }
    if (threadIdx.x % 32 == 0) {
      s->values[threadIdx.x / 32] = value;
      s->tokens[threadIdx.x / 32] = at;
    }
    __syncthreads();
    for (u32 w = 0; w < WARPS; w++) take(s->values[w], s->tokens[w]);
    max = value;
    best = at;
    return !bad && at != NONE && value != infinity();
  }

  // The greatest key such that the masses of all keys at or above it reach `target`. `mass` gives a
  // token's key and mass. `above` becomes the mass of greater keys.
  template <class M>
  __device__ __forceinline__ u32 crossing(u64 target, u64* above, M mass) {
    u32 prefix = 0;
    u64 before = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (u32 i = threadIdx.x; i < 256; i += THREADS) s->mass[i] = 0;
      __syncthreads();
      mass(Tally{s->mass, prefix, shift});
      __syncthreads();
      if (threadIdx.x == 0) {
        u32 digit = 255;
        u64 sum = before;
        while (digit != 0 && sum + s->mass[digit] < target) sum += s->mass[digit--];
        s->digit = digit;
        s->target = sum;
      }
      __syncthreads();
      prefix = prefix << 8 | s->digit;
      before = s->target;
      __syncthreads();
    }
    *above = before;
    return prefix;
  }

  // Moves the tokens that are left to shared memory, if they fit there.
  __device__ __forceinline__ void gather() {
    if (threadIdx.x == 0) s->count = 0;
    __syncthreads();
    each([&](float z, u32 token) {
      const u32 at = atomicAdd(&s->count, 1u);
      if (at < MOST_KEPT) s->kept[at] = {z, token};
    });
    __syncthreads();
    kept = s->count;
    in_shared = kept <= MOST_KEPT;
    __syncthreads();
  }

  __device__ __forceinline__ u64 total() {
    if (threadIdx.x == 0) s->target = 0;
    __syncthreads();
    u64 mine = 0;
    each([&](float z, u32) { mine += weight(z); });
    atomicAdd(&s->target, mine);
    __syncthreads();
    const u64 sum = s->target;
    __syncthreads();
    return sum;
  }

  __device__ __forceinline__ static u64 weight(float z) {
    return static_cast<u64>(fast_exp(z) * ONE);
  }

  // Keeps the most likely tokens until their weights reach top_p; of equals the lowest ids. Returns
  // the highest id that stays among those with z = floor_z.
  __device__ __forceinline__ u32 keep_top_p() {
    const double share = static_cast<double>(how.top_p);
    const u64 target = max_u64(static_cast<u64>(ceil(share * static_cast<double>(total()))), 1);
    u64 above = 0;
    const u32 key = crossing(target, &above, [&](const Tally& put) {
      each([&](float z, u32) { put(key_of(z), weight(z)); });
    });
    const float edge = value_of(key);
    floor_z = fmaxf(floor_z, edge);
    // How many of the equals at the edge it takes; each has the same weight.
    const u64 one = weight(edge), missing = target > above ? target - above : 0;
    const u64 wanted = one == 0 ? 1 : max_u64((missing + one - 1) / one, above == 0 ? 1 : 0);
    // The id of the last of them: again digit by digit, lowest ids first.
    u64 lower = 0;
    const u32 last = crossing(wanted, &lower, [&](const Tally& put) {
      each([&](float z, u32 token) {
        if (z == edge) put(~token, 1);
      });
    });
    return ~last;
  }

  __device__ __forceinline__ static u64 max_u64(u64 a, u64 b) { return a > b ? a : b; }

  // Of the tokens that are left the one with the largest noisy logit; of equals the lowest id.
  __device__ __forceinline__ u32 choose(float edge, u32 last_of_edge) {
    const u64 key = noise_key(how.seed, how.position);
    double score = noisy(0.0f, noise_bits(key, best));
    u32 chosen = best;
    u64 bound = winning_bits(score);
    auto take = [&](double x, u32 token) {
      if (x > score || (x == score && token < chosen)) {
        score = x;
        chosen = token;
      }
    };
    each([&](float z, u32 token) {
      if (z < edge || (z == edge && token > last_of_edge)) return;
      const u64 bits = noise_bits(key, token);
      if (bits >= bound) return;
      take(noisy(z, bits), token);
      bound = winning_bits(score);
    });
    for (int d = 16; d != 0; d /= 2) {
      const double x = __shfl_xor_sync(~0u, score, d);
      const u32 token = __shfl_xor_sync(~0u, chosen, d);
      take(x, token);
    }
    if (threadIdx.x % 32 == 0) {
      s->scores[threadIdx.x / 32] = score;
      s->tokens[threadIdx.x / 32] = chosen;
    }
    __syncthreads();
    for (u32 w = 0; w < WARPS; w++) take(s->scores[w], s->tokens[w]);
    return chosen;
  }

  __device__ __forceinline__ u32 run() {
    if (!find_best()) return NONE;
    if (how.temperature == 0.0f) return best;
    __syncthreads();
    floor_logit = -infinity();
    floor_z = -infinity();
    in_shared = false;
    u32 last = NONE;
    const bool all = how.top_k == 0 && how.top_p >= 1.0f && how.ln_min_p == -infinity();
    if (!all) {
      if (how.top_k != 0 && how.top_k < vocab) {
        u64 above = 0;
        floor_logit = value_of(crossing(how.top_k, &above, [&](const Tally& put) {
          for (u32 i = threadIdx.x; i < vocab; i += THREADS) put(key_of(row[i]), 1);
        }));
      }
      floor_z = fmaxf(how.ln_min_p, -BIGGEST);
      gather();
      if (how.top_p < 1.0f) last = keep_top_p();
    }
    return choose(floor_z, last);
  }
};

// Tokens of rows; NONE where a row has a NaN, +infinity, or nothing but -infinity.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample(u32* token, const float* logits, const SampleRow* rows, u32 vocab) {
  Sampler sampler;
  sampler.row = logits + static_cast<u64>(blockIdx.x) * vocab;
  sampler.vocab = vocab;
  sampler.how = rows[blockIdx.x];
  sampler.s = reinterpret_cast<Shared*>(ptx::dynamic_shared());
  const u32 chosen = sampler.run();
  if (threadIdx.x == 0) token[blockIdx.x] = chosen;
}

// out = logits, with each row's mask, edits and penalties applied. The tokens of a row's edits are
// distinct, and those of its seen ones.
extern "C" __global__ void __launch_bounds__(256)
    edit_logits(float* out, const float* logits, const SampleRow* rows, const Edit* edits,
                const Seen* seen, const u32* masks, u32 vocab) {
  const SampleRow how = rows[blockIdx.x];
  const float* from = logits + static_cast<u64>(blockIdx.x) * vocab;
  float* to = out + static_cast<u64>(blockIdx.x) * vocab;
  const u32* mask =
      how.allowed != NONE ? masks + static_cast<u64>(how.allowed) * ((vocab + 31) / 32) : nullptr;
  for (u32 i = threadIdx.x; i < vocab; i += 256) {
    const bool may = mask == nullptr || (mask[i / 32] >> i % 32 & 1);
    to[i] = may ? from[i] : -infinity();
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < how.num_edits; i += 256) {
    const Edit edit = edits[how.edits + i];
    if (edit.token < vocab) to[edit.token] = fminf(to[edit.token] + edit.add, BIGGEST);
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < how.num_seen; i += 256) {
    const Seen token = seen[how.seen + i];
    if (token.token >= vocab) continue;
    const float x = to[token.token];
    // Rounded after each step, as on the host.
    const float repeated = x > 0.0f ? x / how.repetition : x * how.repetition;
    const float frequent =
        __fadd_rn(repeated, -__fmul_rn(how.frequency, static_cast<float>(token.count)));
    const float present = frequent - (token.count != 0 ? how.presence : 0.0f);
    to[token.token] = fminf(present, BIGGEST);
  }
}

struct RowScale {
  float max;
  u32 unused;
  double sum;
};

// Each row's largest logit, and the sum of exp(logit - largest) in the order of src/sampling: in a
// run of 512 logits 8 sums of every eighth in f32, then everything in f64. NaN as the largest
// where a row has a NaN, +infinity or nothing but -infinity.
extern "C" __global__ void __launch_bounds__(THREADS)
    row_scale(RowScale* out, const float* logits, u32 vocab) {
  Sampler sampler;
  const float* row = sampler.row = logits + static_cast<u64>(blockIdx.x) * vocab;
  sampler.vocab = vocab;
  Shared* s = sampler.s = reinterpret_cast<Shared*>(ptx::dynamic_shared());
  if (!sampler.find_best()) {
    if (threadIdx.x == 0) out[blockIdx.x] = {__uint_as_float(0x7fc00000u), 0, 0.0};
    return;
  }
  double* runs = reinterpret_cast<double*>(s->mass);
  double total = 0.0;
  for (u32 base = 0; base < vocab; base += 64 * THREADS) {
    const u32 first = base + threadIdx.x / 8 * 512;
    float sum = 0.0f;
    for (u32 i = threadIdx.x % 8; i < 512 && first + i < vocab; i += 8) {
      sum = __fadd_rn(sum, fast_exp(row[first + i] - sampler.max));
    }
    double all = 0.0;
    for (u32 lane = 0; lane < 8; lane++) {
      all += static_cast<double>(__shfl_sync(~0u, sum, threadIdx.x % 32 / 8 * 8 + lane));
    }
    __syncthreads();
    if (threadIdx.x % 8 == 0) runs[threadIdx.x / 8] = all;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (u32 i = 0; i < THREADS / 8 && base + 512 * i < vocab; i++) total += runs[i];
    }
  }
  if (threadIdx.x == 0) out[blockIdx.x] = {sampler.max, 0, total};
}

// to[places[2 i]] = from[places[2 i + 1]].
extern "C" __global__ void __launch_bounds__(256)
    take_tokens(u32* to, const u32* from, const u32* places, u32 count) {
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i < count) to[places[2 * i]] = from[places[2 * i + 1]];
}

// The logprob of each row's token, and how many tokens are more likely, plus 1.
extern "C" __global__ void __launch_bounds__(THREADS)
    token_logprobs(float* logprob, u32* rank, const float* logits, const u32* tokens,
                   const float* logsumexp, u32 vocab) {
  __shared__ u32 counts[WARPS];
  const float* row = logits + static_cast<u64>(blockIdx.x) * vocab;
  const u32 token = tokens[blockIdx.x];
  const float x = token < vocab ? row[token] : -infinity();
  u32 greater = 0;
  for (u32 i = threadIdx.x; i < vocab; i += THREADS) greater += row[i] > x;
  for (int d = 16; d != 0; d /= 2) greater += __shfl_xor_sync(~0u, greater, d);
  if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = greater;
  __syncthreads();
  if (threadIdx.x != 0) return;
  u32 sum = 0;
  for (u32 w = 0; w < WARPS; w++) sum += counts[w];
  logprob[blockIdx.x] = x - logsumexp[blockIdx.x];
  rank[blockIdx.x] = sum + 1;
}

// The n most likely tokens of each row, best first, of equals the lowest id first; n <= 1024 and
// n <= vocab.
extern "C" __global__ void __launch_bounds__(THREADS)
    top_logprobs(u32* tokens, float* logprobs, const float* logits, const float* logsumexp, u32 n,
                 u32 vocab) {
  __shared__ u32 counts[WARPS];
  Sampler sampler;
  sampler.row = logits + static_cast<u64>(blockIdx.x) * vocab;
  sampler.vocab = vocab;
  Shared* s = sampler.s = reinterpret_cast<Shared*>(ptx::dynamic_shared());
  const float* row = sampler.row;
  u64 above = 0;
  const u32 edge = sampler.crossing(n, &above, [&](const Tally& put) {
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) put(key_of(row[i]), 1);
  });
  // Those above the edge anywhere, then the first at the edge by id.
  if (threadIdx.x == 0) s->count = 0;
  u32 equals = 0;
  __syncthreads();
  for (u32 base = 0; base < vocab; base += THREADS) {
    const u32 i = base + threadIdx.x;
    const u32 key = i < vocab ? key_of(row[i]) : 0;
    if (i < vocab && key > edge) s->kept[atomicAdd(&s->count, 1u)] = {row[i], i};
    const bool equal = i < vocab && key == edge;
    const u32 lanes = __ballot_sync(~0u, equal);
    if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = __popc(lanes);
    __syncthreads();
    u32 place = equals + __popc(lanes & ((1u << threadIdx.x % 32) - 1));
    for (u32 w = 0; w < WARPS; w++) {
      if (w < threadIdx.x / 32) place += counts[w];
      equals += counts[w];
    }
    if (equal && above + place < n) s->kept[above + place] = {row[i], i};
    __syncthreads();
  }
  // Each finds its place by counting who goes before it.
  if (threadIdx.x >= n) return;
  const Kept mine = s->kept[threadIdx.x];
  u32 place = 0;
  for (u32 i = 0; i < n; i++) {
    const Kept other = s->kept[i];
    place += other.z > mine.z || (other.z == mine.z && other.token < mine.token);
  }
  tokens[static_cast<u64>(blockIdx.x) * n + place] = mine.token;
  logprobs[static_cast<u64>(blockIdx.x) * n + place] = mine.z - logsumexp[blockIdx.x];
}
