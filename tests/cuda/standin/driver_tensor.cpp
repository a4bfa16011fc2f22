// Tensor maps: what copies of boxes know of a tensor.
#include <cstring>

#include "../emulation/hopper.h"
#include "driver.h"

using namespace standin;

namespace {

// By the driver's number of the element type; 0: none that the emulation copies.
unsigned element_bytes(int type) {
  const unsigned bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  return type >= 0 && type < 10 ? bytes[type] : 0;
}

}  // namespace

// Refuses what the driver's manual does; the emulation has tensors of three dimensions alone.
EXPORT Result cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address,
                                     const uint64_t* dims, const uint64_t* strides,
                                     const unsigned* box, const unsigned* steps, int interleave,
                                     int swizzle, int promotion, int fill) {
  ENTER();
  const unsigned element = element_bytes(type);
  const Pointer base = reinterpret_cast<Pointer>(address);
  if (reinterpret_cast<uintptr_t>(map) % 64 || base % 16 || element == 0) return kInvalidValue;
  if (swizzle < 0 || swizzle > 3 || promotion < 0 || promotion > 3) return kInvalidValue;
  if (rank != 3 || interleave != 0 || fill != 0) return kNotSupported;
  emu::BoxMap made{};
  made.magic = emu::BoxMap::kMagic;
  made.base = base;
  made.element = element;
  made.span = swizzle == 0 ? 0 : 16u << swizzle;
  for (unsigned i = 0; i < rank; i++) {
    if (dims[i] == 0 || dims[i] > uint64_t{1} << 32) return kInvalidValue;
    if (box[i] == 0 || box[i] > 256 || steps[i] != 1) return kInvalidValue;
    made.dims[i] = static_cast<uint32_t>(dims[i]);
    made.box[i] = box[i];
    if (i + 1 == rank) break;
    if (strides[i] % 16 || strides[i] >> 40) return kInvalidValue;
    made.strides[i] = strides[i];
  }
  const unsigned row = box[0] * element;
  if (row % 16 || (made.span != 0 && row > made.span)) return kInvalidValue;
  const size_t extent = (dims[2] - 1) * strides[1] + (dims[1] - 1) * strides[0] + dims[0] * element;
  if (!in_device(base, extent)) return kInvalidValue;
  state().counts.maps++;
  std::memset(map, 0, 128);
  std::memcpy(map, &made, sizeof made);
  return kSuccess;
}
