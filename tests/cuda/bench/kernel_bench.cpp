// Times the kernels at the shapes of Llama-3.1-8B, each against what the device can do at best: its
// copy speed, measured here, or the work done.
//
//   kernel_bench --cuda libcuda.so.1 --nvrtc libnvrtc.so.13 [--sources kernels]
//                [--only skinny] [--small 1]
//
// One JSON object a line. With --small tiny shapes, for a dry run on the stand-in.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>

#include "../checks/paged.h"

namespace {

struct Bench {
  Device& device;
  bool small;
  double copy_speed = 0;  // bytes a second

  int repeats() const { return small ? 1 : 20; }

  template <class... A>
  void launch(const std::string& kernel, Grid grid, unsigned block, unsigned shared,
              const A&... args) {
    auto values = std::make_tuple(argument(args)...);
    std::apply(
        [&](auto&... each) {
          void* parameters[] = {&each...};
          device.launch(kernel, grid, block, shared, parameters);
        },
        values);
  }
  // Seconds of one call, warm.
  double seconds(const std::function<void()>& work) {
    for (int i = 0; i < (small ? 1 : 3); i++) work();
    device.synchronize();
    return device.time(repeats(), work);
  }
  void print(const std::string& name, const std::string& shape, double s, double bytes,
             double flops) {
    std::printf("{\"kernel\": \"%s\", \"shape\": \"%s\", \"us\": %.3f, \"gb_per_s\": %.1f, "
                "\"share_of_copy\": %.3f, \"tflop_per_s\": %.2f}\n",
                name.c_str(), shape.c_str(), s * 1e6, bytes / s / 1e9, bytes / s / copy_speed,
                flops / s / 1e12);
    std::fflush(stdout);
  }
};

template <class T>
Buffer<T> zeros(Device& device, size_t n) {
  return Buffer<T>(device, std::vector<T>(n));
}

// Products of zeros are faster than those of numbers: the card's power sets its clock. A million
// of them, again and again.
template <class T>
Buffer<T> numbers(Device& device, size_t n) {
  const std::vector<T> some = Random(7).normals<T>(std::min<size_t>(n, 1u << 20));
  std::vector<T> all(n);
  for (size_t i = 0; i < n; i++) all[i] = some[i % some.size()];
  return Buffer<T>(device, all);
}

void copy_speed(Bench& b) {
  const size_t bytes = b.small ? size_t{1} << 16 : size_t{1} << 30;
  auto pool = zeros<u32>(b.device, bytes / 2);
  std::vector<u32> pairs = {0, 1};
  Buffer<u32> dpairs(b.device, pairs);
  const u64 block_bytes = bytes;
  // Enough blocks for every multiprocessor.
  double s = b.seconds([&] {
    b.launch("copy_blocks", {b.device.multiprocessors() * 16}, 256, 0, pool, dpairs, block_bytes);
  });
  b.copy_speed = 2.0 * static_cast<double>(bytes) / s;
  b.print("copy_blocks", std::to_string(bytes >> 20) + " MiB", s, 2.0 * static_cast<double>(bytes),
          0);
}

// As the backend cuts products (src/backend/cuda/product.rs).
u32 best_splits(u32 n, u32 k, u32 slots) {
  u32 best = 1;
  double share = 0;
  for (u32 splits = 1; splits <= std::max(1u, k / 1024); splits++) {
    const u32 sets = k / splits <= 1024 ? 2 : 1;
    const u32 units = (n + 16 * sets - 1) / (16 * sets) * splits;
    const u32 waves = (units + slots - 1) / slots;
    const double filled = static_cast<double>(units) / (waves * slots);
    if (filled > 1.1 * share) {
      best = splits;
      share = filled;
    }
  }
  return best;
}

void skinny(Bench& b) {
  const u32 shapes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336},
                           {128256, 4096}};
  for (auto [n0, k0] : shapes) {
    const u32 n = b.small ? 64 : n0, k = b.small ? 256 : k0;
    // Several copies, so that the second-level cache does not hold the weights.
    const u32 copies = b.small ? 1 : std::max<u32>(2, (256u << 20) / (n * k * 2) + 1);
    auto w = numbers<bf16>(b.device, size_t{copies} * n * k);
    auto x = numbers<bf16>(b.device, size_t{16} * k);
    auto y = zeros<float>(b.device, size_t{16} * n);
    const u32 slots = b.device.multiprocessors(), splits = best_splits(n, k, slots);
    const u32 blocks = std::min(slots, (n + 15) / 16 * splits);
    auto partial = zeros<float>(b.device, size_t{splits} * 16 * n);
    auto tickets = zeros<u32>(b.device, 1);
    for (u32 rows : {1u, 8u, 16u}) {
      u32 turn = 0;
      double s = b.seconds([&] {
        u64 weights = w.pointer() + u64{turn++ % copies} * n * k * 2;
        u64 p = splits > 1 ? partial.pointer() : kNull;
        b.launch(rows <= 8 ? "skinny_gemm_8" : "skinny_gemm_16", {blocks}, 512, 0, y, x, weights,
                 kNull, p, tickets, rows, n, k, 0u, splits);
        if (splits > 1) {
          b.launch("skinny_sum", {(n + 255) / 256, rows}, 256, 0, y, kNull, p, splits, n, 0u);
        }
      });
      b.print("skinny_gemm", std::to_string(rows) + "x" + std::to_string(n) + "x" +
              std::to_string(k), s, 2.0 * n * k, 2.0 * rows * n * k);
    }
  }
}

