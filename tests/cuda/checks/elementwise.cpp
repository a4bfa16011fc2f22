// Embeddings, activations, biases, conversions, gathers, copies and fills of blocks.
#include "check.h"

namespace {

double activation(u32 kind, double x) {
  switch (kind) {
    case 0: return x / (1 + std::exp(-x));
    case 1: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case 2: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    default: return x > 0 ? x : 0;
  }
}

struct f16 {
  unsigned short bits;
};
// Exact halves only: small integers over 64.
f16 to_f16(float x) {
  unsigned u;
  std::memcpy(&u, &x, 4);
  if (x == 0) return {0};
  int exponent = static_cast<int>(u >> 23 & 255) - 112;
  return {static_cast<unsigned short>((u >> 16 & 0x8000) | (exponent << 10) | (u >> 13 & 1023))};
}
void narrow(float x, f16& y) { y = to_f16(x); }
using ::narrow;

template <class T>
void embed(Check& c, const char* type, u32 rows, u32 width, u32 table_rows) {
  Random random(width);
  std::vector<T> table(static_cast<size_t>(table_rows) * width);
  std::vector<float> wide;
  for (T& t : table) {
    float x = static_cast<float>(static_cast<int>(random.below(2001)) - 1000) / 64;
    x = round_to_bf16(x);
    narrow(x, t);
    wide.push_back(x);
  }
  std::vector<u32> ids;
  for (u32 i = 0; i < rows; i++) ids.push_back(random.below(table_rows));
  ids[rows - 1] = table_rows;  // past the table
  std::vector<float> want, x = random.normals(static_cast<size_t>(rows) * width), sum = x;
  for (u32 r = 0; r < rows; r++) {
    for (u32 i = 0; i < width; i++) {
      float v = ids[r] < table_rows ? wide[ids[r] * static_cast<size_t>(width) + i] : 0;
      want.push_back(v);
      sum[static_cast<size_t>(r) * width + i] += v;
    }
  }
  c.shape(std::to_string(rows) + "x" + std::to_string(width));
  auto out = c.room<float>(want.size());
  auto dtable = c.put(table);
  auto dids = c.put(ids);
  c.run(std::string("embed_") + type, {rows}, 256, 0, out, dtable, dids, width, table_rows);
  c.near(out, want, 0);
  auto dx = c.put(x);
  c.run(std::string("add_position_") + type, {rows}, 256, 0, dx, dtable, dids, width, table_rows);
  c.near(dx, sum, 1e-6f);
}

template <class O>
void activations(Check& c, const char* type, u32 rows, u32 width, float relative) {
  Random random(rows + width);
  std::vector<float> gate_up = random.normals(static_cast<size_t>(rows) * 2 * width, 3.0f);
  gate_up[0] = -200;
  auto dgate = c.put(gate_up);
  for (u32 kind = 0; kind < 4; kind++) {
    c.shape(std::to_string(rows) + "x" + std::to_string(width) + " kind " + std::to_string(kind));
    std::vector<float> want, gated;
    for (float x : gate_up) want.push_back(static_cast<float>(activation(kind, x)));
    for (u32 r = 0; r < rows; r++) {
      for (u32 i = 0; i < width; i++) {
        size_t at = static_cast<size_t>(r) * 2 * width + i;
        gated.push_back(static_cast<float>(activation(kind, gate_up[at]) * gate_up[at + width]));
      }
    }
    auto out = c.room<O>(want.size());
    u64 count = want.size();
    c.run(std::string("activate_") + type, {ceil_div(count, 1024)}, 256, 0, out, dgate, count,
          kind);
    c.near(out, want, 2e-6f, relative);
    auto two = c.room<O>(gated.size());
    c.run(std::string("gated_activation_") + type, {ceil_div(width, 1024), rows}, 256, 0, two,
          dgate, width, kind);
    c.near(two, gated, 2e-5f, relative);
  }
}

template <class T, class O>
void gather(Check& c, const char* name, u32 rows, u32 width) {
  Random random(width);
  auto x = random.normals<T>(static_cast<size_t>(rows) * width);
  std::vector<u32> picked = {rows - 1, 0, rows / 2, rows - 1};
  std::vector<O> want;
  for (u32 r : picked) {
    for (u32 i = 0; i < width; i++) {
      O o;
      narrow(widen(x[static_cast<size_t>(r) * width + i]), o);
      want.push_back(o);
    }
  }
  c.shape(std::to_string(rows) + "x" + std::to_string(width));
  auto out = c.room<O>(want.size());
  c.run(name, {4}, 256, 0, out, c.put(x), c.put(picked), width);
  c.equal(out, want);
}

template <class T>
void fill(Check& c, const char* name, u32 elements) {
  u32 blocks = 5;
  Random random(elements);
  auto pool = random.normals<T>(static_cast<size_t>(blocks) * elements);
  auto want = pool;
  std::vector<u32> picked = {4, 1};
  for (u32 b : picked) {
    for (u32 i = 0; i < elements; i++) narrow(-2.5f, want[static_cast<size_t>(b) * elements + i]);
  }
  c.shape(std::to_string(elements));
  auto d = c.put(pool);
  u64 count = elements;
  c.run(name, {64, 2}, 256, 0, d, c.put(picked), count, -2.5f);
  c.equal(d, want);
}

}  // namespace

