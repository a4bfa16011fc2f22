// Products of matrices against sums in f64.
#include "check.h"

namespace {

struct f16 {
  unsigned short bits;
};
float widen(f16 x) {
  int exponent = x.bits >> 10 & 31;
  float part = static_cast<float>((x.bits & 1023) | (exponent ? 1024 : 0));
  float value = std::ldexp(part, (exponent ? exponent : 1) - 25);
  return x.bits & 0x8000 ? -value : value;
}
using ::widen;

std::vector<float> product(const std::vector<float>& x, const std::vector<float>& w,
                           const std::vector<float>& bias, const std::vector<float>& y, u32 rows,
                           u32 n, u32 k) {
  std::vector<float> out;
  for (u32 r = 0; r < rows; r++) {
    for (u32 i = 0; i < n; i++) {
      double sum = 0;
      for (u32 j = 0; j < k; j++) sum += double{x[size_t{r} * k + j]} * w[size_t{i} * k + j];
      if (!bias.empty()) sum += bias[i];
      if (!y.empty()) sum += y[size_t{r} * n + i];
      out.push_back(static_cast<float>(sum));
    }
  }
  return out;
}

template <class T>
void gemm(Check& c, const char* name, u32 rows, u32 n, u32 k) {
  Random random(rows + n + k);
  auto x = random.normals(size_t{rows} * k), bias = random.normals(n);
  auto y = random.normals(size_t{rows} * n);
  std::vector<T> w(size_t{n} * k);
  std::vector<float> wide;
  for (T& t : w) {
    if constexpr (sizeof(T) == 4) {
      t = random.normal();
    } else {
      // Any finite number of either half type, of moderate size.
      t.bits = static_cast<unsigned short>((random.bits() & 0x83ff) | 0x3800);
    }
    wide.push_back(widen(t));
  }
  auto dx = c.put(x), dbias = c.put(bias);
  auto dw = c.put(w);
  for (u32 accumulate : {0u, 1u}) {
    for (bool with_bias : {false, true}) {
      c.shape(std::to_string(rows) + "x" + std::to_string(n) + "x" + std::to_string(k));
      auto want = product(x, wide, with_bias ? bias : std::vector<float>{},
                          accumulate ? y : std::vector<float>{}, rows, n, k);
      auto dy = c.put(y);
      u64 b = with_bias ? dbias.pointer() : kNull;
      c.run(name, {ceil_div(n, 64), ceil_div(rows, 64)}, 256, 0, dy, dx, dw, b, rows, n, k,
            accumulate);
      c.near(dy, want, 2e-5f * std::sqrt(static_cast<float>(k)), 1e-5f);
    }
  }
}

}  // namespace

CHECK(gemm_tiled) {
  const u32 shapes[][3] = {{1, 1, 1}, {1, 65, 17}, {63, 64, 16}, {65, 130, 100}, {2, 7, 300}};
  for (auto& s : shapes) {
    gemm<float>(c, "gemm_f32", s[0], s[1], s[2]);
    gemm<bf16>(c, "gemm_bf16", s[0], s[1], s[2]);
    gemm<f16>(c, "gemm_f16", s[0], s[1], s[2]);
  }
}

// A row is the same to the bit, whatever rows are beside it.
CHECK(gemm_rows_are_independent) {
  Random random(4);
  const u32 rows = 70, n = 33, k = 129;
  auto x = random.normals(rows * k), w = random.normals(n * k);
  auto dw = c.put(w), all = c.room<float>(rows * n), one = c.room<float>(n);
  c.run("gemm_f32", {1, 2}, 256, 0, all, c.put(x), dw, kNull, rows, n, k, 0u);
  std::vector<float> last(x.end() - k, x.end());
  c.run("gemm_f32", {1, 1}, 256, 0, one, c.put(last), dw, kNull, 1u, n, k, 0u);
  auto values = all.values();
  c.equal(one, std::vector<float>(values.end() - n, values.end()));
}

namespace {

void skinny(Check& c, u32 rows, u32 n, u32 k, u32 splits) {
  Random random(rows + n + k);
  auto x = random.normals<bf16>(size_t{rows} * k), w = random.normals<bf16>(size_t{n} * k);
  auto bias = random.normals(n), y = random.normals(size_t{rows} * n);
  std::vector<float> wide_x, wide_w;
  for (bf16 v : x) wide_x.push_back(widen(v));
  for (bf16 v : w) wide_w.push_back(widen(v));
  auto dx = c.put(x), dw = c.put(w);
  auto dbias = c.put(bias), partial = c.room<float>(size_t{splits} * rows * n);
  std::string name = rows <= 8 ? "skinny_gemm_8" : "skinny_gemm_16";
  for (u32 accumulate : {0u, 1u}) {
    c.shape(std::to_string(rows) + "x" + std::to_string(n) + "x" + std::to_string(k) + " in " +
            std::to_string(splits));
    bool with_bias = accumulate != 0 || splits > 1;
    auto want = product(wide_x, wide_w, with_bias ? bias : std::vector<float>{},
                        accumulate ? y : std::vector<float>{}, rows, n, k);
    auto dy = c.put(y);
    auto tickets = c.put(std::vector<u32>{0});
    u64 b = with_bias ? dbias.pointer() : kNull, p = splits > 1 ? partial.pointer() : kNull;
    // A block each and one too many, or several each.
    const u32 units = ceil_div(n, 16) * splits;
    const u32 blocks = accumulate ? ceil_div(units, 3) : units + 1;
    c.run(name, {blocks}, 512, 0, dy, dx, dw, b, p, tickets, rows, n, k, accumulate, splits);
    if (splits > 1) {
      c.run("skinny_sum", {ceil_div(n, 256), rows}, 256, 0, dy, b, p, splits, n, accumulate);
    }
    c.near(dy, want, 2e-5f * std::sqrt(static_cast<float>(k)), 1e-5f);
    c.equal(tickets, std::vector<u32>{0});
  }
}

}  // namespace

CHECK(gemm_skinny) {
  const u32 shapes[][4] = {{1, 16, 128, 1},  {1, 1, 8, 1},      {3, 17, 136, 1},
                           {8, 40, 1024, 1}, {9, 33, 264, 1},   {16, 64, 2048, 1},
                           {2, 300, 520, 2}, {16, 20, 4104, 5}, {5, 16, 128, 4},
                           {7, 49, 1032, 1}, {12, 50, 4104, 1}, {3, 70, 4096, 4}};
  for (auto& s : shapes) skinny(c, s[0], s[1], s[2], s[3]);
}

// A row is the same to the bit, whatever rows are beside it, also across the two kernels.
CHECK(gemm_skinny_rows_are_independent) {
  Random random(5);
  const u32 rows = 13, n = 24, k = 520;
  auto x = random.normals<bf16>(rows * k), w = random.normals<bf16>(n * k);
  auto dw = c.put(w);
  auto all = c.room<float>(rows * n), one = c.room<float>(n);
  auto tickets = c.put(std::vector<u32>{0});
  c.run("skinny_gemm_16", {1}, 512, 0, all, c.put(x), dw, kNull, kNull,
        tickets, rows, n, k, 0u, 1u);
  std::vector<bf16> last(x.end() - k, x.end());
  c.run("skinny_gemm_8", {2}, 512, 0, one, c.put(last), dw, kNull, kNull,
        tickets, 1u, n, k, 0u, 1u);
  auto values = all.values();
  c.equal(one, std::vector<float>(values.end() - n, values.end()));
}
