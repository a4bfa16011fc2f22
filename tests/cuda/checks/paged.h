// A paged cache and sequences on the host, for checks of what reads and writes it.
#pragma once
#include "check.h"

// As in kernels/args.cuh, with addresses for pointers.
struct Seq {
  u32 query_start, query_len, context_len, block_table_start, num_blocks, unused[3];
};
struct RopeWriteArgs {
  u64 qkv, kv, positions, slots, q_norm, k_norm, rope;
  u64 block_stride, k_offset, v_offset;
  u32 heads, kv_heads, head_dim, rotary_dim, block_size;
  float eps;
};
struct AttentionArgs {
  u64 out, qkv, kv, block_table, seqs, row_seq, sinks, work, num_work, partial;
  u64 block_stride, k_offset, v_offset;
  u32 heads, kv_heads, head_dim, block_size, qkv_width, window;
  float scale, softcap;
};
struct Work {
  u32 seq, row, begin, end, partial, next, unused[2];
};

// Shares of pieces as kernels want them: every share's first piece, then those that come after one.
inline std::vector<Work> chained(const std::vector<std::vector<Work>>& shares) {
  std::vector<Work> list, further;
  for (const auto& share : shares) list.push_back(share[0]);
  for (size_t i = 0; i < shares.size(); i++) {
    for (size_t j = 1; j < shares[i].size(); j++) {
      Work& before = j == 1 ? list[i] : further.back();
      before.next = static_cast<u32>(shares.size() + further.size());
      further.push_back(shares[i][j]);
    }
  }
  list.insert(list.end(), further.begin(), further.end());
  return list;
}

struct Heads {
  u32 heads, kv_heads, head_dim;
  u32 width() const { return (heads + 2 * kv_heads) * head_dim; }
};

// Two layers in each block; checks use the second, so that offsets count.
template <class T>
struct Cache {
  Heads h;
  u32 block_size, num_blocks;
  std::vector<T> pool;

  Cache(Heads heads, u32 block_size, u32 num_blocks, u64 seed)
      : h(heads), block_size(block_size), num_blocks(num_blocks) {
    Random random(seed);
    pool = random.normals<T>(block_stride() * num_blocks);
  }
  u64 layer() const { return u64{2} * h.kv_heads * block_size * h.head_dim; }
  u64 block_stride() const { return 2 * layer(); }
  u64 k_offset() const { return layer(); }
  u64 v_offset() const { return layer() + layer() / 2; }
  size_t place(u32 slot, u32 head, bool value) const {
    return slot / block_size * block_stride() + (value ? v_offset() : k_offset()) +
           (size_t{head} * block_size + slot % block_size) * h.head_dim;
  }
};

// Sequences with their blocks scattered over the pool.
struct Batch {
  std::vector<Seq> seqs;
  std::vector<u32> table, row_seq, positions, slots;
  u32 rows = 0, num_blocks = 1;

  // Each: positions before, rows now. A sequence without rows is padding.
  Batch(const std::vector<std::pair<u32, u32>>& lengths, u32 block_size, u64 seed) {
    for (auto [context, query] : lengths) num_blocks += ceil_div(context + query, block_size);
    auto order = Random(seed).permutation(num_blocks - 1);
    u32 next = 0;
    for (auto [context, query] : lengths) {
      u32 blocks = ceil_div(context + query, block_size);
      u32 start = static_cast<u32>(table.size());
      seqs.push_back({rows, query, context, start, blocks, {}});
      for (u32 i = 0; i < blocks; i++) table.push_back(order[next++] + 1);
      for (u32 i = 0; i < query; i++) {
        u32 p = context + i;
        row_seq.push_back(static_cast<u32>(seqs.size()) - 1);
        positions.push_back(p);
        slots.push_back(table[start + p / block_size] * block_size + p % block_size);
      }
      rows += query;
    }
  }
  // Adds rows that belong to nobody.
  void pad(u32 n) {
    for (u32 i = 0; i < n; i++) {
      row_seq.push_back(kNone);
      positions.push_back(0);
      slots.push_back(kNone);
    }
    rows += n;
  }
};

struct How {
  u32 window = 0;
  float softcap = 0;
  bool sinks = false;
};

// [rows, heads * head_dim]; `round` is what happens to queries.
template <class T>
std::vector<float> attention(const Cache<T>& cache, const Batch& batch,
                             const std::vector<float>& qkv, const How& how,
                             const std::vector<float>& sinks, float scale);
