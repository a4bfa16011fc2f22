// The token of a row, as src/sampling draws it: temperature, min_p, top_k and top_p, then
// Gumbel-max with noise that follows from (seed, position, token).
//
// A pass over a row costs what its instructions cost, so that each has few: what decides about most
// tokens are bounds that err on the safe side, and only what they let through is looked at exactly.
#ifndef VRUST_SAMPLER_CUH
#define VRUST_SAMPLER_CUH
#include "candidates.cuh"
#include "noise.cuh"

// Groups of four logits that a thread reads at once where much is done with each.
#define HEAVY_LOADS 2
// Below this scaled logit weights are 0.
#define WEIGHTLESS -29.25f
#define BIGGEST 3.402823466e+38f

struct Sampler : Candidates {
  float temperature;
  float floor_z;  // of the tokens that are left no scaled logit is lower

  __device__ __forceinline__ Sampler(const float* logits, u32 width, const SampleRow* which)
      : Candidates(logits, width), temperature(which->temperature), floor_z(-infinity()) {
    how = which;
  }

  __device__ __forceinline__ float scaled(float x) const { return (x - max) / temperature; }

  // Lists the tokens that are left and whose depth is `begin` or more.
  __device__ __forceinline__ bool list_scaled(u32 begin) {
    return list([&](float x, u32, float* z) {
      *z = scaled(x);
      return *z >= floor_z && depth_of(*z) >= begin;
    });
  }

  // Calls f(z, token) for the tokens that are asked about.
  template <class F>
  __device__ __forceinline__ void each_scaled(F f) const {
    if (listed) {
      for (u32 i = threadIdx.x; i < s->count; i += THREADS) {
        if (s->kept[i].z >= floor_z) f(s->kept[i].z, s->kept[i].token);
      }
    } else {
      row.each<HEAVY_LOADS>([&](float x, u32 token) {
        if (x < floor_logit) return;
        const float z = scaled(x);
        if (z >= floor_z) f(z, token);
      });
    }
  }

  // Leaves the k largest logits, and all that equal the last of them.
  __device__ __forceinline__ void keep_top_k(u32 k) {
    list_largest(k);
    floor_logit = largest(k);
    if (!listed) return;
    for (u32 i = threadIdx.x; i < s->count; i += THREADS) {
      const float x = s->kept[i].z;
      s->kept[i].z = x >= floor_logit ? scaled(x) : -infinity();
    }
    __syncthreads();
  }

  // What is below z leaves.
  __device__ __forceinline__ void raise_floor(float z) {
    floor_z = fmaxf(floor_z, z);
    // Lower by more than `scaled` rounds, close to 0 too.
    const double lower = static_cast<double>(floor_z) * (1.0 + 1e-6) - 1e-44;
    const double reach = lower * static_cast<double>(temperature);
    const float bound = static_cast<float>(static_cast<double>(max) + reach);
    floor_logit = fmaxf(floor_logit, bound);
  }

  // Keeps the most likely tokens until their weights reach top_p; of equals the lowest ids. Returns
  // the highest id that stays among those with z = floor_z.
  __device__ __forceinline__ u32 keep_top_p() {
    raise_floor(WEIGHTLESS);
    // Bins of equal shares of the powers of two from 1/8 to 32, where logits tend to be.
    const u32 knee = depth_of(0.125f), deepest = depth_of(floor_z);
    Digit digit = {0, deepest > knee ? deepest : knee, knee, 26 - bins().bits};
    aim(0);
    while (true) {
      const bool last = digit.shift == 0;
      level(&digit, [&](Tally& put) {
        each_scaled([&](float z, u32) {
          if (put.digit.has(depth_of(z))) put.add(depth_of(z), weight_of(z));
        });
      });
      raise_floor(at_depth(digit.end));
      if (last) break;
      if (listed) continue;
      // The tokens that stay, or those in question alone, may be few enough by now.
      listed = whole = list_scaled(0);
      if (!listed) listed = list_scaled(digit.begin);
      if (listed) digit = Digit::over(digit.begin, digit.end, bins().bits);
    }
    // How many of the equals at the edge it takes; each has the same weight.
    const u64 one = weight_of(floor_z), missing = s->found.target - s->found.above;
    if (one == 0 || s->found.mass - missing < one) return NONE;
    return last_of_edge((missing + one - 1) / one);
  }

