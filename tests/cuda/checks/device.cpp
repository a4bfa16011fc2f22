#include "device.h"

#include <dirent.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <sstream>
#include <stdexcept>

namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) throw std::runtime_error("cannot read " + path);
  return text.str();
}

std::vector<std::string> files(const std::string& folder, const std::string& ending) {
  std::vector<std::string> found;
  DIR* dir = opendir(folder.c_str());
  if (!dir) throw std::runtime_error("cannot read folder " + folder);
  while (dirent* entry = readdir(dir)) {
    std::string name = entry->d_name;
    bool ends = name.size() > ending.size() &&
                name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
    if (ends) found.push_back(name);
  }
  closedir(dir);
  std::sort(found.begin(), found.end());
  return found;
}

void* open_library(const std::string& path, int flags = RTLD_NOW | RTLD_GLOBAL) {
  void* library = dlopen(path.c_str(), flags);
  if (!library) throw std::runtime_error(dlerror());
  return library;
}

// The kernels of a cubin: in the stand-in's the lines, in a real one its `.text.` sections.
std::vector<std::string> names_in(const std::string& cubin) {
  std::vector<std::string> names;
  const std::string magic = "vrust-emulated-cubin\n", section = ".text.";
  if (cubin.compare(0, magic.size(), magic) == 0) {
    std::stringstream lines(cubin.substr(magic.size()));
    std::string line;
    std::getline(lines, line);
    while (std::getline(lines, line) && !line.empty() && line[0] != '\0') names.push_back(line);
    return names;
  }
  for (size_t at = 0; (at = cubin.find(section, at)) != std::string::npos;) {
    at += section.size();
    names.push_back(cubin.c_str() + at);
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

}  // namespace

template <class F>
F Device::symbol(const char* name) const {
  void* library = std::string(name).compare(0, 5, "nvrtc") == 0 ? nvrtc_ : cuda_;
  void* found = dlsym(library, name);
  if (!found) throw std::runtime_error(std::string("no symbol ") + name);
  return reinterpret_cast<F>(found);
}

void Device::check(int result, const std::string& what) const {
  if (result == 0) return;
  const char* text = nullptr;
  symbol<int (*)(int, const char**)>("cuGetErrorName")(result, &text);
  throw std::runtime_error(what + ": " + (text ? text : std::to_string(result)));
}

Device::Device(const std::string& cuda, const std::string& nvrtc,
               const std::vector<std::string>& folders) {
  cuda_ = open_library(cuda);
  std::string builtins = nvrtc;
  size_t at = builtins.rfind("libnvrtc.so");
  if (at != std::string::npos) {
    builtins.replace(at, std::string::npos, "libnvrtc-builtins.so.13.0");
    dlopen(builtins.c_str(), RTLD_NOW | RTLD_GLOBAL);
  }
  nvrtc_ = open_library(nvrtc);
  set_seed_ = reinterpret_cast<void (*)(unsigned)>(dlsym(cuda_, "vrust_emu_seed"));
  check(symbol<int (*)(unsigned)>("cuInit")(0), "cuInit");
  void* context = nullptr;
  check(symbol<int (*)(void**, int)>("cuDevicePrimaryCtxRetain")(&context, 0), "retain");
  check(symbol<int (*)(void*)>("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
  char name[256] = "";
  check(symbol<int (*)(char*, int, int)>("cuDeviceGetName")(name, 256, 0), "cuDeviceGetName");
  name_ = name;
  auto attribute = symbol<int (*)(int*, int, int)>("cuDeviceGetAttribute");
  int major = 0, minor = 0, multiprocessors = 0;
  check(attribute(&major, 75, 0), "attribute");
  check(attribute(&minor, 76, 0), "attribute");
  check(attribute(&multiprocessors, 16, 0), "attribute");
  capability_ = static_cast<unsigned>(major * 10 + minor);
  multiprocessors_ = static_cast<unsigned>(multiprocessors);
  arch_ = "sm_" + std::to_string(capability_);
  if (capability_ == 90 || capability_ == 100) arch_ += "a";
  auto create = symbol<int (*)(void**, unsigned)>("cuEventCreate");
  check(create(&start_, 0), "event");
  check(create(&stop_, 0), "event");
  auto began = std::chrono::steady_clock::now();
  std::map<std::string, std::string> headers;
  for (const auto& folder : folders) {
    for (const auto& file : files(folder, ".cuh")) headers[file] = read_file(folder + "/" + file);
  }
  std::vector<std::future<std::string>> cubins;
  for (const auto& folder : folders) {
    for (const auto& file : files(folder, ".cu")) {
      // A file for one architecture says so in its name.
      if (file.find("sm90") != std::string::npos && capability_ != 90) continue;
      cubins.push_back(std::async(std::launch::async, [this, path = folder + "/" + file, &headers] {
        return compile(path, headers);
      }));
    }
  }
  for (auto& cubin : cubins) load(cubin.get());
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  compile_seconds_ = took.count();
}

std::string Device::compile(const std::string& path,
                            const std::map<std::string, std::string>& headers) const {
  std::vector<const char*> texts, names;
  for (const auto& [name, text] : headers) {
    names.push_back(name.c_str());
    texts.push_back(text.c_str());
  }
  void* program = nullptr;
  std::string source = read_file(path), arch = "--gpu-architecture=" + arch_;
  auto create = symbol<int (*)(void**, const char*, const char*, int, const char* const*,
                               const char* const*)>("nvrtcCreateProgram");
  check(create(&program, source.c_str(), path.c_str(), static_cast<int>(names.size()),
               texts.data(), names.data()), "nvrtcCreateProgram");
  const char* options[] = {arch.c_str(), "--std=c++17"};
  auto run = symbol<int (*)(void*, int, const char* const*)>("nvrtcCompileProgram");
  typedef int (*GetSize)(void*, size_t*);
  typedef int (*GetText)(void*, char*);
  size_t size = 0;
  if (run(program, 2, options) != 0) {
    symbol<GetSize>("nvrtcGetProgramLogSize")(program, &size);
    std::string log(size, '\0');
    symbol<GetText>("nvrtcGetProgramLog")(program, &log[0]);
    throw std::runtime_error(path + " does not compile:\n" + log);
  }
  symbol<GetSize>("nvrtcGetCUBINSize")(program, &size);
  std::string cubin(size, '\0');
  symbol<GetText>("nvrtcGetCUBIN")(program, &cubin[0]);
  symbol<int (*)(void**)>("nvrtcDestroyProgram")(&program);
  return cubin;
}

void Device::load(const std::string& cubin) {
  void* module = nullptr;
  auto from = symbol<int (*)(void**, const void*)>("cuModuleLoadData");
  check(from(&module, cubin.data()), "cuModuleLoadData");
  auto get = symbol<int (*)(void**, void*, const char*)>("cuModuleGetFunction");
  for (const auto& name : names_in(cubin)) {
    void* function = nullptr;
    check(get(&function, module, name.c_str()), name);
    functions_[name] = function;
    kernels_.push_back(name);
  }
}

void Device::seed(unsigned value) const {
  if (set_seed_) set_seed_(value);
}

uint64_t Device::allocate(size_t bytes) {
  unsigned long long p = 0;
  // An empty buffer has a valid address all the same.
  auto make = symbol<int (*)(unsigned long long*, size_t)>("cuMemAlloc_v2");
  check(make(&p, std::max<size_t>(bytes, 16)), "cuMemAlloc");
  return p;
}

void Device::release(uint64_t p) {
  symbol<int (*)(unsigned long long)>("cuMemFree_v2")(p);
}

void Device::upload(uint64_t to, const void* from, size_t bytes) {
  auto copy = symbol<int (*)(unsigned long long, const void*, size_t)>("cuMemcpyHtoD_v2");
  if (bytes) check(copy(to, from, bytes), "upload");
}

void Device::download(void* to, uint64_t from, size_t bytes) {
  auto copy = symbol<int (*)(void*, unsigned long long, size_t)>("cuMemcpyDtoH_v2");
  if (bytes) check(copy(to, from, bytes), "download");
}

void Device::launch(const std::string& kernel, Grid grid, unsigned block, unsigned shared,
                    void** parameters) {
  auto found = functions_.find(kernel);
  if (found == functions_.end()) throw std::runtime_error("no kernel " + kernel);
  if (shared > 48 * 1024) {
    auto set = symbol<int (*)(void*, int, int)>("cuFuncSetAttribute");
    check(set(found->second, 8, static_cast<int>(shared)), kernel);
  }
  auto run = symbol<int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                            unsigned, void*, void**, void**)>("cuLaunchKernel");
  check(run(found->second, grid.x, grid.y, grid.z, block, 1, 1, shared, nullptr, parameters,
            nullptr), kernel);
}

TensorMap Device::boxes(const Tensor& t, unsigned x, unsigned y) const {
  auto encode = symbol<int (*)(TensorMap*, int, unsigned, uint64_t, const uint64_t*,
                               const uint64_t*, const unsigned*, const unsigned*, int, int, int,
                               int)>("cuTensorMapEncodeTiled");
  TensorMap map;
  const unsigned box[3] = {x, y, 1}, steps[3] = {1, 1, 1};
  const int swizzle = x == 64 ? 3 : x == 32 ? 2 : 1;
  check(encode(&map, 9, 3, t.base, t.dims, t.strides, box, steps, 0, swizzle, 0, 0),
        "cuTensorMapEncodeTiled");
  return map;
}

void Device::synchronize() { check(symbol<int (*)()>("cuCtxSynchronize")(), "synchronize"); }

void Device::start_timer() {
  check(symbol<int (*)(void*, void*)>("cuEventRecord")(start_, nullptr), "cuEventRecord");
}

double Device::stop_timer() {
  check(symbol<int (*)(void*, void*)>("cuEventRecord")(stop_, nullptr), "cuEventRecord");
  check(symbol<int (*)(void*)>("cuEventSynchronize")(stop_), "cuEventSynchronize");
  float ms = 0;
  check(symbol<int (*)(float*, void*, void*)>("cuEventElapsedTime")(&ms, start_, stop_), "elapsed");
  return ms / 1e3;
}
