// Attention over the paged cache, and what is written there, against plain loops in f64.
#include "paged.h"

#include <algorithm>

template <class T>
std::vector<float> attention(const Cache<T>& cache, const Batch& batch,
                             const std::vector<float>& qkv, const How& how,
                             const std::vector<float>& sinks, float scale) {
  const Heads& h = cache.h;
  std::vector<float> out(size_t{batch.rows} * h.heads * h.head_dim, 0.0f);
  for (u32 row = 0; row < batch.rows; row++) {
    if (batch.row_seq[row] == kNone) continue;
    const Seq& seq = batch.seqs[batch.row_seq[row]];
    u32 end = batch.positions[row] + 1;
    u32 begin = how.window && end > how.window ? end - how.window : 0;
    for (u32 head = 0; head < h.heads; head++) {
      u32 kv_head = head / (h.heads / h.kv_heads);
      const float* q = &qkv[size_t{row} * h.width() + size_t{head} * h.head_dim];
      auto place = [&](u32 p, bool value) {
        u32 block = batch.table[seq.block_table_start + p / cache.block_size];
        return cache.place(block * cache.block_size + p % cache.block_size, kv_head, value);
      };
      std::vector<double> scores;
      double top = how.sinks ? sinks[head] : -INFINITY, sum = 0;
      for (u32 p = begin; p < end; p++) {
        double s = 0;
        for (u32 d = 0; d < h.head_dim; d++) s += double{q[d]} * widen(cache.pool[place(p, 0) + d]);
        s *= scale;
        if (how.softcap != 0) s = how.softcap * std::tanh(s / how.softcap);
        scores.push_back(s);
        top = std::max(top, s);
      }
      if (how.sinks) sum = std::exp(sinks[head] - top);
      for (double& s : scores) sum += s = std::exp(s - top);
      std::vector<double> mixed(h.head_dim);
      for (u32 p = begin; p < end; p++) {
        for (u32 d = 0; d < h.head_dim; d++) {
          mixed[d] += scores[p - begin] / sum * widen(cache.pool[place(p, 1) + d]);
        }
      }
      float* to = &out[(size_t{row} * h.heads + head) * h.head_dim];
      for (u32 d = 0; d < h.head_dim; d++) to[d] = static_cast<float>(mixed[d]);
    }
  }
  return out;
}

template std::vector<float> attention(const Cache<float>&, const Batch&, const std::vector<float>&,
                                      const How&, const std::vector<float>&, float);
template std::vector<float> attention(const Cache<bf16>&, const Batch&, const std::vector<float>&,
                                      const How&, const std::vector<float>&, float);

