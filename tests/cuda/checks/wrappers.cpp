// The wrappers of ptx.cuh, one by one, against what the PTX manual says.
#include "check.h"

CHECK(wrapper_conversions) {
  const u32 n = 2048;
  Random random(1);
  std::vector<float> x(n), widened;
  std::vector<unsigned short> halves(n);
  for (u32 i = 0; i < n; i++) {
    u32 bits = random.bits();
    if ((bits & 0x7f800000) == 0x7f800000) bits &= ~0x800000u;  // no infinities or NaNs
    std::memcpy(&x[i], &bits, 4);
    halves[i] = static_cast<unsigned short>(i * 31);
    if ((halves[i] & 0x7c00) == 0x7c00) halves[i] &= 0x83ff;
    int exponent = halves[i] >> 10 & 31;
    float part = static_cast<float>((halves[i] & 1023) | (exponent ? 1024 : 0));
    float value = std::ldexp(part, (exponent ? exponent : 1) - 25);
    widened.push_back(halves[i] & 0x8000 ? -value : value);
  }
  std::vector<bf16> rounded;
  std::vector<u32> packed;
  for (u32 i = 0; i < n; i++) {
    rounded.push_back(to_bf16(x[i]));
    packed.push_back(to_bf16(x[i]).bits | u32{to_bf16(x[(i + 1) % n]).bits} << 16);
  }
  auto r = c.room<bf16>(n);
  auto p = c.room<u32>(n);
  auto w = c.room<float>(n);
  c.run("wrap_convert", {1}, 32, 0, r, p, w, c.put(x), c.put(halves), n);
  c.equal(r, rounded);
  c.equal(p, packed);
  c.near(w, widened, 0);
}

CHECK(wrapper_matrices) {
  std::vector<unsigned short> rows(256);
  for (size_t i = 0; i < 256; i++) rows[i] = static_cast<unsigned short>(i * 257);
  std::vector<u32> plain(128), transposed(128);
  for (u32 lane = 0; lane < 32; lane++) {
    for (u32 m = 0; m < 4; m++) {
      u32 i = lane / 4, j = lane % 4 * 2, at = m * 64;
      plain[lane * 4 + m] = rows[at + i * 8 + j] | u32{rows[at + i * 8 + j + 1]} << 16;
      transposed[lane * 4 + m] = rows[at + j * 8 + i] | u32{rows[at + (j + 1) * 8 + i]} << 16;
    }
  }
  auto a = c.room<u32>(128), b = c.room<u32>(128);
  c.run("wrap_matrices", {1}, 32, 512, a, b, c.put(rows));
  c.equal(a, plain);
  c.equal(b, transposed);
}

CHECK(wrapper_mma) {
  Random random(2);
  // Small integers: exact in any order of sums.
  std::vector<float> a(256), b(128), d(128);
  for (float& x : a) x = static_cast<float>(static_cast<int>(random.below(17)) - 8);
  for (float& x : b) x = static_cast<float>(static_cast<int>(random.below(17)) - 8);
  for (float& x : d) x = static_cast<float>(static_cast<int>(random.below(17)) - 8);
  auto pair = [](float low, float high) {
    return to_bf16(low).bits | u32{to_bf16(high).bits} << 16;
  };
  std::vector<u32> fa, fb;
  std::vector<float> fc, want;
  for (u32 lane = 0; lane < 32; lane++) {
    u32 g = lane / 4, t = lane % 4 * 2;
    for (u32 i = 0; i < 4; i++) {
      u32 row = g + i % 2 * 8, column = t + i / 2 * 8;
      fa.push_back(pair(a[row * 16 + column], a[row * 16 + column + 1]));
      // B as 16 rows of 8; a lane holds two rows of one column.
      if (i < 2) fb.push_back(pair(b[(t + i * 8) * 8 + g], b[(t + 1 + i * 8) * 8 + g]));
    }
    for (u32 i = 0; i < 4; i++) {
      u32 row = g + i / 2 * 8, column = t + i % 2;
      float sum = d[row * 8 + column];
      fc.push_back(sum);
      for (u32 k = 0; k < 16; k++) sum += a[row * 16 + k] * b[k * 8 + column];
      want.push_back(sum);
    }
  }
  auto out = c.put(fc);
  c.run("wrap_mma", {1}, 32, 0, out, c.put(fa), c.put(fb));
  c.near(out, want, 0);
}

CHECK(wrapper_copies) {
  Random random(3);
  std::vector<u32> x(64 * 4);
  for (u32& v : x) v = random.bits();
  std::vector<u32> want(96);
  for (u32 t = 0; t < 64; t++) {
    u32 words[4];
    std::memcpy(words, &x[t * 4], 16);
    u32 whole = words[0] ^ words[1] ^ words[2] ^ words[3];
    want[t < 32 ? 64 + t : t] = whole;
    if (t >= 32) continue;
    std::memset(reinterpret_cast<char*>(words) + t % 17, 0, 16 - t % 17);
    want[t] = words[0] ^ words[1] ^ words[2] ^ words[3];
  }
  auto out = c.room<u32>(96);
  c.run("wrap_copies", {1}, 32, 1024, out, c.put(x));
  c.equal(out, want);
}

CHECK(wrapper_exp2) {
  std::vector<float> x, want;
  for (int i = -1200; i <= 1200; i++) {
    x.push_back(static_cast<float>(i) / 10);
    want.push_back(std::exp2(static_cast<float>(i) / 10));
  }
  const u32 n = static_cast<u32>(x.size());
  auto out = c.room<float>(n);
  c.run("wrap_exp2", {1}, 32, 0, out, c.put(x), n);
  // The manual promises 2 units in the last place or so.
  c.near(out, want, 0, 4e-7f);
}
