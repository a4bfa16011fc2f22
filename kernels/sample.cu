// Kernels of src/sampling: the choice of tokens at random, what comes before it (masks, biases and
// penalties) and what is told about tokens afterwards. One block a row of logits.
#include "sampler.cuh"

// Tokens of rows; NONE where a row has a NaN, +infinity, or nothing but -infinity.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample(u32* token, const float* logits, const SampleRow* rows, u32 vocab) {
  ptx::take_turn();
  Sampler sampler(logits, vocab, rows + blockIdx.x);
  const u32 chosen = sampler.run();
  if (threadIdx.x == 0) token[blockIdx.x] = chosen;
}

// out = logits, with each row's mask, edits and penalties applied. The tokens of a row's edits are
// distinct, and those of its seen ones.
extern "C" __global__ void __launch_bounds__(256)
    edit_logits(float* out, const float* logits, const SampleRow* rows, const Edit* edits,
                const Seen* seen, const u32* masks, u32 vocab) {
  ptx::take_turn();
  const SampleRow how = rows[blockIdx.x];
  float* to = out + static_cast<u64>(blockIdx.x) * vocab;
  const u32* mask =
      how.allowed != NONE ? masks + static_cast<u64>(how.allowed) * ((vocab + 31) / 32) : nullptr;
  auto masked = [&](float x, u32 token) {
    const bool may = mask == nullptr || (mask[token / 32] >> token % 32 & 1);
    return may ? x : -infinity();
  };
  const Row<256> row(logits, vocab);
  const Token single = row.single();
  if (single.id < vocab) to[single.id] = masked(single.x, single.id);
  row.groups<8>([&](const float4(&x)[8], u32 first) {
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
      const u32 token = first + 4 * 256 * j;
      if (token >= row.head + row.grouped) break;
      store4(to + token, make_float4(masked(x[j].x, token), masked(x[j].y, token + 1),
                                     masked(x[j].z, token + 2), masked(x[j].w, token + 3)));
    }
  });
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

// The sum of exp(logit - largest) over every eighth token of the 512 from `first` on, from the
// one of this thread's place among eight.
__device__ __forceinline__ float sum_of_eighth(const Candidates& all, u32 first) {
  float sum = 0.0f;
  const float* from = all.row.logits + first + threadIdx.x % 8;
  if (first < all.vocab && all.vocab - first >= 512) {
    for (u32 i = 0; i < 512; i += 64) {
      float x[8];
#pragma unroll
      for (u32 j = 0; j < 8; j++) x[j] = from[i + 8 * j];
#pragma unroll
      for (u32 j = 0; j < 8; j++) sum = __fadd_rn(sum, fast_exp(x[j] - all.max));
    }
    return sum;
  }
  for (u32 i = threadIdx.x % 8; i < 512 && first + i < all.vocab; i += 8) {
    sum = __fadd_rn(sum, fast_exp(all.row.logits[first + i] - all.max));
  }
  return sum;
}

// Each row's largest logit, and the sum of exp(logit - largest) in the order of src/sampling: in a
// run of 512 logits 8 sums of every eighth in f32, then everything in f64. NaN as the largest
// where a row has a NaN, +infinity or nothing but -infinity.
extern "C" __global__ void __launch_bounds__(THREADS)
    row_scale(RowScale* out, const float* logits, u32 vocab) {
  ptx::take_turn();
  Candidates all(logits, vocab);
  if (!all.find_best()) {
    if (threadIdx.x == 0) out[blockIdx.x] = {__uint_as_float(0x7fc00000u), 0, 0.0};
    return;
  }
  double* runs = reinterpret_cast<double*>(all.s->kept);
  double total = 0.0;
  for (u32 base = 0; base < vocab; base += 64 * THREADS) {
    const u32 first = base + threadIdx.x / 8 * 512;
    const float sum = sum_of_eighth(all, first);
    double run = 0.0;
    for (u32 lane = 0; lane < 8; lane++) {
      run += static_cast<double>(__shfl_sync(~0u, sum, threadIdx.x % 32 / 8 * 8 + lane));
    }
    __syncthreads();
    if (threadIdx.x % 8 == 0) runs[threadIdx.x / 8] = run;
    __syncthreads();
    if (threadIdx.x == 0) {
      const u32 left = (vocab - base + 511) / 512, count = left < THREADS / 8 ? left : THREADS / 8;
#pragma unroll 8
      for (u32 i = 0; i < count; i++) total += runs[i];
    }
  }
  if (threadIdx.x == 0) out[blockIdx.x] = {all.max, 0, total};
}

// to[places[2 i]] = from[places[2 i + 1]].
extern "C" __global__ void __launch_bounds__(256)
    take_tokens(u32* to, const u32* from, const u32* places, u32 count) {
  ptx::take_turn();
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i < count) to[places[2 * i]] = from[places[2 * i + 1]];
}

// The logprob of each row's token, and how many tokens are more likely, plus 1.
extern "C" __global__ void __launch_bounds__(THREADS)
    token_logprobs(float* logprob, u32* rank, const float* logits, const u32* tokens,
                   const float* logsumexp, u32 vocab) {
  ptx::take_turn();
  __shared__ u32 counts[WARPS];
  const Row<THREADS> row(logits, vocab);
  const u32 token = tokens[blockIdx.x];
  const float x = token < vocab ? row.logits[token] : -infinity();
  u32 greater = 0;
  row.each<LOADS>([&](float other, u32) { greater += other > x; });
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
  ptx::take_turn();
  Candidates all(logits, vocab);
  all.find_best();
  const u32 listed = all.list_top(n);
  // Each finds its place by counting who goes before it.
  for (u32 i = threadIdx.x; i < listed; i += THREADS) {
    const Kept mine = all.s->kept[i];
    u32 place = 0;
    for (u32 j = 0; j < listed; j++) {
      const Kept other = all.s->kept[j];
      place += other.z > mine.z || (other.z == mine.z && other.token < mine.token);
    }
    if (place >= n) continue;
    tokens[static_cast<u64>(blockIdx.x) * n + place] = mine.token;
    logprobs[static_cast<u64>(blockIdx.x) * n + place] = mine.z - logsumexp[blockIdx.x];
  }
}
