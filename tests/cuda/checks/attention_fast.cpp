// Attention on tensor cores: decode in pieces, their merge, and prefill, against plain loops.
#include "paged.h"

#include <algorithm>

namespace {

// Everything that one layer's attention needs, on the device.
template <class O>
struct Scene {
  Batch batch;
  Cache<bf16> cache;
  std::vector<float> qkv, sinks, want;
  Buffer<O> out;
  Buffer<float> dqkv, dsinks;
  Buffer<bf16> pool;
  Buffer<u32> table, row_seq;
  Buffer<Seq> seqs;
  How how;
  float scale;

  static std::vector<float> rounded(std::vector<float> v) {
    for (float& x : v) x = round_to_bf16(x);
    return v;
  }
  // A cache with NaNs wherever no sequence has a position that it sees; blocks that are behind the
  // window are the null block.
  static Cache<bf16> with_garbage(Heads h, u32 block_size, const How& how, Batch& batch) {
    Cache<bf16> cache(h, block_size, batch.num_blocks, h.heads + h.head_dim);
    std::vector<bf16> known(cache.pool.size(), bf16{0xffff});
    known.swap(cache.pool);
    for (const Seq& seq : batch.seqs) {
      u32 begin = how.window > 0 && seq.context_len >= how.window
                      ? seq.context_len + 1 - how.window : 0;
      u32* blocks = batch.table.data() + seq.block_table_start;
      for (u32 p = begin; p < seq.context_len + seq.query_len; p++) {
        u32 slot = blocks[p / block_size] * block_size + p % block_size;
        for (u32 i = 0; i < 2 * h.kv_heads; i++) {
          size_t at = cache.place(slot, i / 2, i % 2 != 0);
          std::copy_n(&known[at], h.head_dim, &cache.pool[at]);
        }
      }
      std::fill_n(blocks, std::min(begin / block_size, seq.num_blocks), 0);
    }
    return cache;
  }
  Scene(Check& c, Heads h, u32 block_size, const How& how, const Batch& made)
      : batch(made),
        cache(with_garbage(h, block_size, how, batch)),
        // Queries are rounded on the way to the tensor cores; start from what is not changed by it.
        qkv(rounded(Random(h.head_dim).normals(size_t{batch.rows} * h.width(), 1.5f))),
        sinks(Random(9).normals(h.heads)),
        out(c.room<O>(size_t{batch.rows} * h.heads * h.head_dim)),
        dqkv(c.put(qkv)),
        dsinks(c.put(sinks)),
        pool(c.put(cache.pool)),
        table(c.put(batch.table)),
        row_seq(c.put(batch.row_seq)),
        seqs(c.put(batch.seqs)),
        how(how),
        scale(1 / std::sqrt(static_cast<float>(h.head_dim))) {
    want = attention(cache, batch, qkv, how, sinks, scale);
  }
  AttentionArgs args(u64 work, u64 count, u64 partial) const {
    const Heads& h = cache.h;
    return {out.pointer(), dqkv.pointer(), pool.pointer(), table.pointer(), seqs.pointer(),
            row_seq.pointer(), how.sinks ? dsinks.pointer() : 0, work, count, partial,
            cache.block_stride(), cache.k_offset(), cache.v_offset(), h.heads, h.kv_heads,
            h.head_dim, cache.block_size, h.width(), how.window, scale, how.softcap};
  }
};

std::string text(Heads h, u32 block_size, const How& how) {
  return std::to_string(h.heads) + "/" + std::to_string(h.kv_heads) + "x" +
         std::to_string(h.head_dim) + " blocks of " + std::to_string(block_size) + " window " +
         std::to_string(how.window) + (how.softcap != 0 ? " softcap" : "") +
         (how.sinks ? " sinks" : "");
}

template <class O>
const char* suffix() {
  return sizeof(O) == 2 ? "_bf16" : "_f32";
}

// Weights are rounded to bf16 before they meet the values: 2^-9 of values of size 1 or so.
constexpr float kAbsolute = 0.02f;

// Fewer blocks than shares by default; `more`: more, for which the list has entries.
template <class O>
void decode(Check& c, Heads h, u32 block_size, u32 split, const How& how, u32 longest = 130,
            bool more = false) {
  Batch batch({{0, 1}, {block_size - 1, 1}, {block_size, 1}, {longest, 1}, {0, 0}, {63, 1}},
              block_size, h.head_dim);
  Scene<O> s(c, h, block_size, how, batch);
  std::vector<std::vector<Work>> shares;
  std::vector<Work> merges;
  u32 partials = 0;
  for (u32 row = 0; row < batch.rows; row++) {
    u32 end = batch.positions[row] + 1;
    u32 begin = how.window && end > how.window ? end - how.window : 0;
    u32 pieces = ceil_div(end - begin, split), first = partials;
    for (u32 i = 0; i < pieces; i++) {
      u32 from = begin + i * split, partial = pieces > 1 ? partials++ : kNone;
      const Work piece = {batch.row_seq[row], row,   from, std::min(end, from + split),
                          partial,            kNone, {}};
      // Shares of one piece, two and three in turn, of whole rows and of parts.
      if (shares.empty() || shares.back().size() == 1 + (shares.size() - 1) % 3) {
        shares.push_back({});
      }
      shares.back().push_back(piece);
    }
    if (pieces > 1) merges.push_back({0, row, first, partials, 0, kNone, {}});
  }
  const std::vector<Work> work = chained(shares);
  const u32 num_shares = static_cast<u32>(shares.size());
  c.shape(text(h, block_size, how) + " split " + std::to_string(split));
  auto dwork = c.put(work), dmerges = c.put(merges);
  auto count = c.put(std::vector<u32>{num_shares});
  auto merge_count = c.put(std::vector<u32>{static_cast<u32>(merges.size())});
  auto partial = c.room<float>(size_t{partials} * h.heads * (h.head_dim + 2));
  const u32 d = h.head_dim, warps = d <= 128 ? 4 : 2;
  const u32 shared = (warps * 2 * 32 + 16) * (d + 8) * 2;
  std::string name = "decode_attention_" + std::to_string(d) + suffix<O>();
  u32 tiles = h.kv_heads * ceil_div(h.heads / h.kv_heads, 16);
  const u32 blocks = more ? static_cast<u32>(work.size()) : std::max(num_shares - 1, 1u);
  const auto args = s.args(dwork.pointer(), count.pointer(), partial.pointer());
  c.run(name, {blocks, tiles}, warps * 32, shared, args);
  if (!merges.empty()) {
    const u32 merge_blocks = static_cast<u32>(std::max<size_t>(merges.size() - 1, 1));
    c.run(std::string("attention_merge") + suffix<O>(), {merge_blocks, h.heads}, 128, 0,
          s.args(dmerges.pointer(), merge_count.pointer(), partial.pointer()));
  }
  // Graphs launch blocks for which there is no work.
  auto none = c.put(std::vector<u32>{0});
  c.run(name, {blocks, tiles}, warps * 32, shared,
        s.args(dwork.pointer(), none.pointer(), partial.pointer()));
  c.near(s.out, s.want, kAbsolute, 0x1p-7f);
}

template <class O>
void prefill(Check& c, Heads h, u32 block_size, const How& how,
             const std::vector<std::pair<u32, u32>>& lengths) {
  Batch batch(lengths, block_size, h.head_dim);
  Scene<O> s(c, h, block_size, how, batch);
  const u32 d = h.head_dim, warps = d <= 128 ? 8 : 4, tile = d <= 128 ? 64 : 32;
  const u32 shared = (4 * tile + (d <= 128 ? 0 : warps * 16)) * (d + 8) * 2;
  std::vector<Work> work;
  for (u32 i = 0; i < batch.seqs.size(); i++) {
    const Seq& seq = batch.seqs[i];
    for (u32 r = 0; r < seq.query_len; r += warps * 16) {
      work.push_back({i, seq.query_start + r, 0, 0, kNone, kNone, {}});
    }
  }
  c.shape(text(h, block_size, how) + " rows " + std::to_string(batch.rows));
  auto dwork = c.put(work);
  std::string name = "prefill_attention_" + std::to_string(d) + suffix<O>();
  c.run(name, {static_cast<u32>(work.size()), h.heads}, warps * 32, shared,
        s.args(dwork.pointer(), 0, 0));
  c.near(s.out, s.want, kAbsolute, 0x1p-7f);
}

// The same by the kernels for Hopper, which take the cache as a tensor.
template <class O>
void prefill_sm90(Check& c, Heads h, u32 block_size, const How& how,
                  const std::vector<std::pair<u32, u32>>& lengths) {
  const u32 d = h.head_dim, tile = d <= 128 ? 128 : 64, rows = 128;
  std::string name = "prefill_attention_sm90_" + std::to_string(d) + suffix<O>();
  if (!c.device.has(name)) return;
  Batch batch(lengths, block_size, h.head_dim);
  Scene<O> s(c, h, block_size, how, batch);
  std::vector<Work> work;
  for (u32 i = 0; i < batch.seqs.size(); i++) {
    const Seq& seq = batch.seqs[i];
    for (u32 r = 0; r < seq.query_len; r += rows) {
      work.push_back({i, seq.query_start + r, 0, 0, kNone, kNone, {}});
    }
  }
  c.shape(text(h, block_size, how) + " rows " + std::to_string(batch.rows));
  const Cache<bf16>& cache = s.cache;
  const Tensor layer{s.pool.pointer() + 2 * cache.k_offset(),
                     {d, 2 * h.kv_heads * block_size, cache.num_blocks},
                     {2 * d, 2 * cache.block_stride()}};
  const u32 width = d % 64 == 0 ? 64 : d % 32 == 0 ? 32 : 16;
  const TensorMap map = c.device.boxes(layer, width, std::min(tile, block_size & -block_size));
  auto dwork = c.put(work);
  const u32 shared = 2 * (rows + 4 * tile) * d + 64;
  c.run(name, {static_cast<u32>(work.size()), h.heads}, 384, shared,
        s.args(dwork.pointer(), 0, 0), map);
  c.near(s.out, s.want, kAbsolute, 0x1p-7f);
}

const How kHows[] = {{}, {24, 0, false}, {0, 5, false}, {0, 0, true}, {50, 3, true}};

}  // namespace

