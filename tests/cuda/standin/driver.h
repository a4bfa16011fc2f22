// A libcuda whose device is the host: the part of the driver's interface that vrust and cudarc
// call, over the emulation. Its own state is here; the functions stand in driver_*.cpp by topic.
//
// Work is kept in one queue, in the order of the calls, and runs when somebody waits: a caller that
// reads too early sees what it would see on a device. Errors can be asked for (driver_faults.cpp).
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace standin {

typedef int Result;
typedef unsigned long long Pointer;

enum : Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNoBinary = 209,
  kInvalidHandle = 400,
  kIllegalState = 401,
  kNotFound = 500,
  kNotReady = 600,
  kOutOfResources = 701,
  kLaunchFailed = 719,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kUnknown = 999,
};

typedef std::function<void()> Operation;

struct Capture {
  std::vector<Operation> operations;
  bool invalid = false;
  int mode = 0;
};

struct Stream {
  std::shared_ptr<Capture> capture;
  bool began = false;  // the capture began here
};

struct Event {
  std::shared_ptr<Capture> capture;
  bool pending = false;
  double time = 0;
};

struct Graph {
  std::vector<Operation> operations;
};

struct Module {
  std::string image;   // of a stand-in's own image: the names that it holds
  bool any = false;    // a real cubin: holds whatever is asked for
};

struct Context {
  int device = 0;
  int retained = 0;
};

struct Options {
  unsigned devices = 1, capability = 90, version = 13000;
  size_t memory = size_t{4} << 30;
  bool lazy = true;
  bool tight = false;  // allocations end at a guard page to 16 bytes instead of 256
  std::string report;
};

// What is alive or was done, by name.
struct Counts {
  uint64_t launches = 0, allocs = 0;
  // Calls that make the host wait; copies to and from it; graphs run; tensor maps made.
  uint64_t waits = 0, copies_in = 0, copies_out = 0, replays = 0, maps = 0;
  std::map<std::string, uint64_t> by_kernel;
  std::set<std::thread::id> threads;  // that gave the device work
};

struct State {
  std::recursive_mutex mutex;
  Options options;
  bool initialized = false, lost = false;
  std::vector<Context> contexts;
  std::deque<Operation> queue;
  std::map<Pointer, size_t> allocations;
  size_t used = 0;
  std::map<uintptr_t, size_t> pinned;
  std::set<Stream*> streams;
  std::set<Event*> events;
  std::set<Graph*> graphs;
  std::set<Module*> modules;
  std::map<void*, int> shared_limits;  // by function
  Counts counts;
  Stream null_stream;
};

State& state();
Context*& current();

enum class Fault { kAlloc, kLaunch, kCopy, kSync, kLost };
// Counts one call of that kind; true when it is the one that shall fail.
bool strikes(Fault fault);

// Runs all that waits.
void drain();
// Puts work into a stream or its capture.
Result enqueue(void* stream, Operation operation);
Stream* stream_of(void* handle);
// Whether [p, p + bytes) lies in one allocation.
bool in_device(Pointer p, size_t bytes);
bool is_pinned(const void* p, size_t bytes);
// The most dynamic shared memory of a block.
int shared_most();
// Marks this thread's captures as spoiled, if it has one that forbids what was called.
bool spoils_capture();

// What every function begins with: a lock, and the errors that any call may give.
#define ENTER_ANY() std::lock_guard<std::recursive_mutex> lock(standin::state().mutex)
#define ENTER()                                                        \
  ENTER_ANY();                                                         \
  if (!standin::state().initialized) return standin::kNotInitialized;  \
  if (standin::state().lost) return standin::kLaunchFailed
#define ENTER_CONTEXT() \
  ENTER();              \
  if (standin::current() == nullptr) return standin::kInvalidContext

}  // namespace standin