CHECK(embeddings) {
  for (auto [rows, width] : {std::pair<u32, u32>{1, 1}, {3, 63}, {2, 256}, {5, 1027}, {2, 4100}}) {
    embed<float>(c, "f32", rows, width, 9);
    embed<bf16>(c, "bf16", rows, width, 9);
    embed<f16>(c, "f16", rows, width, 9);
  }
}

CHECK(activation_functions) {
  for (auto [rows, width] : {std::pair<u32, u32>{1, 1}, {3, 255}, {2, 1025}}) {
    activations<float>(c, "f32", rows, width, 2e-5f);
    activations<bf16>(c, "bf16", rows, width, 0x1p-7f);
  }
}

CHECK(biases) {
  for (auto [rows, width] : {std::pair<u32, u32>{1, 1}, {3, 255}, {2, 2049}}) {
    Random random(width);
    auto y = random.normals(static_cast<size_t>(rows) * width), bias = random.normals(width);
    auto want = y;
    for (size_t i = 0; i < want.size(); i++) want[i] += bias[i % width];
    c.shape(std::to_string(rows) + "x" + std::to_string(width));
    auto d = c.put(y);
    c.run("add_bias", {ceil_div(width, 1024), rows}, 256, 0, d, c.put(bias), width);
    c.near(d, want, 0);
  }
}

CHECK(conversions) {
  for (size_t n : {1u, 1023u, 4097u}) {
    Random random(n);
    auto x = random.normals(n, 100.0f);
    // Ties, the largest, infinities, NaN.
    const u32 special[] = {0x3f808000, 0x3f818000, 0x7f7fffff, 0xff800000, 0x7fc00000, 1, 0};
    for (size_t i = 0; i < 7 && i < n; i++) std::memcpy(&x[i], &special[i], 4);
    std::vector<bf16> want;
    for (float v : x) want.push_back(to_bf16(v));
    c.shape(std::to_string(n));
    auto out = c.room<bf16>(n);
    u64 count = n;
    c.run("convert_bf16", {ceil_div(n, 1024)}, 256, 0, out, c.put(x), count);
    c.equal(out, want);
  }
}

CHECK(gathers) {
  for (u32 width : {1u, 77u, 512u, 1030u, 4100u}) {
    gather<float, float>(c, "gather_rows_f32_f32", 7, width);
    gather<float, bf16>(c, "gather_rows_f32_bf16", 7, width);
    gather<bf16, bf16>(c, "gather_rows_bf16_bf16", 7, width);
  }
}

CHECK(blocks_copied) {
  for (u32 bytes : {16u, 4096u, 100000u * 16u}) {
    Random random(bytes);
    std::vector<unsigned char> pool(static_cast<size_t>(bytes) * 4);
    for (auto& b : pool) b = static_cast<unsigned char>(random.bits());
    auto want = pool;
    std::memcpy(&want[bytes * 3u], &pool[0], bytes);
    std::memcpy(&want[bytes * 1u], &pool[bytes * 2u], bytes);
    c.shape(std::to_string(bytes));
    auto d = c.put(pool);
    u64 size = bytes;
    c.run("copy_blocks", {64, 2}, 256, 0, d, c.put(std::vector<u32>{0, 3, 2, 1}), size);
    c.equal(d, want);
  }
}

CHECK(blocks_filled) {
  for (u32 elements : {1u, 1000u, 70000u}) {
    fill<float>(c, "fill_blocks_f32", elements);
    fill<bf16>(c, "fill_blocks_bf16", elements);
  }
}