CHECK(decode_head_sizes) {
  for (u32 d : {64u, 80u, 96u, 128u, 192u, 256u}) {
    decode<bf16>(c, {4, 2, d}, 16, 64, {});
    decode<float>(c, {3, 1, d}, 24, 1024, {0, 2, true});
    // Each way in which warps share partials.
    for (u32 pieces : {17u, 70u}) {
      decode<bf16>(c, {1, 1, d}, 16, 16, {0, 0, true}, pieces * 16 - 1);
    }
  }
  decode<float>(c, {4, 1, 128}, 16, 144, {200, 0, true}, 290);
  decode<bf16>(c, {20, 1, 128}, 16, 64, {0, 0, true});
}

CHECK(decode_variants) {
  for (const How& how : kHows) {
    for (u32 block_size : {8u, 16u, 40u}) decode<float>(c, {8, 2, 64}, block_size, 48, how);
    decode<float>(c, {8, 2, 64}, 16, 48, how, 130, true);
  }
  // Pieces long enough for the two stages to alternate in every warp.
  for (u32 block_size : {8u, 24u}) decode<bf16>(c, {4, 1, 64}, block_size, 512, {}, 300);
  decode<float>(c, {4, 1, 64}, 16, 144, {200, 0, true}, 290);
  // Groups of one head, of seven, and of more than the tensor core has rows.
  decode<float>(c, {2, 2, 64}, 16, 64, {});
  decode<float>(c, {7, 1, 64}, 16, 16, {});
  decode<bf16>(c, {20, 1, 64}, 16, 64, {0, 0, true});
}

