#include "hopper.h"

#include <algorithm>

namespace emu {
namespace {

float widen(uint16_t bits) {
  uint32_t u = uint32_t{bits} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Bits 4 up of an address are turned by bits 7 up, as many as a row of `span` bytes has pieces.
size_t swizzle(size_t at, unsigned span) {
  return span == 0 ? at : at ^ ((at >> 7) % (span / 16) * 16);
}

size_t offset_of(const void* p) {
  size_t at = static_cast<const unsigned char*>(p) - block->shared;
  if (at >= block->shared_bytes) fail("%p is not in dynamic shared memory", p);
  return at;
}

ThreadProducts& mine(Hopper& h) { return h.threads[fiber->warp * 32 + fiber->lane]; }

}  // namespace

Hopper& hopper() {
  if (!block->hopper) block->hopper = std::make_shared<Hopper>(*block);
  return *block->hopper;
}

Hopper::Hopper(const Block& b)
    : view(b.shared_bytes, 0xff), warpgroups((b.threads + 127) / 128), threads(b.threads) {}

CopyBarrier& Hopper::barrier(const void* at) {
  auto found = barriers.find(at);
  if (found == barriers.end()) fail("an mbarrier that was not initialised");
  return found->second;
}

void Hopper::end_phase(CopyBarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.pending = b.count;
  b.phase++;
  block->releases++;
}

void Hopper::arrive(const void* at) {
  CopyBarrier& b = barrier(at);
  if (b.pending == 0) fail("more arrivals at an mbarrier than it was made for");
  b.pending--;
  end_phase(b);
}

void Hopper::begin_copy(void* to, const void* map, unsigned x, unsigned y, unsigned z,
                        void* at_barrier) {
  BoxCopy copy{static_cast<unsigned char*>(to), {}, {x, y, z}, &barrier(at_barrier)};
  std::memcpy(&copy.map, map, sizeof copy.map);
  const BoxMap& m = copy.map;
  if (m.magic != BoxMap::kMagic) fail("a copy by what is no tensor map");
  if (!copy.barrier->visible) fail("a copy that may not see its mbarrier initialised");
  const size_t at = offset_of(to), bytes = size_t{m.box[0]} * m.box[1] * m.box[2] * m.element;
  if (at % std::max(128u, 8 * m.span)) fail("a copy to %zu, which is off the pattern", at);
  if (at + bytes > block->shared_bytes) fail("a copy past the end of shared memory");
  std::memset(to, 0xff, bytes);
  std::memset(view.data() + at, 0xff, bytes);
  version++;
  copies.push_back(copy);
}

void Hopper::end_copy(size_t place) {
  const BoxCopy copy = copies[place];
  copies.erase(copies.begin() + static_cast<long>(place));
  const BoxMap& m = copy.map;
  const size_t row_bytes = size_t{m.box[0]} * m.element;
  size_t start = copy.to - block->shared, line = 0;
  for (unsigned k = 0; k < m.box[2]; k++) {
    for (unsigned j = 0; j < m.box[1]; j++, line++) {
      const uint64_t y = uint64_t{copy.at[1]} + j, z = uint64_t{copy.at[2]} + k;
      for (size_t c = 0; c < row_bytes; c += 16) {
        const size_t to = swizzle(start + line * row_bytes + c, m.span);
        const uint64_t x = copy.at[0] + c / m.element;
        unsigned char piece[16] = {};
        if (x < m.dims[0] && y < m.dims[1] && z < m.dims[2]) {
          const uint64_t from = m.base + z * m.strides[1] + y * m.strides[0] + x * m.element;
          const size_t inside = std::min<size_t>(16, (m.dims[0] - x) * m.element);
          std::memcpy(piece, reinterpret_cast<const void*>(from), inside);
        }
        std::memcpy(block->shared + to, piece, 16);
        std::memcpy(view.data() + to, piece, 16);
      }
    }
  }
  version++;
  copy.barrier->bytes -= static_cast<long>(line * row_bytes);
  end_phase(*copy.barrier);
}

void Hopper::fence() {
  std::memcpy(view.data(), block->shared, view.size());
  version++;
}

// Element k of row `across` (of a column, for B) of the matrix that a descriptor describes.
float Hopper::element(uint64_t descriptor, unsigned across, unsigned k, bool transposed) const {
  const unsigned mode = static_cast<unsigned>(descriptor >> 62);
  if (mode == 0) fail("a matrix descriptor without a swizzle, which the emulation does not have");
  if (descriptor >> 49 & 7) fail("a matrix descriptor with an offset of its pattern");
  const unsigned span = 256 >> mode, width = span / 2;
  const size_t next = (descriptor >> 16 & 0x3fff) * 16, eight = (descriptor >> 32 & 0x3fff) * 16;
  size_t at = (descriptor & 0x3fff) * 16;
  if (transposed) {
    at += across / width * next + across % width * 2 + k / 8 * eight + k % 8 * span;
  } else {
    at += across / 8 * eight + across % 8 * span + k * 2;
  }
  at = swizzle(at, span);
  if (at + 2 > view.size()) fail("a matrix descriptor that leads past shared memory");
  uint16_t bits;
  std::memcpy(&bits, view.data() + at, 2);
  return widen(bits);
}

void Hopper::read(Product& p) const {
  for (unsigned i = 0; i < 64 && !p.a_in_registers; i++) {
    for (unsigned k = 0; k < 16; k++) p.left[i * 16 + k] = element(p.a, i, k, false);
  }
  for (unsigned k = 0; k < 16; k++) {
    for (unsigned j = 0; j < p.n; j++) p.right[k * p.n + j] = element(p.b, j, k, p.transposed);
  }
}

// The first thread that issues it reads its operands; the others must mean the same one.
Product& Hopper::product(uint64_t number, const Product& wanted) {
  Warpgroup& w = warpgroups[fiber->warp / 4];
  if (number == w.first + w.products.size()) {
    w.products.push_back(wanted);
    Product& p = w.products.back();
    p.left.resize(64 * 16);
    p.right.resize(16 * p.n);
    p.result.resize(64 * p.n);
    p.version = version;
    read(p);
    return p;
  }
  Product& p = w.products[number - w.first];
  if (p.a != wanted.a || p.b != wanted.b || p.n != wanted.n) {
    fail("the threads of a warpgroup do not agree on a wgmma");
  }
  return p;
}

void Hopper::issue(float* sums, unsigned n, const uint32_t* left, uint64_t a, uint64_t b,
                   bool add) {
  ThreadProducts& t = mine(*this);
  if (!t.fenced) fail("a wgmma without wgmma.fence before it");
  if (block->threads % 128) fail("a wgmma of less than a warpgroup");
  Product wanted{};
  wanted.a = a;
  wanted.b = b;
  wanted.n = n;
  wanted.a_in_registers = wanted.transposed = left != nullptr;
  const uint64_t number = t.issued++;
  Product& p = product(number, wanted);
  for (unsigned i = 0; left != nullptr && i < 8; i++) {
    const unsigned row = fiber->warp % 4 * 16 + fiber->lane / 4 + i / 2 % 2 * 8;
    const unsigned k = fiber->lane % 4 * 2 + i % 2 + i / 4 * 8;
    p.left[row * 16 + k] = widen(static_cast<uint16_t>(left[i / 2] >> i % 2 * 16));
  }
  if (!under_way(sums)) {
    t.sums.push_back({sums, std::vector<float>(sums, sums + n / 2)});
    std::memset(sums, 0xff, n / 2 * sizeof(float));
  }
  t.open.push_back({number, sums, add});
}

void Hopper::commit() {
  ThreadProducts& t = mine(*this);
  t.groups.push_back(std::move(t.open));
  t.open.clear();
  t.fenced = false;
}

// The rows of this thread's warp.
void Hopper::compute(Product& p) {
  const unsigned warp = fiber->warp % 4;
  if (p.computed[warp]) return;
  p.computed[warp] = true;
  if (p.version != version) {
    Product now = p;
    read(now);
    const bool same = !std::memcmp(now.left.data(), p.left.data(), p.left.size() * 4) &&
                      !std::memcmp(now.right.data(), p.right.data(), p.right.size() * 4);
    if (!same) fail("shared memory changed under a wgmma that nobody had waited for");
  }
  for (unsigned i = warp * 16; i < warp * 16 + 16; i++) {
    float* row = &p.result[i * p.n];
    for (unsigned k = 0; k < 16; k++) {
      const float left = p.left[i * 16 + k];
      const float* right = &p.right[k * p.n];
      for (unsigned j = 0; j < p.n; j++) row[j] += left * right[j];
    }
  }
}

void Hopper::take(const Share& share) {
  Warpgroup& w = warpgroups[fiber->warp / 4];
  Product& p = w.products[share.product - w.first];
  compute(p);
  auto& t = mine(*this);
  auto sums = std::find_if(t.sums.begin(), t.sums.end(),
                           [&](const Sums& s) { return s.at == share.sums; });
  const unsigned row = fiber->warp % 4 * 16 + fiber->lane / 4, column = fiber->lane % 4 * 2;
  for (unsigned i = 0; i < p.n / 2; i++) {
    const float x = p.result[(row + i / 2 % 2 * 8) * p.n + i / 4 * 8 + column + i % 2];
    sums->values[i] = share.add ? sums->values[i] + x : x;
  }
  p.ended++;
  for (; !w.products.empty() && w.products.front().ended == 128; w.first++) {
    w.products.pop_front();
  }
}

void Hopper::wait(unsigned most) {
  exchange(~0u, 0, "wgmma.wait_group");
  ThreadProducts& t = mine(*this);
  t.fenced = false;
  while (t.groups.size() > most) {
    for (const Share& share : t.groups.front()) take(share);
    t.groups.pop_front();
  }
  for (size_t i = 0; i < t.sums.size();) {
    const Sums& s = t.sums[i];
    auto is_this = [&](const Share& share) { return share.sums == s.at; };
    bool pending = std::any_of(t.open.begin(), t.open.end(), is_this);
    for (const auto& group : t.groups) pending |= std::any_of(group.begin(), group.end(), is_this);
    if (pending) {
      i++;
      continue;
    }
    std::memcpy(s.at, s.values.data(), s.values.size() * sizeof(float));
    t.sums.erase(t.sums.begin() + static_cast<long>(i));
  }
}

bool Hopper::under_way(const float* sums) const {
  const auto& t = threads[fiber->warp * 32 + fiber->lane];
  return std::any_of(t.sums.begin(), t.sums.end(), [&](const Sums& s) { return s.at == sums; });
}

void Hopper::check_thread() const {
  const auto& t = threads[fiber->warp * 32 + fiber->lane];
  if (!t.open.empty() || !t.groups.empty()) {
    fail("a thread ends with products that it did not wait for");
  }
}

void Hopper::check_block() const {
  if (!copies.empty()) fail("a block ends with copies under way");
  for (const auto& [at, b] : barriers) {
    if (b.pending != b.count || b.bytes != 0) {
      fail("a block ends in the middle of an mbarrier's phase: %u of %u to arrive, %ld bytes",
           b.pending, b.count, b.bytes);
    }
  }
}

}  // namespace emu
