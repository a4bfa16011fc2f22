// A device through the driver's interface, opened at run time: the stand-in or a real one. The same
// checks run on both.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// As the driver's CUtensorMap.
struct alignas(128) TensorMap {
  uint64_t words[16];
};
// Of bf16 in three dimensions: elements of each, bytes from one to the next of the last two.
struct Tensor {
  uint64_t base, dims[3], strides[2];
};

class Device {
 public:
  // Opens the libraries, and compiles every .cu of the folders for the device.
  Device(const std::string& cuda, const std::string& nvrtc,
         const std::vector<std::string>& folders);

  bool emulated() const { return set_seed_ != nullptr; }
  // Of the emulation's schedule; does nothing on a real device.
  void seed(unsigned value) const;
  const std::string& name() const { return name_; }
  unsigned capability() const { return capability_; }
  unsigned multiprocessors() const { return multiprocessors_; }
  const std::vector<std::string>& kernels() const { return kernels_; }
  bool has(const std::string& kernel) const { return functions_.count(kernel) != 0; }
  double compile_seconds() const { return compile_seconds_; }

  uint64_t allocate(size_t bytes);
  void release(uint64_t p);
  void upload(uint64_t to, const void* from, size_t bytes);
  void download(void* to, uint64_t from, size_t bytes);
  void launch(const std::string& kernel, Grid grid, unsigned block, unsigned shared,
              void** parameters);
  void synchronize();
  // For copies of boxes, swizzled as wide as their rows.
  TensorMap boxes(const Tensor& tensor, unsigned x, unsigned y) const;
  // Mean seconds of one call of `work`, over `repeats` of them.
  template <class F>
  double time(int repeats, F work) {
    start_timer();
    for (int i = 0; i < repeats; i++) work();
    return stop_timer() / repeats;
  }

 private:
  // The cubin of a file.
  std::string compile(const std::string& path,
                      const std::map<std::string, std::string>& headers) const;
  void load(const std::string& cubin);
  void start_timer();
  double stop_timer();
  void check(int result, const std::string& what) const;
  template <class F>
  F symbol(const char* name) const;

  void *cuda_ = nullptr, *nvrtc_ = nullptr;
  void (*set_seed_)(unsigned) = nullptr;
  std::string name_, arch_;
  unsigned capability_ = 0, multiprocessors_ = 0;
  std::vector<std::string> kernels_;
  std::map<std::string, void*> functions_;
  double compile_seconds_ = 0;
  void *start_ = nullptr, *stop_ = nullptr;
};

// Elements in device memory.
template <class T>
class Buffer {
 public:
  Buffer(Device& device, const std::vector<T>& values) : Buffer(device, values.size()) {
    device.upload(p_, values.data(), values.size() * sizeof(T));
  }
  Buffer(Device& device, size_t count) : device_(&device), count_(count) {
    p_ = device.allocate(count * sizeof(T));
  }
  Buffer(Buffer&& other) : device_(other.device_), p_(other.p_), count_(other.count_) {
    other.p_ = 0;
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
    if (p_) device_->release(p_);
  }
  uint64_t pointer() const { return p_; }
  size_t size() const { return count_; }
  std::vector<T> values() const {
    std::vector<T> out(count_);
    device_->download(out.data(), p_, count_ * sizeof(T));
    return out;
  }

 private:
  Device* device_;
  uint64_t p_ = 0;
  size_t count_;
};

// What a kernel takes for a buffer is its address.
template <class T>
uint64_t argument(const Buffer<T>& b) {
  return b.pointer();
}
template <class T>
T argument(const T& value) {
  return value;
}

constexpr uint64_t kNull = 0;
constexpr unsigned kNone = 0xffffffffu;
