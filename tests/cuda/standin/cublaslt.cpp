// A libcublasLt with one product: D = alpha op(A) op(B) + beta C in plain loops, columns-major as
// there, f32 or bf16 elements, sums in f32 in ascending order. Work goes through the stand-in
// driver's streams, so that it is captured and runs late like everything else.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" int vrust_emu_enqueue(void* stream, void (*run)(void*), void (*drop)(void*), void* data);
extern "C" int vrust_emu_is_device(const void* p, size_t bytes);

namespace {

enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kExecutionFailed = 13,
              kNotSupported = 15 };
enum Type { kF32 = 0, kBf16 = 14 };
enum Epilogue { kDefault = 1, kBias = 4 };
constexpr int kCompute32F = 68, kComputeFastTf32 = 77;
constexpr uint64_t kAlgorithmMagic = 0x76727573745f6c74;
// Algorithms offered for each shape; all give the same bits.
constexpr int kAlgorithms = 3;

struct Description {
  int32_t compute, scale, trans_a = 0, trans_b = 0, epilogue = kDefault, bias_type = -1;
  int32_t pointer_mode = 0;
  const void* bias = nullptr;
};
struct Layout {
  int32_t type, order = 0;
  uint64_t rows, columns;
  int64_t ld;
  int32_t batches = 1;
};
struct Preference {
  uint64_t workspace = 0;
};
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

size_t size_of(int type) { return type == kF32 ? 4 : 2; }

float load(const void* p, int type, size_t i) {
  if (type == kF32) return static_cast<const float*>(p)[i];
  uint32_t u = uint32_t{static_cast<const uint16_t*>(p)[i]} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

void store(void* p, int type, size_t i, float x) {
  if (type == kF32) {
    static_cast<float*>(p)[i] = x;
    return;
  }
  uint32_t u;
  std::memcpy(&u, &x, 4);
  bool nan = (u & 0x7fffffff) > 0x7f800000;
  u += 0x7fff + (u >> 16 & 1);
  static_cast<uint16_t*>(p)[i] = nan ? 0x7fff : static_cast<uint16_t>(u >> 16);
}

struct Product {
  Description desc;
  Layout a, b, c, d;
  float alpha, beta;
  const void *A, *B, *C;
  void* D;
  int id = 0;
};

// op(M) by rows of `inner` elements: rows of op(A), columns of op(B).
std::vector<float> gather(const void* p, const Layout& l, bool inner_is_first, size_t inner,
                          size_t outer) {
  std::vector<float> out(inner * outer);
  size_t ld = static_cast<size_t>(l.ld);
  for (size_t o = 0; o < outer; o++) {
    for (size_t i = 0; i < inner; i++) {
      out[o * inner + i] = load(p, l.type, inner_is_first ? i + o * ld : o + i * ld);
    }
  }
  return out;
}

float dot(const float* x, const float* y, size_t n) {
  float sums[16] = {};
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (size_t l = 0; l < 16; l++) sums[l] += x[i + l] * y[i + l];
  }
  float sum = 0;
  for (; i < n; i++) sum += x[i] * y[i];
  for (float s : sums) sum += s;
  return sum;
}

// The algorithm that is faster than the others; -1: none is.
std::atomic<int> fast{-1};
// Calls so far.
std::atomic<uint64_t> heuristics, products[kAlgorithms];

void run(void* data) {
  const Product& p = *static_cast<Product*>(data);
  if (fast >= 0 && p.id != fast) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  size_t m = p.d.rows, n = p.d.columns;
  size_t k = p.desc.trans_a ? p.a.rows : p.a.columns;
  std::vector<float> a = gather(p.A, p.a, p.desc.trans_a != 0, k, m);
  std::vector<float> b = gather(p.B, p.b, p.desc.trans_b == 0, k, n);
  int bias_type = p.desc.bias_type >= 0 ? p.desc.bias_type : p.d.type;
  for (size_t j = 0; j < n; j++) {
    for (size_t i = 0; i < m; i++) {
      float x = p.alpha * dot(&a[i * k], &b[j * k], k);
      if (p.beta != 0) x += p.beta * load(p.C, p.c.type, i + j * static_cast<size_t>(p.c.ld));
      if (p.desc.epilogue == kBias) x += load(p.desc.bias, bias_type, i);
      store(p.D, p.d.type, i + j * static_cast<size_t>(p.d.ld), x);
    }
  }
}

