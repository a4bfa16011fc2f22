// What sm_90a adds, for blocks on the host: barriers that count bytes, copies of boxes, products
// of a warpgroup. All of it is late, as on a device: copies arrive when the schedule says so,
// products when they are waited for; until then their targets hold NaNs.
//
// Copies and products see shared memory through a view of their own, which gets what threads wrote
// when one of them says `fence.proxy.async`.
#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "fiber.h"

namespace emu {

// What the stand-in driver's cuTensorMapEncodeTiled writes, in the 128 bytes of a CUtensorMap.
struct BoxMap {
  static constexpr uint64_t kMagic = 0x70616d2d78303962;
  uint64_t magic, base;
  uint32_t dims[3];
  uint32_t span;        // bytes of the swizzle's rows; 0: none
  uint64_t strides[2];  // in bytes, of dimensions 1 and 2
  uint32_t box[3], element;
};
static_assert(sizeof(BoxMap) <= 128);

// An mbarrier. It ends a phase when all have arrived and all announced bytes have come.
struct CopyBarrier {
  unsigned phase = 0, pending = 0, count = 0;
  long bytes = 0;
  bool visible = false;  // to copies
};

struct BoxCopy {
  unsigned char* to;
  BoxMap map;
  unsigned at[3];
  CopyBarrier* barrier;
};

// One `wgmma` of a warpgroup: [64, 16] times [16, n].
struct Product {
  uint64_t a, b;
  unsigned n;
  bool a_in_registers, transposed;
  std::vector<float> left, right, result;  // [64, 16], [16, n], [64, n]
  uint64_t version;                        // of the view when it was read
  bool computed[4] = {};                   // by warp
  unsigned ended = 0;                      // threads that have it
};

struct Warpgroup {
  std::deque<Product> products;
  uint64_t first = 0;  // number of the first of them
};

// A thread's part of a product: where its sums go.
struct Share {
  uint64_t product;
  float* sums;  // [n / 8][4]
  bool add;
};

// The sums of products under way, with what is known of them so far.
struct Sums {
  float* at;
  std::vector<float> values;
};

struct ThreadProducts {
  uint64_t issued = 0;
  bool fenced = false;
  std::vector<Share> open;
  std::deque<std::vector<Share>> groups;
  std::vector<Sums> sums;
};

struct Hopper {
  std::vector<unsigned char> view;
  uint64_t version = 0;
  std::map<const void*, CopyBarrier> barriers;
  std::deque<BoxCopy> copies;
  std::vector<Warpgroup> warpgroups;
  std::vector<ThreadProducts> threads;

  explicit Hopper(const Block& b);
  CopyBarrier& barrier(const void* at);
  void arrive(const void* at);
  void end_phase(CopyBarrier& b);
  void begin_copy(void* to, const void* map, unsigned x, unsigned y, unsigned z, void* barrier);
  // Ends the copy at `place` of those under way.
  void end_copy(size_t place);
  void fence();

  // `left`: this thread's A of 4 registers, or null where it is in shared memory at `a`.
  void issue(float* sums, unsigned n, const uint32_t* left, uint64_t a, uint64_t b, bool add);
  void commit();
  void wait(unsigned most);
  // Whether products under way write there.
  bool under_way(const float* sums) const;
  void check_thread() const;
  void check_block() const;

 private:
  Product& product(uint64_t number, const Product& wanted);
  void read(Product& p) const;
  void compute(Product& p);
  void take(const Share& share);
  float element(uint64_t descriptor, unsigned across, unsigned k, bool transposed) const;
};

// Of the block that runs; made when it is first asked for.
Hopper& hopper();

}  // namespace emu
