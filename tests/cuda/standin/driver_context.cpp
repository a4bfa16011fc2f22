// Devices and their primary contexts.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

using namespace standin;

namespace {

// As the driver reads it: a list of ordinals that ends at the first that makes no sense.
unsigned visible(unsigned devices) {
  const char* text = std::getenv("CUDA_VISIBLE_DEVICES");
  if (!text) return devices;
  unsigned count = 0;
  while (*text) {
    if (!std::strncmp(text, "GPU-", 4) || !std::strncmp(text, "MIG-", 4)) {
      text += std::strcspn(text, ",");
    } else {
      char* end;
      long ordinal = std::strtol(text, &end, 10);
      if (end == text || ordinal < 0 || ordinal >= static_cast<long>(devices)) break;
      text = end;
    }
    if (count < devices) count++;
    if (*text == ',') text++;
  }
  return count;
}

bool is_device(int device) {
  return device >= 0 && device < static_cast<int>(state().contexts.size());
}

int attribute(int which) {
  const unsigned capability = state().options.capability;
  switch (which) {
    case 1: case 2: case 3: return 1024;        // threads of a block
    case 4: return 64;
    case 5: return 0x7fffffff;                  // blocks of a grid
    case 6: case 7: return 65535;
    case 8: return 48 * 1024;                   // shared memory of a block, without asking
    case 10: return 32;                         // lanes of a warp
    case 12: case 82: return 65536;             // registers
    case 13: return 1980000;                    // clock in kHz
    case 16: return 4;                          // multiprocessors
    case 31: case 41: case 83: case 95: return 1;
    case 36: return 2619000;                    // memory clock in kHz
    case 37: return 5120;                       // memory bus in bits
    case 38: return 50 << 20;                   // second-level cache
    case 39: return 2048;                       // threads of a multiprocessor
    case 75: return static_cast<int>(capability / 10);
    case 76: return static_cast<int>(capability % 10);
    case 81: return shared_most() + 1024;
    case 97: return shared_most();
    case 106: return 32;
    case 115: return 1;                         // memory pools
    default: return 0;
  }
}

struct Name {
  Result code;
  const char *name, *text;
};

const Name kErrors[] = {
    {kSuccess, "CUDA_SUCCESS", "no error"},
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {kNoDevice, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {kNoBinary, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kIllegalState, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed now"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kNotReady, "CUDA_ERROR_NOT_READY", "device not ready"},
    {kOutOfResources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {kUnknown, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Name* error(Result code) {
  for (const Name& e : kErrors) {
    if (e.code == code) return &e;
  }
  return nullptr;
}

}  // namespace

int standin::shared_most() {
  switch (state().options.capability) {
    case 80: return 163 * 1024;
    case 86: case 89: case 120: return 99 * 1024;
    default: return 227 * 1024;
  }
}

EXPORT Result cuInit(unsigned flags) {
  ENTER_ANY();
  State& s = state();
  if (flags != 0) return kInvalidValue;
  unsigned devices = visible(s.options.devices);
  if (devices == 0) return kNoDevice;
  if (!s.initialized) {
    s.contexts.resize(devices);
    for (unsigned i = 0; i < devices; i++) s.contexts[i].device = static_cast<int>(i);
  }
  s.initialized = true;
  return kSuccess;
}
EXPORT Result cuDriverGetVersion(int* version) {
  *version = static_cast<int>(state().options.version);
  return kSuccess;
}
EXPORT Result cuDeviceGetCount(int* count) {
  ENTER();
  *count = static_cast<int>(state().contexts.size());
  return kSuccess;
}
EXPORT Result cuDeviceGet(int* device, int ordinal) {
  ENTER();
  if (!is_device(ordinal)) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}
EXPORT Result cuDeviceGetName(char* name, int length, int device) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  std::snprintf(name, static_cast<size_t>(length), "Emulated device %d", device);
  return kSuccess;
}
EXPORT Result cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  std::memset(uuid, 0x40 + device, 16);
  return kSuccess;
}
EXPORT Result cuDeviceGetUuid(unsigned char* uuid, int device) {
  return cuDeviceGetUuid_v2(uuid, device);
}
EXPORT Result cuDeviceGetPCIBusId(char* id, int length, int device) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  std::snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", device);
  return kSuccess;
}
EXPORT Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  *bytes = state().options.memory;
  return kSuccess;
}
EXPORT Result cuDeviceGetAttribute(int* value, int which, int device) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  *value = attribute(which);
  return kSuccess;
}
EXPORT Result cuDeviceComputeCapability(int* major, int* minor, int device) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  *major = attribute(75);
  *minor = attribute(76);
  return kSuccess;
}
EXPORT Result cuDevicePrimaryCtxRetain(void** context, int device) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  Context& c = state().contexts[static_cast<size_t>(device)];
  c.retained++;
  *context = &c;
  return kSuccess;
}
EXPORT Result cuDevicePrimaryCtxRelease_v2(int device) {
  ENTER_ANY();
  if (!is_device(device)) return kInvalidDevice;
  Context& c = state().contexts[static_cast<size_t>(device)];
  if (c.retained == 0) return kInvalidContext;
  c.retained--;
  return kSuccess;
}
EXPORT Result cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  ENTER();
  if (!is_device(device)) return kInvalidDevice;
  *flags = 0;
  *active = state().contexts[static_cast<size_t>(device)].retained > 0;
  return kSuccess;
}
// A host may share the context: nobody may reset it.
EXPORT Result cuDevicePrimaryCtxReset_v2(int) {
  std::fprintf(stderr, "emulation: the primary context was reset\n");
  std::abort();
}
EXPORT Result cuCtxSetCurrent(void* context) {
  ENTER_ANY();
  current() = static_cast<Context*>(context);
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuCtxGetCurrent(void** context) {
  ENTER_ANY();
  *context = current();
  return kSuccess;
}
EXPORT Result cuCtxPushCurrent_v2(void* context) { return cuCtxSetCurrent(context); }
EXPORT Result cuCtxPopCurrent_v2(void** context) {
  ENTER_ANY();
  if (context) *context = current();
  current() = nullptr;
  return kSuccess;
}
EXPORT Result cuCtxGetDevice(int* device) {
  ENTER_CONTEXT();
  *device = current()->device;
  return kSuccess;
}
EXPORT Result cuCtxSetFlags(unsigned) {
  ENTER_CONTEXT();
  return kSuccess;
}
EXPORT Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  ENTER_CONTEXT();
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return kSuccess;
}
EXPORT Result cuCtxSynchronize() {
  ENTER_CONTEXT();
  if (spoils_capture()) return kCaptureUnsupported;
  state().counts.waits++;
  if (strikes(Fault::kSync)) return kUnknown;
  drain();
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuGetErrorName(Result code, const char** name) {
  const Name* e = error(code);
  *name = e ? e->name : nullptr;
  return e ? kSuccess : kInvalidValue;
}
EXPORT Result cuGetErrorString(Result code, const char** text) {
  const Name* e = error(code);
  *text = e ? e->text : nullptr;
  return e ? kSuccess : kInvalidValue;
}
// Newer names first, as the driver resolves them.
EXPORT Result cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int* status) {
  std::string name = symbol;
  void* found = dlsym(RTLD_DEFAULT, (name + "_v2").c_str());
  if (!found) found = dlsym(RTLD_DEFAULT, name.c_str());
  *function = found;
  if (status) *status = found ? 0 : 1;
  return found ? kSuccess : kNotFound;
}