bool fits(const void* p, const Layout& l) {
  if (l.ld < static_cast<int64_t>(l.rows) || !l.rows || !l.columns) return false;
  size_t elements = static_cast<size_t>(l.ld) * (l.columns - 1) + l.rows;
  return vrust_emu_is_device(p, elements * size_of(l.type));
}

Status check(const Description& desc, const Layout& a, const Layout& b, const Layout& c,
             const Layout& d) {
  if (desc.compute != kCompute32F && desc.compute != kComputeFastTf32) return kNotSupported;
  if (desc.scale != kF32) return kNotSupported;
  if (desc.epilogue != kDefault && desc.epilogue != kBias) return kNotSupported;
  for (const Layout* l : {&a, &b, &c, &d}) {
    if (l->type != kF32 && l->type != kBf16) return kNotSupported;
    if (l->order != 0 || l->batches != 1) return kNotSupported;
  }
  if (a.type != b.type || c.type != d.type) return kNotSupported;
  // bf16 operands are loaded 4 bytes at least at a time.
  if (a.type == kBf16 && (a.ld % 2 || b.ld % 2)) return kNotSupported;
  uint64_t m = desc.trans_a ? a.columns : a.rows, k = desc.trans_a ? a.rows : a.columns;
  uint64_t n = desc.trans_b ? b.rows : b.columns, k2 = desc.trans_b ? b.columns : b.rows;
  bool agree = k == k2 && m == d.rows && n == d.columns && c.rows == m && c.columns == n;
  return agree ? kSuccess : kInvalidValue;
}

template <class T>
void set(T& field, const void* value, size_t size) {
  if (size == sizeof(T)) std::memcpy(&field, value, size);
}

void fill(Heuristic* h, int id) {
  std::memset(h, 0, sizeof *h);
  h->algorithm.data[0] = kAlgorithmMagic;
  h->algorithm.data[1] = static_cast<uint64_t>(id);
  h->waves = 1.0f;
}

bool is_ours(const Algorithm* algorithm) {
  return algorithm->data[0] == kAlgorithmMagic && algorithm->data[1] < kAlgorithms;
}

}  // namespace

// For tests: which algorithm is the fastest, how often heuristics were asked, and how many products
// an algorithm was asked for.
EXPORT void vrust_emu_fast_algorithm(int id) { fast = id; }
EXPORT uint64_t vrust_emu_heuristics() { return heuristics; }
EXPORT uint64_t vrust_emu_products(int id) { return products[id]; }

EXPORT int cublasLtCreate(void** handle) {
  *handle = new int(1);
  return kSuccess;
}
EXPORT int cublasLtDestroy(void* handle) {
  delete static_cast<int*>(handle);
  return kSuccess;
}
EXPORT size_t cublasLtGetVersion() { return 130000; }
EXPORT size_t cublasLtGetCudartVersion() { return 13000; }
EXPORT const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case kSuccess: return "CUBLAS_STATUS_SUCCESS";
    case kInvalidValue: return "CUBLAS_STATUS_INVALID_VALUE";
    case kNotSupported: return "CUBLAS_STATUS_NOT_SUPPORTED";
    case kExecutionFailed: return "CUBLAS_STATUS_EXECUTION_FAILED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
  }
}
EXPORT const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

