// The wrappers of ptx.cuh that sm_90a alone has, against what the PTX manual says. On other devices
// their kernels are not compiled, and there is nothing to check.
#include "check.h"

CHECK(wrapper_boxes) {
  if (!c.device.has("wrap_boxes")) return;
  // [3][20][128] with gaps; the box takes columns 64 .. 127.
  const u32 pitch = 136, plane = 24 * pitch;
  std::vector<unsigned short> x(3 * plane);
  for (u32 i = 0; i < x.size(); i++) x[i] = static_cast<unsigned short>(i * 7 + 1);
  auto dx = c.put(x);
  const Tensor tensor{dx.pointer(), {128, 20, 3}, {2 * pitch, 2 * plane}};
  for (u32 y : {2u, 9u, 20u}) {
    std::vector<unsigned short> want(2048);
    for (u32 i = 0; i < 2048; i++) {
      u32 box = i / 1024, row = i / 64 % 16, column = i % 64, at = (box ? y : 3) + row;
      // The pattern: piece p of row r of eight lies at piece p ^ r.
      u32 place = box * 1024 + row * 64 + ((column / 8 ^ row % 8) * 8) + column % 8;
      want[place] = at < 20 ? x[(box + 1) * plane + at * pitch + 64 + column] : 0;
    }
    std::vector<u32> words(1024);
    std::memcpy(words.data(), want.data(), 4096);
    auto out = c.room<u32>(1024);
    c.shape("from row " + std::to_string(y));
    c.run("wrap_boxes", {1}, 32, 4112, out, c.device.boxes(tensor, 64, 16), y);
    c.equal(out, words);
  }
}

namespace {

// Small integers: exact in any order of sums.
std::vector<float> integers(u64 seed, size_t n) {
  Random random(seed);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(static_cast<int>(random.below(17)) - 8);
  return v;
}

std::vector<bf16> rounded(const std::vector<float>& v) {
  std::vector<bf16> r;
  for (float x : v) r.push_back(to_bf16(x));
  return r;
}

// a [64][16], b [n][16], rows [16][n]: a b^T + a rows, or the latter alone.
std::vector<float> products(u32 n, const std::vector<float>& a, const std::vector<float>* b,
                            const std::vector<float>& rows) {
  std::vector<float> d(64 * n);
  for (u32 i = 0; i < 64 * n; i++) {
    for (u32 k = 0; k < 16; k++) {
      const float other = (b ? (*b)[i % n * 16 + k] : 0) + rows[k * n + i % n];
      d[i] += a[i / n * 16 + k] * other;
    }
  }
  return d;
}

}  // namespace

CHECK(wrapper_wgmma) {
  const u32 shapes[][2] = {{64, 128}, {64, 64}, {64, 32}, {128, 128}, {128, 32}};
  for (auto [n, r] : shapes) {
    const std::string name = "wrap_wgmma_" + std::to_string(n) + "_" + std::to_string(r);
    if (!c.device.has(name)) return;
    auto a = integers(1, 64 * 16), b = integers(2, n * 16), rows = integers(3, n * 16);
    auto out = c.room<float>(64 * n);
    c.run(name, {1}, 128, (64 + n) * r + n * 32, out, c.put(rounded(a)), c.put(rounded(b)),
          c.put(rounded(rows)));
    c.near(out, products(n, a, &b, rows), 0);
  }
  const u32 wide[][2] = {{80, 32}, {96, 64}, {192, 128}, {256, 128}};
  for (auto [n, r] : wide) {
    auto a = integers(4, 64 * 16), rows = integers(5, n * 16);
    auto out = c.room<float>(64 * n);
    c.run("wrap_transposed_" + std::to_string(n) + "_" + std::to_string(r), {1}, 128, n * 32, out,
          c.put(rounded(a)), c.put(rounded(rows)));
    c.near(out, products(n, a, nullptr, rows), 0);
  }
}

CHECK(wrapper_registers) {
  if (!c.device.has("wrap_registers")) return;
  std::vector<u32> want(256);
  for (u32 i = 0; i < 256; i++) want[i] = i;
  auto out = c.room<u32>(256);
  c.run("wrap_registers", {1}, 256, 0, out);
  c.equal(out, want);
}
