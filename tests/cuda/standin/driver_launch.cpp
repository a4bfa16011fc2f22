// Modules, functions and launches.
#include <cstdlib>
#include <cstring>

#include "../emulation/fiber.h"
#include "../emulation/registry.h"
#include "driver.h"

using namespace standin;

namespace {

// What the stand-in NVRTC writes: this, the architecture and one kernel a line.
const char kMagic[] = "vrust-emulated-cubin\n";

struct Function {
  emu::Kernel* kernel;
};

std::map<std::string, Function>& functions() {
  static auto* all = new std::map<std::string, Function>;
  return *all;
}

bool fits(unsigned value, unsigned limit) { return value >= 1 && value <= limit; }

struct Shape {
  unsigned gx, gy, gz, bx, by, bz, shared;
};

Result launch(void* function, const Shape& s, void* stream, void** parameters,
              bool dependent = false) {
  Function* f = static_cast<Function*>(function);
  if (!f || !parameters) return kInvalidValue;
  bool grid = fits(s.gx, 0x7fffffff) && fits(s.gy, 65535) && fits(s.gz, 65535);
  bool block = fits(s.bx, 1024) && fits(s.by, 1024) && fits(s.bz, 64);
  if (!grid || !block || s.bx * s.by * s.bz > 1024) return kInvalidValue;
  auto limit = state().shared_limits.find(function);
  int most = limit == state().shared_limits.end() ? 48 * 1024 : limit->second;
  if (s.shared > static_cast<unsigned>(most)) return kInvalidValue;
  if (strikes(Fault::kLost)) state().lost = true;
  if (state().lost) return kLaunchFailed;
  if (strikes(Fault::kLaunch)) return kOutOfResources;
  std::function<void()> body = f->kernel->bind(parameters);
  const char* name = f->kernel->name.c_str();
  return enqueue(stream, [=] {
    state().counts.launches++;
    state().counts.by_kernel[name]++;
    emu::launch(name, {s.gx, s.gy, s.gz}, {s.bx, s.by, s.bz}, s.shared, body, dependent);
  });
}

}  // namespace

EXPORT Result cuModuleLoadData(void** module, const void* image) {
  ENTER_CONTEXT();
  if (!image) return kInvalidValue;
  if (strikes(Fault::kAlloc)) return kOutOfMemory;
  const char* text = static_cast<const char*>(image);
  Module m;
  if (!std::strncmp(text, kMagic, sizeof kMagic - 1)) {
    m.image = text;
    std::string arch = "sm_" + std::to_string(state().options.capability);
    size_t at = m.image.find(arch);
    if (at != sizeof kMagic - 1) return kNoBinary;
  } else if (!std::memcmp(text, "\177ELF", 4)) {
    m.any = true;
  } else {
    return kInvalidImage;
  }
  Module* made = new Module(m);
  state().modules.insert(made);
  *module = made;
  return kSuccess;
}
EXPORT Result cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
  return cuModuleLoadData(module, image);
}
EXPORT Result cuModuleUnload(void* module) {
  ENTER_ANY();
  Module* m = static_cast<Module*>(module);
  if (state().modules.erase(m) == 0) return kInvalidHandle;
  drain();
  delete m;
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuModuleGetFunction(void** function, void* module, const char* name) {
  ENTER_CONTEXT();
  Module* m = static_cast<Module*>(module);
  if (!state().modules.count(m)) return kInvalidHandle;
  auto kernel = emu::registry().find(name);
  if (kernel == emu::registry().end()) return kNotFound;
  if (!m->any && m->image.find("\n" + std::string(name) + "\n") == std::string::npos) {
    return kNotFound;
  }
  Function& f = functions()[name];
  f.kernel = &kernel->second;
  *function = &f;
  return kSuccess;
}
EXPORT Result cuModuleGetGlobal_v2(Pointer*, size_t*, void*, const char*) { return kNotFound; }
EXPORT Result cuFuncSetAttribute(void* function, int attribute, int value) {
  ENTER_CONTEXT();
  if (attribute == 8) {
    if (value < 0 || value > shared_most()) return kInvalidValue;
    state().shared_limits[function] = value;
  }
  return kSuccess;
}
EXPORT Result cuFuncGetAttribute(int* value, int attribute, void*) {
  ENTER_CONTEXT();
  *value = attribute == 0 ? 1024 : attribute == 4 ? 64 : 0;
  return kSuccess;
}
EXPORT Result cuFuncSetCacheConfig(void*, int) { return kSuccess; }
EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads,
                                                          size_t shared) {
  ENTER_CONTEXT();
  if (threads < 1 || threads > 1024) return kInvalidValue;
  int by_shared = static_cast<int>((shared_most() + 1024) / (shared + 1024));
  *blocks = std::min(2048 / threads, std::min(by_shared, 32));
  return kSuccess;
}
EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* function,
                                                                   int threads, size_t shared,
                                                                   unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}
EXPORT Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                             unsigned by, unsigned bz, unsigned shared, void* stream,
                             void** parameters, void**) {
  ENTER_CONTEXT();
  return launch(function, {gx, gy, gz, bx, by, bz, shared}, stream, parameters);
}
// As the driver has them.
struct LaunchAttribute {
  int id;
  int value[17];
};
struct LaunchConfig {
  Shape shape;
  void* stream;
  const LaunchAttribute* attributes;
  unsigned attribute_count;
};
EXPORT Result cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters,
                               void**) {
  ENTER_CONTEXT();
  bool dependent = false;
  for (unsigned i = 0; i < config->attribute_count; i++) {
    // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, which is a device of 9.0's.
    if (config->attributes[i].id != 6 || state().options.capability < 90) return kInvalidValue;
    dependent = config->attributes[i].value[1] != 0;
  }
  return launch(function, config->shape, config->stream, parameters, dependent);
}
