// RMS norm and layer norm against sums in f64.
#include "check.h"

namespace {

template <class O>
void norms(Check& c, const std::string& type, u32 rows, u32 width, float relative) {
  Random random(width);
  auto x = random.normals(static_cast<size_t>(rows) * width, 2.0f);
  for (float& v : x) v += 0.5f;
  auto weight = random.normals(width), bias = random.normals(width);
  const float eps = 1e-5f;
  std::vector<float> rms, layer;
  for (u32 r = 0; r < rows; r++) {
    const float* row = &x[static_cast<size_t>(r) * width];
    double squares = 0, sum = 0, variance = 0;
    for (u32 i = 0; i < width; i++) squares += double{row[i]} * row[i], sum += row[i];
    double mean = sum / width, scale = 1 / std::sqrt(squares / width + eps);
    for (u32 i = 0; i < width; i++) variance += (row[i] - mean) * (row[i] - mean);
    double narrow = 1 / std::sqrt(variance / width + eps);
    for (u32 i = 0; i < width; i++) {
      rms.push_back(static_cast<float>(row[i] * scale * weight[i]));
      layer.push_back(static_cast<float>((row[i] - mean) * narrow * weight[i] + bias[i]));
    }
  }
  c.shape(std::to_string(rows) + "x" + std::to_string(width));
  auto dx = c.put(x), dw = c.put(weight), db = c.put(bias);
  auto out = c.room<O>(rms.size()), two = c.room<O>(rms.size());
  c.run("rms_norm_" + type, {rows}, 256, 0, out, dx, dw, width, eps);
  c.near(out, rms, 2e-6f, relative);
  c.run("layer_norm_" + type, {rows}, 256, 0, two, dx, dw, db, width, eps);
  // A width of 1 has no variance: what is left is rounding over sqrt(eps).
  c.near(two, layer, 2e-5f, relative);
}

}  // namespace

CHECK(norms_of_rows) {
  for (auto [rows, width] :
       {std::pair<u32, u32>{1, 1}, {3, 31}, {2, 64}, {1, 255}, {2, 1000}, {3, 4096}, {1, 5124},
        {1, 4099}}) {
    norms<float>(c, "f32", rows, width, 2e-5f);
    norms<bf16>(c, "bf16", rows, width, 0x1p-8f + 2e-5f);
  }
}
