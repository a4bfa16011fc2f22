// The most likely token.
#include "check.h"

#include <algorithm>

CHECK(argmax_rows) {
  for (u32 vocab : {1u, 31u, 511u, 513u, 5000u, 20003u}) {
    const u32 rows = 5;
    Random random(vocab);
    auto logits = random.normals(size_t{rows} * vocab, 4.0f);
    logits[vocab - 1] = logits[vocab / 2] = 50;                    // equals: the first counts
    for (u32 i = 0; i < vocab; i++) logits[vocab + i] = -1e30f;    // far below
    for (u32 i = 0; i < vocab; i++) logits[2 * size_t{vocab} + i] = 3;  // all equal
    logits[3 * size_t{vocab} + vocab / 2] = NAN;
    std::vector<u32> tokens;
    std::vector<float> maxima, sums;
    for (u32 r = 0; r < rows; r++) {
      const float* row = &logits[size_t{r} * vocab];
      if (r == 3) {
        tokens.push_back(kNone);
        maxima.push_back(NAN);
        sums.push_back(NAN);
        continue;
      }
      const float* best = std::max_element(row, row + vocab);
      double sum = 0;
      for (u32 i = 0; i < vocab; i++) sum += std::exp(double{row[i]} - *best);
      tokens.push_back(static_cast<u32>(best - row));
      maxima.push_back(*best);
      sums.push_back(static_cast<float>(*best + std::log(sum)));
    }
    c.shape(std::to_string(vocab));
    auto token = c.room<u32>(rows);
    auto top = c.room<float>(rows), sum = c.room<float>(rows);
    auto d = c.put(logits);
    c.run("argmax", {rows}, 512, 0, token, top, sum, d, vocab);
    c.equal(token, tokens);
    c.near(top, maxima, 0);
    c.near(sum, sums, 1e-5f, 1e-6f);
    auto again = c.room<u32>(rows);
    c.run("argmax", {rows}, 512, 0, again, kNull, kNull, d, vocab);
    c.equal(again, tokens);
  }
}