// Buffers of one layer's attention over `seqs` sequences of `length` positions each.
struct Layer {
  Heads h{32, 8, 128};
  u32 block_size, seqs, length, query;
  Buffer<bf16> pool;
  Buffer<float> qkv;
  Buffer<bf16> out;
  std::vector<Seq> all;
  std::vector<u32> table;

  Layer(Device& device, u32 seqs, u32 length, u32 query, u32 block_size = 16)
      : block_size(block_size),
        seqs(seqs),
        length(length),
        query(query),
        pool(numbers<bf16>(device, size_t{seqs} * blocks() * stride())),
        qkv(numbers<float>(device, size_t{seqs} * query * h.width())),
        out(zeros<bf16>(device, size_t{seqs} * query * h.heads * h.head_dim)) {
    for (u32 i = 0; i < seqs; i++) {
      all.push_back({i * query, query, length - query, i * blocks(), blocks(), {}});
    }
    table = Random(1).permutation(seqs * blocks());
  }
  u32 blocks() const { return (length + block_size - 1) / block_size; }
  u64 stride() const { return u64{2} * h.kv_heads * block_size * h.head_dim; }
  AttentionArgs args(u64 table, u64 seqs, u64 work, u64 count, u64 partial) const {
    return {out.pointer(), qkv.pointer(), pool.pointer(), table, seqs, 0, 0, work, count, partial,
            stride(), 0, stride() / 2, h.heads, h.kv_heads, h.head_dim, block_size, h.width(), 0,
            0.088f, 0};
  }
};

// Rows of `length` positions each, cut as the backend cuts them (src/backend/cuda/work.rs).
struct Cut {
  std::vector<std::vector<Work>> shares;
  std::vector<Work> merges;
  u32 places = 0;

  Cut(u32 rows, u32 length, u32 most) {
    const u32 start = 32, sliver = 32, positions = (length + 15) / 16 * 16;
    u32 left = std::min(most, rows * std::max(positions / 64, 1u)), room = 0;
    u32 cost = rows * (start + positions);
    bool full = true;
    for (u32 row = 0; row < rows; row++) {
      const u32 first = places;
      for (u32 from = 0; from < positions;) {
        if (full) {
          room = (cost + (left - 1) * start + left - 1) / left;
          shares.push_back({});
        }
        const u32 rest = positions - from;
        u32 taken = (std::max(room, start) - start + 8) / 16 * 16;
        if (full) taken = std::max(taken, sliver);
        if (taken < sliver) taken = 0;
        if (left == 1 || (taken > 0 && rest < taken + sliver)) taken = rest;
        full = taken < rest;
        if (full) left--;
        if (taken == 0) continue;
        const u32 place = taken == positions ? kNone : places++;
        shares.back().push_back({row, row, from, std::min(length, from + taken), place, kNone, {}});
        cost -= full ? taken : start + taken;
        room -= std::min(room, start + taken);
        from += taken;
      }
      if (places > first) merges.push_back({row, row, first, places, 0, kNone, {}});
    }
  }
};