// As many partials as are on their way at once, and more.
CHECK(decode_merges) {
  for (u32 pieces : {2u, 17u, 33u, 70u}) {
    decode<bf16>(c, {2, 1, 64}, 16, 16, {}, pieces * 16 - 1);
  }
}

CHECK(prefill_head_sizes) {
  for (u32 d : {64u, 80u, 96u, 128u, 192u, 256u}) {
    prefill<bf16>(c, {2, 1, d}, 16, {}, {{0, 5}, {33, 40}});
    prefill<float>(c, {1, 1, d}, 24, {20, 2, true}, {{70, 65}});
  }
}

CHECK(prefill_variants) {
  for (const How& how : kHows) {
    prefill<float>(c, {2, 1, 64}, 8, how, {{0, 1}, {15, 17}, {0, 0}, {0, 131}, {64, 64}});
  }
  prefill<bf16>(c, {2, 2, 128}, 40, {}, {{100, 130}});
}

CHECK(prefill_sm90_head_sizes) {
  for (u32 d : {64u, 80u, 96u, 128u, 192u, 256u}) {
    prefill_sm90<bf16>(c, {2, 1, d}, 16, {}, {{0, 5}, {233, 140}});
    prefill_sm90<float>(c, {1, 1, d}, 24, {20, 2, true}, {{270, 65}});
  }
}

CHECK(prefill_sm90_variants) {
  // Few rows after many positions, where each stage is used again and again.
  for (const How& how : kHows) {
    prefill_sm90<float>(c, {2, 1, 64}, 8, how, {{0, 1}, {15, 17}, {0, 0}, {0, 131}, {700, 64}});
  }
  for (u32 block_size : {16u, 40u, 64u, 256u}) {
    prefill_sm90<bf16>(c, {4, 2, 64}, block_size, {300, 0, false}, {{600, 150}, {127, 1}});
  }
  prefill_sm90<bf16>(c, {2, 2, 128}, 32, {}, {{500, 130}});
}