namespace {

std::string describe(const Heads& h, u32 block_size) {
  return std::to_string(h.heads) + "/" + std::to_string(h.kv_heads) + "x" +
         std::to_string(h.head_dim) + " blocks of " + std::to_string(block_size);
}

// With the output's rounding on top where that is bf16.
template <class T, class O>
void simple(Check& c, const char* name, Heads h, u32 block_size, const How& how, float relative) {
  Batch batch({{0, 1}, {block_size - 1, 1}, {block_size, 2}, {0, 0}, {37, 5}, {0, block_size}},
              block_size, h.head_dim);
  batch.pad(2);
  Cache<T> cache(h, block_size, batch.num_blocks, h.heads);
  Random random(block_size);
  auto qkv = random.normals(size_t{batch.rows} * h.width()), sinks = random.normals(h.heads);
  float scale = 1 / std::sqrt(static_cast<float>(h.head_dim));
  auto want = attention(cache, batch, qkv, how, sinks, scale);
  c.shape(describe(h, block_size) + " window " + std::to_string(how.window) +
          (how.softcap != 0 ? " softcap" : "") + (how.sinks ? " sinks" : ""));
  auto out = c.room<O>(want.size());
  auto dqkv = c.put(qkv), dsinks = c.put(sinks);
  auto dpool = c.put(cache.pool);
  auto dtable = c.put(batch.table), drow = c.put(batch.row_seq);
  auto dseqs = c.put(batch.seqs);
  AttentionArgs a{out.pointer(), dqkv.pointer(), dpool.pointer(), dtable.pointer(),
                  dseqs.pointer(), drow.pointer(), how.sinks ? dsinks.pointer() : 0, 0, 0, 0,
                  cache.block_stride(), cache.k_offset(), cache.v_offset(), h.heads, h.kv_heads,
                  h.head_dim, block_size, h.width(), how.window, scale, how.softcap};
  c.run(name, {h.heads, batch.rows}, 128, 16 * (h.head_dim + 2), a);
  c.near(out, want, 1e-5f, relative);
}

const double kTheta = 10000;

template <class T>
void rope(Check& c, const char* name, Heads h, u32 block_size, u32 rotary, bool norm) {
  Batch batch({{0, 3}, {block_size - 1, 2}, {40, 1}}, block_size, 5);
  batch.pad(1);
  Cache<T> cache(h, block_size, batch.num_blocks, 3);
  Random random(h.head_dim + rotary);
  auto qkv = random.normals(size_t{batch.rows} * h.width());
  auto q_norm = random.normals(h.head_dim), k_norm = random.normals(h.head_dim);
  std::vector<float> table;
  for (u32 p = 0; p < 64; p++) {
    for (u32 half = 0; half < 2; half++) {
      for (u32 i = 0; i < rotary / 2; i++) {
        double angle = p * std::pow(kTheta, -2.0 * i / rotary);
        table.push_back(static_cast<float>(half ? std::sin(angle) : std::cos(angle)));
      }
    }
  }
  auto want = qkv;
  auto pool = cache.pool;
  std::vector<float> wide;
  const float eps = 1e-6f;
  for (u32 row = 0; row < batch.rows; row++) {
    for (u32 head = 0; head < h.heads + 2 * h.kv_heads; head++) {
      float* x = &want[size_t{row} * h.width() + size_t{head} * h.head_dim];
      bool value = head >= h.heads + h.kv_heads;
      if (norm && !value) {
        double squares = 0;
        for (u32 i = 0; i < h.head_dim; i++) squares += double{x[i]} * x[i];
        double s = 1 / std::sqrt(squares / h.head_dim + eps);
        const auto& w = head < h.heads ? q_norm : k_norm;
        for (u32 i = 0; i < h.head_dim; i++) x[i] = static_cast<float>(x[i] * s * w[i]);
      }
      for (u32 i = 0; !value && i < rotary / 2; i++) {
        const float* turn = &table[size_t{batch.positions[row]} * rotary];
        double cosine = turn[i], sine = turn[rotary / 2 + i], p = x[i], q = x[i + rotary / 2];
        x[i] = static_cast<float>(p * cosine - q * sine);
        x[i + rotary / 2] = static_cast<float>(q * cosine + p * sine);
      }
      if (head < h.heads || batch.slots[row] == kNone) continue;
      size_t at = cache.place(batch.slots[row], (head - h.heads) % h.kv_heads, value);
      for (u32 i = 0; i < h.head_dim; i++) narrow(x[i], pool[at + i]);
    }
  }
  for (const T& t : pool) wide.push_back(widen(t));
  c.shape(describe(h, block_size) + " rotary " + std::to_string(rotary) + (norm ? " norm" : ""));
  auto dqkv = c.put(qkv), dq = c.put(q_norm), dk = c.put(k_norm), dtable = c.put(table);
  auto dpool = c.put(cache.pool);
  auto dpositions = c.put(batch.positions), dslots = c.put(batch.slots);
  RopeWriteArgs a{dqkv.pointer(), dpool.pointer(), dpositions.pointer(), dslots.pointer(),
                  norm ? dq.pointer() : 0, norm ? dk.pointer() : 0, rotary ? dtable.pointer() : 0,
                  cache.block_stride(), cache.k_offset(), cache.v_offset(), h.heads, h.kv_heads,
                  h.head_dim, rotary, block_size, eps};
  c.run(name, {ceil_div(h.heads + 2 * h.kv_heads, 4), batch.rows}, 128, 0, a);
  c.near(dqkv, want, 2e-6f, 2e-6f);
  // A sum that falls on the other side of a tie is one unit away.
  c.near(dpool, wide, 2e-6f, sizeof(T) == 2 ? 0x1p-7f : 2e-6f);
}

}  // namespace

CHECK(rope_and_cache_writes) {
  for (u32 block_size : {8u, 16u, 24u}) {
    for (bool norm : {false, true}) {
      rope<float>(c, "rope_write_kv_f32", {4, 2, 64}, block_size, 64, norm);
      rope<float>(c, "rope_write_kv_f32", {3, 1, 48}, block_size, 16, norm);
      rope<bf16>(c, "rope_write_kv_bf16", {8, 2, 128}, block_size, 128, norm);
      rope<bf16>(c, "rope_write_kv_bf16", {2, 2, 80}, block_size, 0, norm);
      // Heads of more than one access a lane, partly turned, and such that do not lie aligned.
      rope<bf16>(c, "rope_write_kv_bf16", {2, 1, 256}, block_size, 256, norm);
      rope<bf16>(c, "rope_write_kv_bf16", {2, 1, 128}, block_size, 32, norm);
      rope<bf16>(c, "rope_write_kv_bf16", {3, 1, 80}, block_size, 80, norm);
      rope<float>(c, "rope_write_kv_f32", {2, 1, 96}, block_size, 72, norm);
      rope<bf16>(c, "rope_write_kv_bf16", {2, 1, 96}, block_size, 6, norm);
      rope<bf16>(c, "rope_write_kv_bf16", {1, 1, 33}, block_size, 10, norm);
      rope<float>(c, "rope_write_kv_f32", {1, 1, 150}, block_size, 150, norm);
    }
  }
}

CHECK(attention_simple) {
  const How hows[] = {{}, {7, 0, false}, {0, 5, false}, {0, 0, true}, {16, 2, true}};
  for (const How& how : hows) {
    for (u32 block_size : {8u, 16u, 40u}) {
      simple<float, float>(c, "paged_attention_f32_f32", {4, 2, 32}, block_size, how, 1e-5f);
      simple<bf16, float>(c, "paged_attention_bf16_f32", {3, 1, 80}, block_size, how, 1e-5f);
      simple<bf16, bf16>(c, "paged_attention_bf16_bf16", {2, 2, 256}, block_size, how, 0x1p-8f);
    }
  }
  simple<float, float>(c, "paged_attention_f32_f32", {1, 1, 8}, 16, {}, 1e-5f);
  simple<float, float>(c, "paged_attention_f32_f32", {2, 1, 512}, 16, {}, 1e-5f);
}