void decode(Bench& b) {
  const u32 shapes[][2] = {{1, 1024}, {8, 1024}, {32, 1024}, {128, 1024}, {256, 1024}, {1, 32768},
                           {16, 8192}};
  for (auto [seqs0, length0] : shapes) {
    const u32 seqs = b.small ? 2 : seqs0, length = b.small ? 100 : length0;
    Layer l(b.device, seqs, length, 1);
    const Cut cut(seqs, length, std::max(3 * b.device.multiprocessors() / l.h.kv_heads, 1u));
    const u32 shares = static_cast<u32>(cut.shares.size());
    const u32 merges = static_cast<u32>(cut.merges.size());
    Buffer<u32> table(b.device, l.table);
    Buffer<Seq> all(b.device, l.all);
    Buffer<Work> dwork(b.device, chained(cut.shares)), dmerges(b.device, cut.merges);
    Buffer<u32> counts(b.device, std::vector<u32>{shares, merges, 0, 0});
    auto partial = zeros<float>(b.device, size_t{cut.places} * l.h.heads * (l.h.head_dim + 2));
    auto args = l.args(table.pointer(), all.pointer(), dwork.pointer(), counts.pointer(),
                       partial.pointer());
    auto merge = l.args(table.pointer(), all.pointer(), dmerges.pointer(), counts.pointer() + 4,
                        partial.pointer());
    const u32 shared = (4 * 64 + 16) * (128 + 8) * 2;
    double s = b.seconds([&] {
      b.launch("decode_attention_128_bf16", {shares, l.h.kv_heads}, 128, shared, args);
      if (merges > 0) b.launch("attention_merge_bf16", {merges, l.h.heads}, 128, 0, merge);
    });
    double bytes = 2.0 * 2 * seqs * length * l.h.kv_heads * l.h.head_dim;
    b.print("decode_attention", std::to_string(seqs) + " of " + std::to_string(length), s, bytes,
            4.0 * seqs * length * l.h.heads * l.h.head_dim);
  }
}

void prefill(Bench& b) {
  const u32 shapes[][2] = {{1024, 16}, {8192, 16}, {8192, 128}};
  for (auto [length0, block_size] : shapes) {
    const u32 length = b.small ? 130 : length0;
    Layer l(b.device, 1, length, length, block_size);
    std::vector<Work> work;
    for (u32 r = 0; r < length; r += 128) {
      work.push_back({0, r, 0, 0, kNone, kNone, {}});
    }
    std::reverse(work.begin(), work.end());
    Buffer<u32> table(b.device, l.table);
    Buffer<Seq> all(b.device, l.all);
    Buffer<Work> dwork(b.device, work);
    auto args = l.args(table.pointer(), all.pointer(), dwork.pointer(), 0, 0);
    const std::string shape = std::to_string(length) + ", blocks of " + std::to_string(block_size);
    double s = b.seconds([&] {
      b.launch("prefill_attention_128_bf16", {static_cast<u32>(work.size()), l.h.heads}, 256,
               256 * (128 + 8) * 2, args);
    });
    const double sums = 2.0 * length * length * l.h.heads * l.h.head_dim;
    b.print("prefill_attention", shape, s, 0, sums);
    const std::string hopper = "prefill_attention_sm90_128_bf16";
    if (!b.device.has(hopper)) continue;
    const TensorMap map = b.device.boxes({l.pool.pointer(),
                                          {l.h.head_dim, 2 * l.h.kv_heads * l.block_size,
                                           l.blocks()},
                                          {2 * l.h.head_dim, 2 * l.stride()}},
                                         64, l.block_size);
    s = b.seconds([&] {
      b.launch(hopper, {static_cast<u32>(work.size()), l.h.heads}, 384,
               2 * (128 + 4 * 128) * 128 + 64, args, map);
    });
    b.print("prefill_attention_sm90", shape, s, 0, sums);
  }
}

