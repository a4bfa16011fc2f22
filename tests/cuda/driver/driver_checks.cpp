// The stand-in driver and cuBLASLt themselves: order, lateness, capture, errors on demand, leaks.
//
//   driver_checks build/cuda/lib
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace {

typedef unsigned long long Pointer;
void *cuda, *blas, *nvrtc;
std::string problem;

template <class F>
F symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (!found) {
    std::printf("no symbol %s\n0 passed, 1 failed\n", name);
    std::exit(1);
  }
  return reinterpret_cast<F>(found);
}

// Any function of the libraries, called with the arguments as they are.
template <class... A>
int call(const char* name, A... arguments) {
  void* library = !std::strncmp(name, "cublas", 6) ? blas : !std::strncmp(name, "nvrtc", 5) ? nvrtc
                                                                                            : cuda;
  return symbol<int (*)(A...)>(library, name)(arguments...);
}

uint64_t count(const char* what) {
  return symbol<uint64_t (*)(const char*)>(cuda, "vrust_emu_count")(what);
}
void fail_next(const char* what, uint64_t nth) {
  symbol<void (*)(const char*, uint64_t)>(cuda, "vrust_emu_fail")(what, nth);
}

void want(bool ok, const char* what, int line) {
  if (!ok && problem.empty()) problem = "line " + std::to_string(line) + ": " + what;
}
#define WANT(condition) want(condition, #condition, __LINE__)

Pointer allocate(size_t bytes) {
  Pointer p = 0;
  WANT(call("cuMemAlloc_v2", &p, bytes) == 0);
  return p;
}
void release(Pointer p) { WANT(call("cuMemFree_v2", p) == 0); }

void* stream() {
  void* s = nullptr;
  WANT(call("cuStreamCreate", &s, 1u) == 0);
  return s;
}

struct Kernel {
  void *module = nullptr, *function = nullptr;
};

// A kernel by its source, as an engine gets it.
Kernel load(const char* name) {
  std::string source = "#include \"a.cuh\"\nextern \"C\" __global__ void __launch_bounds__(256) " +
                       std::string(name) + "(int x) {}\n";
  void* program = nullptr;
  const char *text = "", *header = "a.cuh";
  WANT(call("nvrtcCreateProgram", &program, source.c_str(), "a.cu", 1, &text, &header) == 0);
  const char* options[] = {"--gpu-architecture=sm_90a"};
  WANT(call("nvrtcCompileProgram", program, 1, options) == 0);
  size_t size = 0;
  WANT(call("nvrtcGetCUBINSize", program, &size) == 0);
  std::string cubin(size, '\0');
  WANT(call("nvrtcGetCUBIN", program, &cubin[0]) == 0);
  WANT(call("nvrtcDestroyProgram", &program) == 0);
  Kernel k;
  WANT(call("cuModuleLoadData", &k.module, cubin.c_str()) == 0);
  WANT(call("cuModuleGetFunction", &k.function, k.module, name) == 0);
  return k;
}

// y += bias, over one row of n.
int add_bias(const Kernel& k, void* s, Pointer y, Pointer bias, unsigned n, unsigned block = 256) {
  void* parameters[] = {&y, &bias, &n};
  void* none = nullptr;
  return call("cuLaunchKernel", k.function, (n + 1023) / 1024, 1u, 1u, block, 1u, 1u, 0u, s,
              parameters, static_cast<void**>(none));
}

std::vector<float> read(Pointer p, size_t n) {
  std::vector<float> v(n);
  WANT(call("cuMemcpyDtoH_v2", v.data(), p, n * 4) == 0);
  return v;
}
void write(Pointer p, const std::vector<float>& v) {
  WANT(call("cuMemcpyHtoD_v2", p, v.data(), v.size() * 4) == 0);
}

void work_is_late() {
  float* pinned = nullptr;
  WANT(call("cuMemHostAlloc", &pinned, size_t{16}, 0u) == 0);
  Pointer p = allocate(16);
  void* s = stream();
  pinned[0] = 1;
  WANT(call("cuMemcpyHtoDAsync_v2", p, pinned, size_t{16}, s) == 0);
  pinned[0] = 2;  // too early: the copy has not happened
  void* event = nullptr;
  WANT(call("cuEventCreate", &event, 0u) == 0);
  WANT(call("cuEventRecord", event, s) == 0);
  WANT(call("cuEventQuery", event) == 600);
  WANT(call("cuStreamSynchronize", s) == 0);
  WANT(call("cuEventQuery", event) == 0);
  WANT(read(p, 1)[0] == 2);
  WANT(call("cuEventDestroy_v2", event) == 0);
  WANT(call("cuStreamDestroy_v2", s) == 0);
  WANT(call("cuMemFreeHost", pinned) == 0);
  release(p);
}