  // The highest of the first `count` ids with z = floor_z.
  __device__ __forceinline__ u32 last_of_edge(u64 count) {
    return crossing(0, vocab - 1, count, [&](Tally& put) {
      each_scaled([&](float z, u32 token) {
        if (z == floor_z && put.digit.has(token)) put.add(token, 1);
      });
    });
  }

  // ---- the choice ----

  // The best score that any thread knows, times log2(e).
  __device__ __forceinline__ float lead() const {
    return value_of(*static_cast<const volatile u32*>(&s->lead));
  }

  // Of the tokens that are left the one with the largest noisy logit; of equals the lowest id.
  // Of those with z = floor_z none with a higher id than `last` is left.
  __device__ __forceinline__ u32 choose(u32 last) {
    const u64 key = noise_key(how->seed, how->position);
    u32 chosen = s->best;
    double score = noisy(0.0f, noise_bits(key, chosen));
    if (threadIdx.x == 0) s->lead = key_of(static_cast<float>(score) * LOG2_E);
    __syncthreads();
    auto take = [&](double x, u32 token) {
      if (x > score || (x == score && token < chosen)) {
        score = x;
        chosen = token;
      }
    };
    auto draw = [&](float z, u32 token) {
      if (z < floor_z || (z == floor_z && token > last)) return;
      take(noisy(z, noise_bits(key, token)), token);
      atomicMax(&s->lead, key_of(static_cast<float>(score) * LOG2_E));
    };
    if (whole) {
      for (u32 i = threadIdx.x; i < s->count; i += THREADS) {
        const Kept it = s->kept[i];
        if (may_win(key, it.token, it.z * LOG2_E, lead())) draw(it.z, it.token);
      }
    } else {
      choose_from_row(key, draw);
    }
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
    if (threadIdx.x != 0) return chosen;
    for (u32 w = 0; w < WARPS; w++) take(s->scores[w], s->tokens[w]);
    return chosen;
  }

  // Calls draw(z, token) for all tokens that may win, and few others.
  template <class D>
  __device__ __forceinline__ void choose_from_row(u64 key, D draw) {
    const float factor = LOG2_E / temperature;
    const Token single = row.single();
    if (single.id < vocab && may_win(key, single.id, (single.x - max) * factor, lead())) {
      if (single.x >= floor_logit) draw(scaled(single.x), single.id);
    }
    row.groups<HEAVY_LOADS>([&](const float4(&x)[HEAVY_LOADS], u32 first) {
      const float score = lead();
      u32 able = 0;
#pragma unroll
      for (u32 j = 0; j < HEAVY_LOADS; j++) {
        const float four[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
          const u32 token = first + 4 * THREADS * j + i;
          able |= may_win(key, token, (four[i] - max) * factor, score) ? 1u << (4 * j + i) : 0;
        }
      }
      // Seldom any; the logit is read anew, as registers have no index.
      for (; able != 0; able &= able - 1) {
        const u32 place = __ffs(static_cast<int>(able)) - 1;
        const u32 token = first + 4 * THREADS * (place / 4) + place % 4;
        if (token >= vocab || row.logits[token] < floor_logit) continue;
        const float above = row.logits[token] - max;
        if (may_win(key, token, above * factor, lead())) draw(scaled(row.logits[token]), token);
      }
    });
  }

  __device__ __forceinline__ u32 run() {
    if (!find_best()) return NONE;
    if (temperature == 0.0f) return s->best;
    const bool top_k = how->top_k != 0 && how->top_k < vocab, min_p = how->ln_min_p > -infinity();
    if (top_k) keep_top_k(how->top_k);
    if (top_k || min_p) {
      raise_floor(fmaxf(how->ln_min_p, -BIGGEST));
      if (!listed) listed = whole = list_scaled(0);
    }
    return choose(how->top_p < 1.0f ? keep_top_p() : NONE);
  }
};

#endif
