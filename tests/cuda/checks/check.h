// Checks: a list of functions that launch kernels and compare what they give with plain loops.
#pragma once
#include <cmath>
#include <cstring>
#include <set>
#include <tuple>

#include "device.h"

typedef unsigned u32;
typedef unsigned long long u64;

// bfloat16 on the host.
struct bf16 {
  unsigned short bits;
};
bf16 to_bf16(float x);
inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  unsigned u = static_cast<unsigned>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline void narrow(float x, float& y) { y = x; }
inline void narrow(float x, bf16& y) { y = to_bf16(x); }
inline float round_to_bf16(float x) { return widen(to_bf16(x)); }

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  u32 bits();
  u32 below(u32 n) { return bits() % n; }
  float uniform(float low, float high);
  float normal();
  template <class T = float>
  std::vector<T> normals(size_t n, float scale = 1.0f) {
    std::vector<T> v(n);
    for (T& x : v) narrow(normal() * scale, x);
    return v;
  }
  // 0 .. n - 1 in random order.
  std::vector<u32> permutation(u32 n);

 private:
  uint64_t state_;
};

// What checks gave on one device, kept in a file, for comparison with another device.
class Record {
 public:
  // Both may be empty: nothing is written, nothing is compared.
  Record(const std::string& write, const std::string& read);
  // The next array of the check `name`; what the other device gave, or null.
  const std::vector<float>* next(const std::string& name, const std::vector<float>& values);
  void save() const;

 private:
  std::string path_;
  std::map<std::string, std::vector<float>> written_, read_;
  std::map<std::string, int> places_;
};

class Check {
 public:
  Check(Device& device, std::string name, Record* record)
      : device(device), name_(std::move(name)), record_(record) {}

  Device& device;

  template <class T>
  Buffer<T> put(const std::vector<T>& values) {
    return Buffer<T>(device, values);
  }
  template <class T>
  Buffer<T> room(size_t count) {
    std::vector<T> junk(count);
    std::memset(static_cast<void*>(junk.data()), 0xff, count * sizeof(T));
    return Buffer<T>(device, junk);
  }
  template <class... A>
  void run(const std::string& kernel, Grid grid, unsigned block, unsigned shared,
           const A&... args) {
    auto values = std::make_tuple(argument(args)...);
    std::apply(
        [&](auto&... each) {
          void* parameters[] = {&each...};
          start(kernel, grid, block, shared, parameters);
        },
        values);
  }
  // What this check looks at now, for messages and for the count of shapes.
  void shape(const std::string& text);
  // Every |got - want| is at most absolute + relative * |want|; NaN equals NaN.
  template <class T>
  void near(const Buffer<T>& got, const std::vector<float>& want, float absolute,
            float relative = 0) {
    std::vector<float> wide;
    for (T x : got.values()) wide.push_back(widen(x));
    compare(wide, want, absolute, relative);
  }
  template <class T>
  void equal(const Buffer<T>& got, const std::vector<T>& want) {
    std::vector<T> have = got.values();
    note(have.data(), have.size() * sizeof(T));
    for (size_t i = 0; i < want.size() || i < have.size(); i++) {
      if (i >= want.size() || i >= have.size() || std::memcmp(&have[i], &want[i], sizeof(T))) {
        fail("element " + std::to_string(i) + " of " + std::to_string(want.size()) + " differs");
        return;
      }
    }
  }
  void that(bool ok, const std::string& message) {
    if (!ok) fail(message);
  }
  void fail(const std::string& message);

  std::vector<std::string> failures;
  std::set<std::string> kernels, shapes;
  uint64_t digest = 0;  // of everything compared

 private:
  void start(const std::string& kernel, Grid grid, unsigned block, unsigned shared,
             void** parameters);
  void compare(const std::vector<float>& got, const std::vector<float>& want, float absolute,
               float relative);
  void hold(const std::vector<float>& got, const std::vector<float>& want, float absolute,
            float relative, const char* which);
  void note(const void* data, size_t bytes);
  std::string shape_, kernel_, name_;
  Record* record_;
};

struct Entry {
  const char* name;
  void (*run)(Check&);
};
std::vector<Entry>& entries();
bool add_entry(const char* name, void (*run)(Check&));

#define CHECK(name)                                   \
  static void name(Check& c);                         \
  static const bool added_##name = add_entry(#name, name); \
  static void name([[maybe_unused]] Check& c)

inline unsigned ceil_div(size_t a, size_t b) { return static_cast<unsigned>((a + b - 1) / b); }