EXPORT int cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
  *desc = new Description{compute, scale};
  return kSuccess;
}
EXPORT int cublasLtMatmulDescDestroy(void* desc) {
  delete static_cast<Description*>(desc);
  return kSuccess;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value,
                                          size_t size) {
  Description* d = static_cast<Description*>(desc);
  switch (attribute) {
    case 0: set(d->compute, value, size); break;
    case 1: set(d->scale, value, size); break;
    case 2: set(d->pointer_mode, value, size); break;
    case 3: set(d->trans_a, value, size); break;
    case 4: set(d->trans_b, value, size); break;
    case 7: set(d->epilogue, value, size); break;
    case 8: set(d->bias, value, size); break;
    case 26: set(d->bias_type, value, size); break;
    default: return kInvalidValue;
  }
  return d->pointer_mode == 0 ? kSuccess : kNotSupported;
}
EXPORT int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns,
                                      int64_t ld) {
  *layout = new Layout{type, 0, rows, columns, ld};
  return kSuccess;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Layout*>(layout);
  return kSuccess;
}
EXPORT int cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, const void* value,
                                            size_t size) {
  Layout* l = static_cast<Layout*>(layout);
  switch (attribute) {
    case 0: set(l->type, value, size); break;
    case 1: set(l->order, value, size); break;
    case 2: set(l->rows, value, size); break;
    case 3: set(l->columns, value, size); break;
    case 4: set(l->ld, value, size); break;
    case 5: set(l->batches, value, size); break;
    default: return kInvalidValue;
  }
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = new Preference;
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Preference*>(preference);
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                                size_t size) {
  if (attribute == 1) set(static_cast<Preference*>(preference)->workspace, value, size);
  return kSuccess;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void* c, void* d,
                                          void*, int requested, Heuristic* results,
                                          int* returned) {
  heuristics++;
  *returned = 0;
  Status status = check(*static_cast<Description*>(desc), *static_cast<Layout*>(a),
                        *static_cast<Layout*>(b), *static_cast<Layout*>(c),
                        *static_cast<Layout*>(d));
  if (status != kSuccess) return status;
  for (int i = 0; i < requested && i < kAlgorithms; i++) fill(&results[(*returned)++], i);
  return *returned ? kSuccess : kInvalidValue;
}
EXPORT int cublasLtMatmulAlgoGetIds(void*, int, int, int, int, int, int, int requested, int* ids,
                                    int* returned) {
  *returned = 0;
  for (int i = 0; i < requested && i < kAlgorithms; i++) ids[(*returned)++] = i;
  return kSuccess;
}
EXPORT int cublasLtMatmulAlgoInit(void*, int, int, int, int, int, int, int id,
                                  Algorithm* algorithm) {
  if (id < 0 || id >= kAlgorithms) return kInvalidValue;
  Heuristic h;
  fill(&h, id);
  *algorithm = h.algorithm;
  return kSuccess;
}
EXPORT int cublasLtMatmulAlgoCheck(void*, void* desc, void* a, void* b, void* c, void* d,
                                   const Algorithm* algorithm, Heuristic* result) {
  Status status = check(*static_cast<Description*>(desc), *static_cast<Layout*>(a),
                        *static_cast<Layout*>(b), *static_cast<Layout*>(c),
                        *static_cast<Layout*>(d));
  if (status != kSuccess) return status;
  if (!is_ours(algorithm)) return kInvalidValue;
  fill(result, static_cast<int>(algorithm->data[1]));
  return kSuccess;
}
EXPORT int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute,
                                                void* value, size_t size, size_t* written) {
  if (!is_ours(algorithm) || size < 4) return kInvalidValue;
  int32_t x = attribute == 0 ? static_cast<int32_t>(algorithm->data[1]) : 0;
  std::memcpy(value, &x, 4);
  if (written) *written = 4;
  return kSuccess;
}
EXPORT int cublasLtMatmul(void* handle, void* desc, const float* alpha, const void* A, void* a,
                          const void* B, void* b, const float* beta, const void* C, void* c,
                          void* D, void* d, const Algorithm* algorithm, void* workspace,
                          size_t workspace_size, void* stream) {
  if (!handle) return kNotInitialized;
  Product p{*static_cast<Description*>(desc), *static_cast<Layout*>(a), *static_cast<Layout*>(b),
            *static_cast<Layout*>(c), *static_cast<Layout*>(d), *alpha, *beta, A, B, C, D, 0};
  Status status = check(p.desc, p.a, p.b, p.c, p.d);
  if (status != kSuccess) return status;
  if (algorithm && !is_ours(algorithm)) return kInvalidValue;
  if (workspace_size && !vrust_emu_is_device(workspace, workspace_size)) return kInvalidValue;
  if (algorithm) p.id = static_cast<int>(algorithm->data[1]);
  products[p.id]++;
  if (!fits(A, p.a) || !fits(B, p.b) || !fits(D, p.d)) return kInvalidValue;
  if (p.beta != 0 && !fits(C, p.c)) return kInvalidValue;
  auto drop = [](void* data) { delete static_cast<Product*>(data); };
  return vrust_emu_enqueue(stream, run, drop, new Product(p)) == 0 ? kSuccess : kExecutionFailed;
}
