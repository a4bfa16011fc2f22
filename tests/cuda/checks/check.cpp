#include "check.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

bf16 to_bf16(float x) {
  unsigned u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  u += 0x7fffu + (u >> 16 & 1);
  return {static_cast<unsigned short>(u >> 16)};
}

u32 Random::bits() {
  state_ += 0x9e3779b97f4a7c15ull;
  uint64_t x = state_;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<u32>((x ^ (x >> 31)) >> 32);
}

float Random::uniform(float low, float high) {
  return low + (high - low) * static_cast<float>(bits() >> 8) * 0x1p-24f;
}

float Random::normal() {
  float sum = -6;
  for (int i = 0; i < 12; i++) sum += uniform(0, 1);
  return sum;
}

std::vector<u32> Random::permutation(u32 n) {
  std::vector<u32> v(n);
  for (u32 i = 0; i < n; i++) v[i] = i;
  for (u32 i = n; i > 1; i--) std::swap(v[i - 1], v[below(i)]);
  return v;
}

Record::Record(const std::string& write, const std::string& read) : path_(write) {
  if (read.empty()) return;
  std::FILE* file = std::fopen(read.c_str(), "rb");
  if (!file) throw std::runtime_error("cannot read " + read);
  uint32_t sizes[2];
  while (std::fread(sizes, 4, 2, file) == 2) {
    std::string name(sizes[0], '\0');
    std::vector<float> values(sizes[1]);
    bool whole = std::fread(&name[0], 1, name.size(), file) == name.size() &&
                 std::fread(values.data(), 4, values.size(), file) == values.size();
    if (!whole) throw std::runtime_error(read + " is cut short");
    read_[name] = std::move(values);
  }
  std::fclose(file);
}

const std::vector<float>* Record::next(const std::string& name, const std::vector<float>& values) {
  std::string place = name + "#" + std::to_string(places_[name]++);
  if (!path_.empty()) written_[place] = values;
  auto found = read_.find(place);
  return found == read_.end() ? nullptr : &found->second;
}

void Record::save() const {
  if (path_.empty()) return;
  std::FILE* file = std::fopen(path_.c_str(), "wb");
  if (!file) throw std::runtime_error("cannot write " + path_);
  for (const auto& [name, values] : written_) {
    const uint32_t sizes[2] = {static_cast<uint32_t>(name.size()),
                               static_cast<uint32_t>(values.size())};
    std::fwrite(sizes, 4, 2, file);
    std::fwrite(name.data(), 1, name.size(), file);
    std::fwrite(values.data(), 4, values.size(), file);
  }
  if (std::fclose(file) != 0) throw std::runtime_error("cannot write " + path_);
}

void Check::shape(const std::string& text) { shape_ = text; }

void Check::fail(const std::string& message) {
  failures.push_back(kernel_ + (shape_.empty() ? "" : " [" + shape_ + "]") + ": " + message);
}

void Check::start(const std::string& kernel, Grid grid, unsigned block, unsigned shared,
                  void** parameters) {
  kernel_ = kernel;
  kernels.insert(kernel);
  shapes.insert(kernel + " " + shape_);
  device.launch(kernel, grid, block, shared, parameters);
  device.synchronize();
}

void Check::compare(const std::vector<float>& got, const std::vector<float>& want, float absolute,
                    float relative) {
  note(got.data(), got.size() * sizeof(float));
  hold(got, want, absolute, relative, "");
  if (!record_) return;
  // Two devices may each be off by the tolerance.
  const std::vector<float>* other = record_->next(name_, got);
  if (other) hold(got, *other, 2 * absolute, 2 * relative, " (recorded)");
}

void Check::hold(const std::vector<float>& got, const std::vector<float>& want, float absolute,
                 float relative, const char* which) {
  if (got.size() != want.size()) {
    fail(std::to_string(got.size()) + " elements instead of " + std::to_string(want.size()));
    return;
  }
  size_t worst = 0, bad = 0;
  float most = 0;
  for (size_t i = 0; i < got.size(); i++) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    if (got[i] == want[i]) continue;
    float over = std::fabs(got[i] - want[i]) / (absolute + relative * std::fabs(want[i]));
    if (over <= 1) continue;
    if (bad++ == 0 || over > most) {
      worst = i;
      most = over;
    }
  }
  if (bad == 0) return;
  char text[160];
  std::snprintf(text, sizeof text, "%zu of %zu differ; worst at %zu: %g instead of %g%s", bad,
                got.size(), worst, static_cast<double>(got[worst]),
                static_cast<double>(want[worst]), which);
  fail(text);
}

void Check::note(const void* data, size_t bytes) {
  const unsigned char* p = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; i++) digest = (digest ^ p[i]) * 0x100000001b3ull;
}

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

bool add_entry(const char* name, void (*run)(Check&)) {
  entries().push_back({name, run});
  return true;
}