void graphs_replay() {
  Kernel k = load("add_bias");
  Pointer y = allocate(400), bias = allocate(400);
  write(y, std::vector<float>(100, 1));
  write(bias, std::vector<float>(100, 0.5));
  void *s = stream(), *graph = nullptr, *executable = nullptr;
  WANT(call("cuStreamBeginCapture_v2", s, 1) == 0);
  WANT(add_bias(k, s, y, bias, 100) == 0);
  WANT(add_bias(k, s, y, bias, 100) == 0);
  WANT(call("cuStreamEndCapture", s, &graph) == 0);
  WANT(read(y, 1)[0] == 1);
  size_t nodes = 0;
  WANT(call("cuGraphGetNodes", graph, static_cast<void**>(nullptr), &nodes) == 0 && nodes == 2);
  WANT(call("cuGraphInstantiateWithFlags", &executable, graph, 0ull) == 0);
  WANT(call("cuGraphDestroy", graph) == 0);
  for (int i = 1; i <= 3; i++) {
    WANT(call("cuGraphLaunch", executable, s) == 0);
    WANT(call("cuStreamSynchronize", s) == 0);
    WANT(read(y, 100)[99] == 1 + static_cast<float>(i));
  }
  // Allocating while a capture is on spoils it.
  WANT(call("cuStreamBeginCapture_v2", s, 1) == 0);
  Pointer p = 0;
  WANT(call("cuMemAlloc_v2", &p, size_t{16}) == 900);
  WANT(call("cuStreamEndCapture", s, &graph) == 901);
  WANT(call("cuGraphExecDestroy", executable) == 0);
  WANT(call("cuStreamDestroy_v2", s) == 0);
  WANT(call("cuModuleUnload", k.module) == 0);
  release(y);
  release(bias);
}

void bad_arguments() {
  Kernel k = load("add_bias");
  Pointer y = allocate(16);
  char buffer[64];
  void *s = stream(), *function = nullptr, *module = nullptr;
  WANT(call("cuMemcpyHtoD_v2", y, buffer, size_t{17}) == 1);
  WANT(call("cuMemcpyDtoH_v2", buffer, y + 8, size_t{16}) == 1);
  WANT(call("cuMemFree_v2", y + 8) == 1);
  WANT(add_bias(k, s, y, y, 1, 1025) == 1);
  WANT(add_bias(k, reinterpret_cast<void*>(0x1234), y, y, 1) == 400);
  WANT(call("cuModuleGetFunction", &function, k.module, "no_such_kernel") == 500);
  WANT(call("cuModuleGetFunction", &function, k.module, "argmax") == 500);  // of another file
  WANT(call("cuModuleLoadData", &module, "garbage") == 200);
  WANT(call("cuModuleLoadData", &module, "vrust-emulated-cubin\nsm_80\n") == 209);
  WANT(call("cuFuncSetAttribute", k.function, 8, 228 * 1024) == 1);
  Pointer huge = 0;
  WANT(call("cuMemAlloc_v2", &huge, size_t{1} << 50) == 2);
  WANT(call("cuModuleUnload", k.module) == 0);
  WANT(call("cuStreamDestroy_v2", s) == 0);
  release(y);
}

void failures_on_demand() {
  Kernel k = load("add_bias");
  Pointer y = allocate(16), p = 0;
  void* s = stream();
  fail_next("alloc", 2);
  p = allocate(16);
  release(p);
  WANT(call("cuMemAlloc_v2", &p, size_t{16}) == 2);
  release(allocate(16));
  fail_next("launch", 1);
  WANT(add_bias(k, s, y, y, 1) == 701);
  WANT(add_bias(k, s, y, y, 1) == 0);
  fail_next("copy", 1);
  WANT(call("cuMemcpyHtoD_v2", y, &p, size_t{8}) == 999);
  fail_next("sync", 1);
  WANT(call("cuStreamSynchronize", s) == 999);
  WANT(call("cuStreamSynchronize", s) == 0);
  fail_next("lost", 1);
  WANT(add_bias(k, s, y, y, 1) == 719);
  WANT(call("cuMemAlloc_v2", &p, size_t{16}) == 719);
  WANT(call("cuStreamSynchronize", s) == 719);
  // What is freed is gone, error or not.
  uint64_t before = count("allocations");
  WANT(call("cuMemFree_v2", y) == 719 && count("allocations") == before - 1);
  WANT(call("cuModuleUnload", k.module) == 719);
  WANT(call("cuStreamDestroy_v2", s) == 719);
  fail_next("lost", 0);
  release(allocate(16));
}