void rows(Bench& b) {
  const u32 width = b.small ? 64 : 4096, wide = b.small ? 64 : 14336;
  for (u32 n0 : {1u, 128u, 4096u}) {
    const u32 n = b.small ? 2 : n0;
    auto x = numbers<float>(b.device, size_t{n} * 2 * wide);
    auto weight = numbers<float>(b.device, width);
    auto out = zeros<bf16>(b.device, size_t{n} * wide);
    double s = b.seconds([&] {
      b.launch("rms_norm_bf16", {n}, 256, 0, out, x, weight, width, 1e-5f);
    });
    b.print("rms_norm", std::to_string(n) + "x" + std::to_string(width), s, 6.0 * n * width, 0);
    s = b.seconds([&] {
      b.launch("gated_activation_bf16", {(wide + 1023) / 1024, n}, 256, 0, out, x, wide, 0u);
    });
    b.print("gated_activation", std::to_string(n) + "x" + std::to_string(wide), s,
            10.0 * n * wide, 0);
  }
}

void sampling(Bench& b) {
  const u32 vocab = b.small ? 500 : 128256;
  for (u32 n0 : {1u, 256u}) {
    const u32 n = b.small ? 1 : n0;
    Buffer<float> logits(b.device, Random(3).normals(size_t{n} * vocab, 2.0f));
    auto token = zeros<u32>(b.device, n);
    struct Row {
      u64 seed;
      u32 position;
      float temperature;
      u32 top_k;
      float top_p, ln_min_p;
      u32 rest[9];
    };
    const std::pair<const char*, Row> kinds[] = {{"all tokens", {1, 1, 1, 0, 1, -INFINITY, {}}},
                                                 {"top 50", {1, 1, 0.8f, 50, 0.95f, -INFINITY, {}}},
                                                 {"top p 0.9", {1, 1, 1, 0, 0.9f, -INFINITY, {}}}};
    for (const auto& [name, row] : kinds) {
      Buffer<Row> how(b.device, std::vector<Row>(n, row));
      double s = b.seconds([&] {
        b.launch("sample", {n}, 1024, 18960, token, logits, how, vocab);
      });
      b.print("sample", std::to_string(n) + " rows, " + name, s, 4.0 * n * vocab, 0);
    }
    double s = b.seconds([&] {
      b.launch("argmax", {n}, 512, 0, token, kNull, kNull, logits, vocab);
    });
    b.print("argmax", std::to_string(n) + " rows", s, 4.0 * n * vocab, 0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string cuda = "libcuda.so.1", nvrtc = "libnvrtc.so.13", sources = "kernels";
  std::string only;
  bool small = false;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i];
    if (key == "--cuda") cuda = argv[i + 1];
    if (key == "--nvrtc") nvrtc = argv[i + 1];
    if (key == "--sources") sources = argv[i + 1];
    if (key == "--only") only = argv[i + 1];
    if (key == "--small") small = argv[i + 1][0] == '1';
  }
  try {
    Device device(cuda, nvrtc, {sources});
    std::printf("{\"device\": \"%s\", \"sm\": %u, \"multiprocessors\": %u, \"kernels\": %zu, "
                "\"compile_s\": %.2f}\n",
                device.name().c_str(), device.capability(), device.multiprocessors(),
                device.kernels().size(), device.compile_seconds());
    Bench bench{device, small};
    copy_speed(bench);
    const std::pair<const char*, void (*)(Bench&)> parts[] = {
        {"skinny", skinny}, {"decode", decode}, {"prefill", prefill}, {"rows", rows},
        {"sampling", sampling}};
    for (auto [name, part] : parts) {
      if (only.empty() || only == name) part(bench);
    }
  } catch (const std::exception& e) {
    std::printf("{\"error\": \"%s\"}\n", e.what());
    return 1;
  }
  return 0;
}
