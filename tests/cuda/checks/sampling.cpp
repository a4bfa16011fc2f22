// Choosing tokens at random, and what is said about them.
#include "check.h"

#include <algorithm>
#include <functional>

namespace {

struct SampleRow {
  u64 seed;
  u32 position;
  float temperature;
  u32 top_k;
  float top_p, ln_min_p;
  u32 edits, num_edits, seen, num_seen;
  float repetition, frequency, presence;
  u32 allowed, unused;
};
struct Edit {
  u32 token;
  float add;
};
struct Seen {
  u32 token, count;
};
static_assert(sizeof(SampleRow) == 64);
constexpr u32 kShared = 18960;

u64 mix(u64 x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

double uniform(u64 seed, u32 position, u32 token) {
  const u64 step = 0x9e3779b97f4a7c15ull;
  u64 key = mix(mix(seed + step) ^ position * step);
  u64 bits = mix(key + token * step) >> 12;
  return static_cast<double>(2 * bits + 1) * 0x1p-53;
}

double noisy(float z, u64 seed, u32 position, u32 token) {
  return double{z} - std::log(-std::log1p(-uniform(seed, position, token)));
}

// By sorting, as src/sampling means it.
u32 sampled(const std::vector<float>& row, const SampleRow& how) {
  float max = -INFINITY;
  for (float x : row) {
    if (std::isnan(x)) return kNone;
    max = std::max(max, x);
  }
  if (!std::isfinite(max)) return kNone;
  u32 best = static_cast<u32>(std::find(row.begin(), row.end(), max) - row.begin());
  if (how.temperature == 0) return best;
  float floor = -INFINITY;
  if (how.top_k != 0 && how.top_k < row.size()) {
    auto sorted = row;
    std::nth_element(sorted.begin(), sorted.begin() + how.top_k - 1, sorted.end(),
                     std::greater<float>());
    floor = sorted[how.top_k - 1];
  }
  std::vector<std::pair<float, u32>> left;
  for (u32 i = 0; i < row.size(); i++) {
    float z = (row[i] - max) / how.temperature;
    if (row[i] >= floor && z >= how.ln_min_p && z > -INFINITY) left.push_back({z, i});
  }
  std::sort(left.begin(), left.end(), [](auto& a, auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
  if (how.top_p < 1) {
    double total = 0, sum = 0;
    for (auto& [z, i] : left) total += std::exp(double{z});
    size_t kept = 0;
    while (kept < left.size() && (kept == 0 || sum < double{how.top_p} * total)) {
      sum += std::exp(double{left[kept++].first});
    }
    left.resize(kept);
  }
  u32 chosen = best;
  double score = -INFINITY;
  for (auto& [z, i] : left) {
    double x = noisy(z, how.seed, how.position, i);
    if (x > score || (x == score && i < chosen)) {
      score = x;
      chosen = i;
    }
  }
  return chosen;
}

SampleRow plain(u64 seed) {
  return {seed, 17, 1, 0, 1, -INFINITY, 0, 0, 0, 0, 1, 0, 0, kNone, 0};
}

// Rows, and the tokens that must be drawn from them.
struct Draws {
  u32 vocab;
  std::vector<SampleRow> rows = {};
  std::vector<float> logits = {};
  std::vector<u32> want = {};

  void add(const SampleRow& how, const std::vector<float>& row, u32 token) {
    rows.push_back(how);
    want.push_back(token);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  void check(Check& c) const {
    auto token = c.room<u32>(rows.size());
    c.run("sample", {static_cast<u32>(rows.size())}, 1024, kShared, token, c.put(logits),
          c.put(rows), vocab);
    c.equal(token, want);
  }
};

// Every combination of filters, each over a row of its own; of them every `step`th.
void sample(Check& c, const std::string& shape, u32 vocab, u32 step,
            const std::function<std::vector<float>(Random&)>& row_of) {
  Random random(vocab);
  std::vector<SampleRow> rows;
  u32 count = 0;
  for (float temperature : {0.0f, 0.7f, 1.5f}) {
    for (u32 top_k : {0u, 1u, 5u, 40u, 900u, 1000000u}) {
      for (float top_p : {1.0f, 0.9f, 0.3f, 1e-9f}) {
        for (float min_p : {0.0f, 0.05f}) {
          if (count++ % step != 0) continue;
          SampleRow how = plain(random.bits());
          how.temperature = temperature;
          how.top_k = top_k;
          how.top_p = top_p;
          how.ln_min_p = std::log(min_p);
          rows.push_back(how);
        }
      }
    }
  }
  Draws draws{vocab};
  for (const auto& how : rows) {
    auto row = row_of(random);
    draws.add(how, row, sampled(row, how));
  }
  c.shape(std::to_string(vocab) + " " + shape);
  draws.check(c);
}

void sample_normal(Check& c, u32 vocab, float spread, u32 step = 1) {
  sample(c, "normal", vocab, step, [&](Random& random) { return random.normals(vocab, spread); });
}

// Many equals.
void sample_coarse(Check& c, u32 vocab, float spread, u32 step = 1) {
  sample(c, "coarse", vocab, step, [&](Random& random) {
    auto row = random.normals(vocab, spread);
    for (float& x : row) x = std::round(x);
    return row;
  });
}

}  // namespace

CHECK(sample_rows) {
  for (u32 vocab : {1u, 33u, 1500u}) {
    sample_normal(c, vocab, 3);
    sample_coarse(c, vocab, 2);
  }
  for (u32 vocab : {1501u, 1502u, 1503u}) {
    sample_normal(c, vocab, 3, 7);
    sample_coarse(c, vocab, 2, 5);
  }
}

// More tokens left than fit in shared memory, and rows of more than one turn of all threads.
CHECK(sample_flat_rows) {
  sample_normal(c, 4100, 0.3f);
  sample_normal(c, 9001, 1.0f, 5);
  sample_normal(c, 9002, 1e-3f, 5);
  sample_normal(c, 9003, 1e-9f, 5);
  sample_normal(c, 20003, 2.0f, 7);
  sample_normal(c, 40000, 0.1f, 13);
}

CHECK(sample_rows_of_equals) {
  for (u32 vocab : {6u, 2049u, 5003u}) {
    sample_coarse(c, vocab, 0.7f, 5);
    sample(c, "equal", vocab, 5, [&](Random&) { return std::vector<float>(vocab, 0.25f); });
  }
}

CHECK(sample_steep_rows) {
  for (u32 vocab : {1000u, 4097u}) {
    sample(c, "one", vocab, 5, [&](Random& random) {
      auto row = random.normals(vocab, 1);
      row[random.below(vocab)] = 40;
      return row;
    });
    sample(c, "masked", vocab, 5, [&](Random& random) {
      auto row = random.normals(vocab, 2);
      for (float& x : row) x = random.below(30) == 0 ? x : -INFINITY;
      row[vocab / 2] = 1;
      return row;
    });
    sample_normal(c, vocab, 1e4f, 7);
    sample_normal(c, vocab, 1e37f, 7);
    sample_normal(c, vocab, 30, 7);
  }
}

// Weights must be added exactly where the last token under top_p, of thousands, is the one drawn.
CHECK(sample_last_token_of_many) {
  const u32 vocab = 9000;
  std::vector<float> row(vocab);
  for (u32 i = 1; i < vocab; i++) row[i] = i % 2 ? -1.0f : -1.5f;
  const double odd = std::exp(-1.0), even = std::exp(-1.5), half = vocab / 2;
  Draws draws{vocab};
  for (float top_p : {0.7f, 0.8f, 0.95f}) {
    const double total = 1 + half * odd + (half - 1) * even;
    const u32 last = 2 * static_cast<u32>(std::ceil((top_p * total - 1 - half * odd) / even));
    SampleRow how = plain(0);
    how.top_p = top_p;
    do {
      how.seed++;
    } while (uniform(how.seed, how.position, last) > 2e-4 || sampled(row, how) != last);
    draws.add(how, row, last);
  }
  draws.check(c);
}

// So low a temperature that its inverse is not finite, and so high a one that all are alike.
CHECK(sample_at_odd_temperatures) {
  const u32 vocab = 3001;
  Random random(5);
  Draws draws{vocab};
  for (float temperature : {1e-40f, 1e-37f, 1e-3f, 1e3f, 3e38f}) {
    for (float top_p : {1.0f, 0.5f}) {
      SampleRow how = plain(random.bits());
      how.temperature = temperature;
      how.top_p = top_p;
      auto row = random.normals(vocab, 1);
      // At the highest temperature what is scaled rounds to 0, or to one of few values.
      const float step = temperature > 1e30f ? 1e-7f : 0.5f;
      for (float& x : row) x = std::round(x / step) * step;
      draws.add(how, row, sampled(row, how));
    }
  }
  draws.check(c);
}

CHECK(sample_rows_that_are_not_sane) {
  const u32 vocab = 70;
  std::vector<float> logits(4 * vocab, 1.0f);
  logits[3] = NAN;
  logits[vocab + 9] = INFINITY;
  for (u32 i = 0; i < vocab; i++) logits[2 * vocab + i] = -INFINITY;
  for (u32 i = 0; i < vocab; i++) logits[3 * vocab + i] = i == 68 ? -5.0f : -INFINITY;
  auto token = c.room<u32>(4);
  std::vector<SampleRow> rows(4, plain(3));
  rows[3].top_p = 0.5f;
  c.run("sample", {4}, 1024, kShared, token, c.put(logits), c.put(rows), vocab);
  c.equal(token, std::vector<u32>{kNone, kNone, kNone, 68});
}

// Which tokens win must follow the distribution: each of 4 with its own weight.
CHECK(sample_distribution) {
  const u32 vocab = 4, rows = 1000;
  const float weights[] = {0.1f, 0.2f, 0.3f, 0.4f};
  std::vector<float> logits;
  std::vector<SampleRow> how;
  for (u32 r = 0; r < rows; r++) {
    for (float w : weights) logits.push_back(std::log(w));
    how.push_back(plain(r));
  }
  auto token = c.room<u32>(rows);
  c.run("sample", {rows}, 1024, kShared, token, c.put(logits), c.put(how), vocab);
  float counts[4] = {};
  for (u32 t : token.values()) counts[t & 3] += 1.0f / rows;
  for (u32 i = 0; i < 4; i++) {
    c.that(std::fabs(counts[i] - weights[i]) < 0.05f, "share of token " + std::to_string(i));
  }
}

CHECK(edits_of_rows) {
  for (u32 vocab : {5u, 300u, 1000u, 9001u}) {
    Random random(vocab);
    std::vector<float> logits = random.normals(size_t{3} * vocab, 4);
    std::vector<SampleRow> rows(3, plain(1));
    std::vector<Edit> edits = {{2, -INFINITY}, {0, 1.5f}, {vocab, 9}, {1, 3e38f}, {4, -2}};
    std::vector<Seen> seen = {{3, 2}, {0, 0}, {vocab + 7, 1}, {4, 1}};
    logits[1] = 3e38f;
    rows[0].num_edits = 4;
    rows[0].num_seen = 3;
    rows[0].repetition = 1.3f;
    rows[0].frequency = 0.25f;
    rows[0].presence = 0.5f;
    rows[1].edits = 4;
    rows[1].num_edits = 1;
    rows[1].seen = 3;
    rows[1].num_seen = 1;
    rows[1].presence = -0.5f;
    rows[1].allowed = 1;
    const u32 words = ceil_div(vocab, 32);
    std::vector<u32> masks(size_t{2} * words);
    for (u32& m : masks) m = random.bits();
    auto want = logits;
    for (u32 r = 0; r < 3; r++) {
      float* to = &want[size_t{r} * vocab];
      const SampleRow& how = rows[r];
      for (u32 i = 0; i < vocab && how.allowed != kNone; i++) {
        if (!(masks[how.allowed * words + i / 32] >> i % 32 & 1)) to[i] = -INFINITY;
      }
      for (u32 i = how.edits; i < how.edits + how.num_edits; i++) {
        if (edits[i].token >= vocab) continue;
        float& x = to[edits[i].token];
        x = std::min(x + edits[i].add, 3.402823466e+38f);
      }
      for (u32 i = how.seen; i < how.seen + how.num_seen; i++) {
        if (seen[i].token >= vocab) continue;
        float& x = to[seen[i].token];
        float repeated = x > 0 ? x / how.repetition : x * how.repetition;
        volatile float part = how.frequency * static_cast<float>(seen[i].count);
        x = repeated - part - (seen[i].count ? how.presence : 0);
      }
    }
    c.shape(std::to_string(vocab));
    auto out = c.room<float>(want.size());
    c.run("edit_logits", {3}, 256, 0, out, c.put(logits), c.put(rows), c.put(edits), c.put(seen),
          c.put(masks), vocab);
    c.equal(out, want);
  }
}

CHECK(logprobs_of_tokens) {
  for (u32 vocab : {7u, 1024u, 3001u, 9001u}) {
    const u32 rows = 5;
    Random random(vocab);
    auto logits = random.normals(size_t{rows} * vocab, 3);
    for (u32 i = 0; i < 2 * vocab; i++) logits[i] = std::round(logits[i]);  // equals
    for (u32 i = 0; i < vocab; i++) logits[size_t{4} * vocab + i] = 0.5f;
    for (u32 i = 0; i < vocab; i += 2) logits[size_t{3} * vocab + i] = -INFINITY;
    std::vector<u32> tokens, ranks;
    std::vector<float> sums, logprobs;
    for (u32 r = 0; r < rows; r++) {
      const float* row = &logits[size_t{r} * vocab];
      tokens.push_back(random.below(vocab));
      float x = row[tokens[r]];
      ranks.push_back(1 + static_cast<u32>(std::count_if(row, row + vocab,
                                                         [&](float y) { return y > x; })));
      sums.push_back(5.0f + static_cast<float>(r));
      logprobs.push_back(x - sums[r]);
    }
    auto d = c.put(logits), dsums = c.put(sums), logprob = c.room<float>(rows);
    auto rank = c.room<u32>(rows);
    c.shape(std::to_string(vocab));
    c.run("token_logprobs", {rows}, 1024, 0, logprob, rank, d, c.put(tokens), dsums, vocab);
    c.equal(rank, ranks);
    c.near(logprob, logprobs, 0);
    for (u32 n : {1u, 5u, 20u, 1000u, 1024u}) {
      if (n > vocab) continue;
      std::vector<u32> best;
      std::vector<float> values;
      for (u32 r = 0; r < rows; r++) {
        const float* row = &logits[size_t{r} * vocab];
        std::vector<u32> order = Random(1).permutation(vocab);
        std::sort(order.begin(), order.end(), [&](u32 a, u32 b) {
          return row[a] > row[b] || (row[a] == row[b] && a < b);
        });
        for (u32 i = 0; i < n; i++) {
          best.push_back(order[i]);
          values.push_back(row[order[i]] - sums[r]);
        }
      }
      c.shape(std::to_string(vocab) + " top " + std::to_string(n));
      auto top = c.room<u32>(best.size());
      auto value = c.room<float>(best.size());
      c.run("top_logprobs", {rows}, 1024, kShared, top, value, d, dsums, n, vocab);
      c.equal(top, best);
      c.near(value, values, 0);
    }
  }
}

namespace {

float fast_exp(float x) {
  x = x > -87.0f ? x : -87.0f;
  volatile float product = x * 1.44269504088896f;
  float rounded = product + 12582912.0f, n = rounded - 12582912.0f;
  volatile float high = n * (355.0f / 512.0f), low = n * -2.1219444e-4f;
  float r = (x - high) - low, p = 1.0f / 5040.0f;
  for (float term : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) {
    product = p * r;
    p = product + term;
  }
  u32 bits, one = 0x3f800000u;
  std::memcpy(&bits, &rounded, 4);
  bits = (bits << 23) + one;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

}  // namespace

CHECK(scale_of_rows) {
  for (u32 vocab : {1u, 9u, 511u, 520u, 70001u}) {
    const u32 rows = 4;
    Random random(vocab);
    auto logits = random.normals(size_t{rows} * vocab, 6);
    logits[size_t{2} * vocab + vocab / 2] = NAN;
    for (u32 i = 0; i < vocab; i++) logits[size_t{3} * vocab + i] = i == 5 ? 2.0f : -INFINITY;
    if (vocab < 6) logits[3 * vocab] = 2.0f;
    std::vector<u32> want;
    for (u32 r = 0; r < rows; r++) {
      const float* row = &logits[size_t{r} * vocab];
      float max = *std::max_element(row, row + vocab);
      double total = 0;
      for (u32 run = 0; run < vocab; run += 512) {
        double sum = 0;
        for (u32 lane = 0; lane < 8; lane++) {
          float part = 0;
          for (u32 i = run + lane; i < std::min(vocab, run + 512); i += 8) {
            part += fast_exp(row[i] - max);
          }
          sum += part;
        }
        total += sum;
      }
      u32 words[4] = {0x7fc00000u, 0, 0, 0};
      if (r != 2) {
        std::memcpy(words, &max, 4);
        std::memcpy(words + 2, &total, 8);
      }
      want.insert(want.end(), words, words + 4);
    }
    c.shape(std::to_string(vocab));
    auto out = c.room<u32>(4 * rows);
    c.run("row_scale", {rows}, 1024, kShared, out, c.put(logits), vocab);
    c.equal(out, want);
  }
}

CHECK(tokens_that_were_drawn) {
  for (u32 count : {1u, 300u}) {
    auto order = Random(count).permutation(2 * count);
    std::vector<u32> from, places, want(2 * count, 7u);
    for (u32 i = 0; i < count; i++) from.push_back(1000 + i);
    for (u32 i = 0; i < count; i++) {
      places.insert(places.end(), {order[i], count - 1 - i});
      want[order[i]] = from[count - 1 - i];
    }
    auto to = c.put(std::vector<u32>(2 * count, 7u));
    c.run("take_tokens", {ceil_div(count, 256)}, 256, 0, to, c.put(from), c.put(places), count);
    c.equal(to, want);
  }
}

// The tokens that src/sampling/tests/noise.rs promises for ever.
CHECK(sample_noise_is_the_hosts) {
  const u32 vocab = 1000;
  std::vector<SampleRow> rows;
  for (u32 position = 0; position < 8; position++) {
    rows.push_back(plain(42));
    rows.back().position = position;
  }
  auto token = c.room<u32>(8);
  c.run("sample", {8}, 1024, kShared, token, c.put(std::vector<float>(8 * vocab, 0.0f)),
        c.put(rows), vocab);
  c.equal(token, std::vector<u32>{385, 200, 924, 810, 706, 540, 792, 387});
}