// A kernel that runs past an allocation ends the process; so it is tried in a child.
void overruns_are_caught() {
  Kernel k = load("add_bias");
  Pointer y = allocate(4096), bias = allocate(4096);
  std::fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    add_bias(k, nullptr, y, bias, 1100);  // 4400 bytes
    call("cuCtxSynchronize");
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  WANT(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
  WANT(call("cuModuleUnload", k.module) == 0);
  release(y);
  release(bias);
}

float half_to_float(uint16_t x) {
  uint32_t u = uint32_t{x} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

void products() {
  const uint64_t rows = 5, n = 6, k = 34;
  std::vector<uint16_t> x(rows * k), w(n * k);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<uint16_t>(0x3f80 + i * 7 % 64);
  for (size_t i = 0; i < w.size(); i++) w[i] = static_cast<uint16_t>(0xbf00 + i * 5 % 96);
  Pointer dx = allocate(x.size() * 2), dw = allocate(w.size() * 2), dy = allocate(rows * n * 4);
  WANT(call("cuMemcpyHtoD_v2", dx, x.data(), x.size() * 2) == 0);
  WANT(call("cuMemcpyHtoD_v2", dw, w.data(), w.size() * 2) == 0);
  write(dy, std::vector<float>(rows * n, 3));
  void *handle = nullptr, *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr, *s = stream();
  void* preference = nullptr;
  WANT(call("cublasLtCreate", &handle) == 0);
  WANT(call("cublasLtMatmulDescCreate", &desc, 68, 0) == 0);
  int transpose = 1;
  WANT(call("cublasLtMatmulDescSetAttribute", desc, 3, &transpose, sizeof transpose) == 0);
  WANT(call("cublasLtMatrixLayoutCreate", &a, 14, k, n, static_cast<int64_t>(k)) == 0);
  WANT(call("cublasLtMatrixLayoutCreate", &b, 14, k, rows, static_cast<int64_t>(k)) == 0);
  WANT(call("cublasLtMatrixLayoutCreate", &c, 0, n, rows, static_cast<int64_t>(n)) == 0);
  WANT(call("cublasLtMatmulPreferenceCreate", &preference) == 0);
  struct {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
  } results[4];
  int found = 0;
  WANT(call("cublasLtMatmulAlgoGetHeuristic", handle, desc, a, b, c, c, preference, 4, &results[0],
            &found) == 0 && found >= 1);
  float one = 1;
  void* none = nullptr;
  auto multiply = [&](Pointer y) {
    return call("cublasLtMatmul", handle, desc, &one, dw, a, dx, b, &one, y, c, y, c,
                &results[0].algorithm, none, size_t{0}, s);
  };
  WANT(multiply(dy) == 0);
  WANT(call("cuStreamSynchronize", s) == 0);
  auto y = read(dy, rows * n);
  for (size_t r = 0; r < rows; r++) {
    for (size_t i = 0; i < n; i++) {
      double sum = 3;
      for (size_t j = 0; j < k; j++) {
        sum += double{half_to_float(x[r * k + j])} * half_to_float(w[i * k + j]);
      }
      WANT(std::fabs(y[r * n + i] - sum) < 1e-4 * std::fabs(sum));
    }
  }
  WANT(multiply(dy + 16) == 7);  // runs past the end
  for (void* layout : {a, b, c}) WANT(call("cublasLtMatrixLayoutDestroy", layout) == 0);
  WANT(call("cublasLtMatmulDescDestroy", desc) == 0);
  WANT(call("cublasLtMatmulPreferenceDestroy", preference) == 0);
  WANT(call("cublasLtDestroy", handle) == 0);
  WANT(call("cuStreamDestroy_v2", s) == 0);
  for (Pointer p : {dx, dw, dy}) release(p);
}

// What the driver refuses of a tensor map, one argument after the other.
void tensor_maps() {
  struct Wanted {
    Pointer base;
    uint64_t dims[3], strides[2];
    unsigned box[3], steps[3];
    int swizzle;
  };
  Pointer p = allocate(64 * 1024);
  alignas(128) char map[128];
  auto encode = [&](const Wanted& w, void* to, int type = 9) {
    return call("cuTensorMapEncodeTiled", to, type, 3u, reinterpret_cast<void*>(w.base), w.dims,
                w.strides, w.box, w.steps, 0, w.swizzle, 0, 0);
  };
  const Wanted good{p, {64, 32, 16}, {128, 4096}, {64, 8, 1}, {1, 1, 1}, 3};
  WANT(encode(good, map) == 0);
  WANT(encode(good, map + 16) == 1);   // the map is not aligned
  WANT(encode(good, map, 99) == 1);    // no such element
  auto refused = [&](const std::function<void(Wanted&)>& change) {
    Wanted w = good;
    change(w);
    return encode(w, map) == 1;
  };
  WANT(refused([](Wanted& w) { w.base += 8; }));
  WANT(refused([](Wanted& w) { w.dims[1] = 0; }));
  WANT(refused([](Wanted& w) { w.strides[0] = 120; }));
  WANT(refused([](Wanted& w) { w.box[1] = 257; }));
  WANT(refused([](Wanted& w) { w.box[0] = 4; }));      // less than 16 bytes
  WANT(refused([](Wanted& w) { w.swizzle = 2; }));     // narrower than the box
  WANT(refused([](Wanted& w) { w.swizzle = 9; }));
  WANT(refused([](Wanted& w) { w.dims[2] = 17; }));    // past the allocation
  release(p);
}

void compile_errors() {
  void* program = nullptr;
  const char* options[] = {"--gpu-architecture=sm_90a", "nonsense"};
  const char* source = "#include \"missing.cuh\"\n";
  const char** none = nullptr;
  WANT(call("nvrtcCreateProgram", &program, source, "a.cu", 0, none, none) == 0);
  WANT(call("nvrtcCompileProgram", program, 2, options) == 5);
  WANT(call("nvrtcCompileProgram", program, 1, options) == 6);
  size_t size = 0;
  WANT(call("nvrtcGetProgramLogSize", program, &size) == 0 && size > 1);
  std::string log(size, '\0');
  WANT(call("nvrtcGetProgramLog", program, &log[0]) == 0);
  WANT(log.find("missing.cuh") != std::string::npos);
  WANT(call("nvrtcDestroyProgram", &program) == 0);
}

// After everything else.
void nothing_leaks() {
  for (const char* what : {"allocations", "bytes", "pinned", "streams", "events", "graphs",
                           "modules"}) {
    WANT(count(what) == 0);
  }
  WANT(count("launches") > 0);
  WANT(call("cuDevicePrimaryCtxRelease_v2", 0) == 0 && count("contexts") == 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::string folder = argv[1];
  cuda = dlopen((folder + "/libcuda.so.1").c_str(), RTLD_NOW | RTLD_GLOBAL);
  blas = dlopen((folder + "/libcublasLt.so.13").c_str(), RTLD_NOW);
  nvrtc = dlopen((folder + "/libnvrtc.so.13").c_str(), RTLD_NOW);
  if (!cuda || !blas || !nvrtc) {
    std::printf("%s\n0 passed, 1 failed\n", dlerror());
    return 1;
  }
  Pointer p = 0;
  WANT(call("cuMemAlloc_v2", &p, size_t{16}) == 3);
  WANT(call("cuInit", 0u) == 0);
  WANT(call("cuMemAlloc_v2", &p, size_t{16}) == 201);
  void* context = nullptr;
  WANT(call("cuDevicePrimaryCtxRetain", &context, 0) == 0);
  WANT(call("cuCtxSetCurrent", context) == 0);
  const std::pair<const char*, std::function<void()>> checks[] = {
      {"start", [] {}}, {"work is late", work_is_late}, {"graphs replay", graphs_replay},
      {"bad arguments", bad_arguments}, {"failures on demand", failures_on_demand},
      {"overruns are caught", overruns_are_caught}, {"products", products},
      {"tensor maps", tensor_maps}, {"compile errors", compile_errors},
      {"nothing leaks", nothing_leaks}};
  int passed = 0, failed = 0;
  for (const auto& [name, run] : checks) {
    run();
    std::printf("%-24s %s\n", name, problem.empty() ? "ok" : problem.c_str());
    (problem.empty() ? passed : failed)++;
    problem.clear();
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
