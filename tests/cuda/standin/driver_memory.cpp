// Memory: each allocation has pages around it that nobody may touch, so that a kernel that runs
// past it faults.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "driver.h"

using namespace standin;

namespace {

constexpr size_t kPage = 4096;
// Larger allocations are not filled: that would cost more than the tests.
constexpr size_t kFillMost = size_t{64} << 20;

// How far the end of an allocation may be from the page behind it.
size_t padded(size_t bytes) {
  size_t unit = state().options.tight ? 16 : 256;
  return (bytes + unit - 1) / unit * unit;
}

size_t pages_of(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

Result allocate(Pointer* p, size_t bytes) {
  State& s = state();
  s.counts.allocs++;
  if (bytes == 0) return kInvalidValue;
  if (spoils_capture()) return kCaptureUnsupported;
  if (strikes(Fault::kAlloc) || bytes > s.options.memory - s.used) return kOutOfMemory;
  size_t pages = pages_of(bytes);
  void* map = mmap(nullptr, pages + 2 * kPage, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return kOutOfMemory;
  char* base = static_cast<char*>(map);
  mprotect(base, kPage, PROT_NONE);
  mprotect(base + kPage + pages, kPage, PROT_NONE);
  char* start = base + kPage + (pages - padded(bytes));
  if (bytes <= kFillMost) std::memset(start, 0xff, bytes);
  *p = reinterpret_cast<Pointer>(start);
  s.allocations[*p] = bytes;
  s.used += bytes;
  return kSuccess;
}

Result release(Pointer p) {
  State& s = state();
  if (p == 0) return kSuccess;
  auto found = s.allocations.find(p);
  if (found == s.allocations.end()) return kInvalidValue;
  if (spoils_capture()) return kCaptureUnsupported;
  s.counts.waits++;
  drain();
  size_t pages = pages_of(found->second);
  char* start = reinterpret_cast<char*>(p);
  char* base = start - (pages - padded(found->second)) - kPage;
  munmap(base, pages + 2 * kPage);
  s.used -= found->second;
  s.allocations.erase(found);
  return s.lost ? kLaunchFailed : kSuccess;
}

// Either kind of memory, as unified addressing allows.
bool readable(Pointer p, size_t bytes) {
  return in_device(p, bytes) || is_pinned(reinterpret_cast<void*>(p), bytes);
}

Result fill(Pointer p, const void* pattern, size_t width, size_t count, void* stream) {
  if (!in_device(p, width * count)) return kInvalidValue;
  uint64_t value = 0;
  std::memcpy(&value, pattern, width);
  return enqueue(stream, [=] {
    char* to = reinterpret_cast<char*>(p);
    for (size_t i = 0; i < count; i++) std::memcpy(to + i * width, &value, width);
  });
}

Result copy(void* to, const void* from, size_t bytes, void* stream) {
  if (strikes(Fault::kCopy)) return kUnknown;
  return enqueue(stream, [=] { std::memmove(to, from, bytes); });
}

void* address(Pointer p) { return reinterpret_cast<void*>(p); }

}  // namespace

bool standin::in_device(Pointer p, size_t bytes) {
  State& s = state();
  auto after = s.allocations.upper_bound(p);
  if (after == s.allocations.begin()) return false;
  --after;
  return p + bytes >= p && p + bytes <= after->first + after->second;
}

bool standin::is_pinned(const void* p, size_t bytes) {
  State& s = state();
  uintptr_t at = reinterpret_cast<uintptr_t>(p);
  auto after = s.pinned.upper_bound(at);
  if (after == s.pinned.begin()) return false;
  --after;
  return at + bytes <= after->first + after->second;
}

EXPORT Result cuMemGetInfo_v2(size_t* free, size_t* total) {
  ENTER_CONTEXT();
  *total = state().options.memory;
  *free = state().options.memory - state().used;
  return kSuccess;
}
EXPORT Result cuMemAlloc_v2(Pointer* p, size_t bytes) {
  ENTER_CONTEXT();
  return allocate(p, bytes);
}
EXPORT Result cuMemAllocAsync(Pointer* p, size_t bytes, void*) {
  ENTER_CONTEXT();
  return allocate(p, bytes);
}
EXPORT Result cuMemFree_v2(Pointer p) {
  ENTER_ANY();
  return release(p);
}
EXPORT Result cuMemFreeAsync(Pointer p, void*) {
  ENTER_ANY();
  return release(p);
}
EXPORT Result cuMemHostAlloc(void** p, size_t bytes, unsigned) {
  ENTER_CONTEXT();
  if (bytes == 0) return kInvalidValue;
  if (strikes(Fault::kAlloc)) return kOutOfMemory;
  state().counts.allocs++;
  *p = std::aligned_alloc(kPage, pages_of(bytes));
  if (!*p) return kOutOfMemory;
  std::memset(*p, 0xff, bytes);
  state().pinned[reinterpret_cast<uintptr_t>(*p)] = bytes;
  return kSuccess;
}
EXPORT Result cuMemAllocHost_v2(void** p, size_t bytes) { return cuMemHostAlloc(p, bytes, 0); }
EXPORT Result cuMemFreeHost(void* p) {
  ENTER_ANY();
  if (state().pinned.count(reinterpret_cast<uintptr_t>(p)) == 0) return kInvalidValue;
  drain();
  state().pinned.erase(reinterpret_cast<uintptr_t>(p));
  std::free(p);
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuMemHostRegister_v2(void* p, size_t bytes, unsigned) {
  ENTER_CONTEXT();
  if (!p || bytes == 0) return kInvalidValue;
  if (strikes(Fault::kAlloc)) return kOutOfMemory;
  state().pinned[reinterpret_cast<uintptr_t>(p)] = bytes;
  return kSuccess;
}
EXPORT Result cuMemHostUnregister(void* p) {
  ENTER_ANY();
  drain();
  return state().pinned.erase(reinterpret_cast<uintptr_t>(p)) ? kSuccess : kInvalidValue;
}
EXPORT Result cuMemHostGetDevicePointer_v2(Pointer* device, void* p, unsigned) {
  ENTER_CONTEXT();
  if (!is_pinned(p, 1)) return kInvalidValue;
  *device = reinterpret_cast<Pointer>(p);
  return kSuccess;
}
EXPORT Result cuMemsetD8Async(Pointer p, unsigned char v, size_t n, void* stream) {
  ENTER_CONTEXT();
  return fill(p, &v, 1, n, stream);
}
EXPORT Result cuMemsetD16Async(Pointer p, unsigned short v, size_t n, void* stream) {
  ENTER_CONTEXT();
  return fill(p, &v, 2, n, stream);
}
EXPORT Result cuMemsetD32Async(Pointer p, unsigned v, size_t n, void* stream) {
  ENTER_CONTEXT();
  return fill(p, &v, 4, n, stream);
}
EXPORT Result cuMemsetD8_v2(Pointer p, unsigned char v, size_t n) {
  return cuMemsetD8Async(p, v, n, nullptr);
}
EXPORT Result cuMemsetD32_v2(Pointer p, unsigned v, size_t n) {
  return cuMemsetD32Async(p, v, n, nullptr);
}
// From pinned memory the copy happens when the stream comes to it, from other memory at once.
EXPORT Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
  ENTER_CONTEXT();
  if (bytes == 0) return kSuccess;
  state().counts.copies_in++;
  if (!in_device(to, bytes)) return kInvalidValue;
  Stream* s = stream_of(stream);
  if (!s) return kInvalidHandle;
  if (s->capture || is_pinned(from, bytes)) return copy(address(to), from, bytes, stream);
  if (strikes(Fault::kCopy)) return kUnknown;
  auto staged = std::make_shared<std::string>(static_cast<const char*>(from), bytes);
  return enqueue(stream, [=] { std::memcpy(address(to), staged->data(), bytes); });
}
EXPORT Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
  ENTER_CONTEXT();
  if (bytes == 0) return kSuccess;
  state().counts.copies_out++;
  if (!in_device(from, bytes)) return kInvalidValue;
  Stream* s = stream_of(stream);
  if (!s) return kInvalidHandle;
  Result result = copy(to, address(from), bytes, stream);
  // Memory that is not pinned: the driver waits.
  if (result == kSuccess && !s->capture && !is_pinned(to, bytes)) {
    state().counts.waits++;
    drain();
  }
  return state().lost ? kLaunchFailed : result;
}
EXPORT Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
  ENTER_CONTEXT();
  if (bytes == 0) return kSuccess;
  if (!in_device(to, bytes) || !in_device(from, bytes)) return kInvalidValue;
  return copy(address(to), address(from), bytes, stream);
}
EXPORT Result cuMemcpyAsync(Pointer to, Pointer from, size_t bytes, void* stream) {
  ENTER_CONTEXT();
  if (bytes == 0) return kSuccess;
  if (!readable(to, bytes) || !readable(from, bytes)) return kInvalidValue;
  return copy(address(to), address(from), bytes, stream);
}
EXPORT Result cuMemcpyHtoD_v2(Pointer to, const void* from, size_t bytes) {
  ENTER_CONTEXT();
  if (bytes == 0) return kSuccess;
  if (!in_device(to, bytes)) return kInvalidValue;
  if (spoils_capture()) return kCaptureUnsupported;
  if (strikes(Fault::kCopy)) return kUnknown;
  state().counts.copies_in++;
  state().counts.waits++;
  drain();
  std::memcpy(address(to), from, bytes);
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuMemcpyDtoH_v2(void* to, Pointer from, size_t bytes) {
  ENTER_CONTEXT();
  if (bytes == 0) return kSuccess;
  if (!in_device(from, bytes)) return kInvalidValue;
  if (spoils_capture()) return kCaptureUnsupported;
  if (strikes(Fault::kCopy)) return kUnknown;
  state().counts.copies_out++;
  state().counts.waits++;
  drain();
  std::memcpy(to, address(from), bytes);
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuMemcpyDtoD_v2(Pointer to, Pointer from, size_t bytes) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}
// Pools exist in name: allocations are made one by one.
EXPORT Result cuDeviceGetDefaultMemPool(void** pool, int) {
  static int only;
  *pool = &only;
  return kSuccess;
}
EXPORT Result cuDeviceGetMemPool(void** pool, int device) {
  return cuDeviceGetDefaultMemPool(pool, device);
}
EXPORT Result cuMemPoolSetAttribute(void*, int, void*) { return kSuccess; }
EXPORT Result cuMemPoolTrimTo(void*, size_t) { return kSuccess; }
