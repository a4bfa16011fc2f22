// Runs the threads of a CUDA block on the host: one fiber a thread, switched by hand.
//
// A fiber runs until it waits (a barrier, a collective of its warp, an mbarrier); then it switches
// to the next one. With a seed of 0 warps and lanes run in order, else in an order that the seed
// decides, which finds most missing barriers. Blocks are spread over host threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace emu {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// No multiple of a cache's size: the ends of all stacks would fall into the same few lines of it.
constexpr size_t kStack = 64 * 1024 + 704;
constexpr size_t kSharedMost = 227 * 1024;
constexpr unsigned kBarriers = 16;

// A copy to shared memory that was begun and not yet waited for.
struct PendingCopy {
  void* to;
  const void* from;
  unsigned bytes, read;  // the rest of `bytes` is zero
};

struct Block;

// What a switch reads stands in one line of the cache.
struct alignas(64) Fiber {
  void* stack_pointer = nullptr;
  const unsigned* wait = nullptr;  // waits while *wait == wait_value
  unsigned wait_value = 0;
  bool done = false;
  bool has_waited = false;  // for the kernel before this one
  unsigned lane = 0, warp = 0;
  Dim3 thread;
  Block* block = nullptr;
  const char* why = "";
  std::vector<std::vector<PendingCopy>> groups;  // committed copies, oldest first
  std::vector<PendingCopy> open;                 // not committed yet
};

// The values of one collective, by lane and close together; two sets, so that the next one may
// begin.
struct Collective {
  unsigned mask = 0, count = 0, phase = 0;
  alignas(64) unsigned char values[2][32 * 64];
};

struct Warp {
  static constexpr int kMost = 8;
  Collective collectives[kMost];
  int used = 0;
  Collective& of(unsigned mask) {
    for (int i = 0; i < used; i++) {
      if (collectives[i].mask == mask) return collectives[i];
    }
    return another(mask);
  }

 private:
  Collective& another(unsigned mask);
};

struct Barrier {
  unsigned arrived = 0, phase = 0;
  int any = 0, all = 1, count = 0;
  int result_any[2], result_all[2], result_count[2];
  void release();
};

struct Hopper;
class Schedule;

struct Block {
  Dim3 index, size, grid;
  const char* kernel = "";
  unsigned threads = 0, alive = 0;
  bool dependent = false;
  Fiber* running = nullptr;
  std::vector<Fiber> fibers;  // at least `threads`, and whole warps
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
  const std::function<void()>* body = nullptr;
  Schedule* schedule = nullptr;
  Fiber host;  // goes on when every thread has ended
  unsigned char* shared = nullptr;  // dynamic shared memory, with a guard page behind its end
  size_t shared_bytes = 0;
  uint64_t switches = 0;
  std::shared_ptr<Hopper> hopper;  // of blocks that use what sm_90a adds (hopper.h)
  uint64_t releases = 0;  // of barriers: a warp waits for these or for lanes of its own
};

inline thread_local Block* block = nullptr;
// The thread that runs, for code that one runs. In a register that the compiler leaves alone and
// that a switch exchanges with the others: kernels ask for it all the time.
register Fiber* fiber asm("r15");

struct Totals {
  std::atomic<uint64_t> launches{0}, blocks{0}, switches{0};
};
inline Totals totals;
inline unsigned seed = 0;
inline unsigned host_threads = 0;  // 0: all cores

// Says what a kernel did wrong, and where, and ends the process.
[[noreturn]] void fail(const char* format, ...);
// Waits while `phase == value`.
void wait_on(const unsigned& phase, unsigned value, const char* why);
// Arrives at barrier `id` of `expected` threads (0: all that are alive) and waits for it; returns
// the set that holds its results.
unsigned arrive_and_wait(unsigned id, unsigned expected, int predicate, const char* why);
void arrive(unsigned id, unsigned expected);

typedef const unsigned char* Values;
// The collective of a lane and the others of `mask`, which must be lanes of its warp.
Collective& collective_of(const Fiber& f, unsigned mask, const char* why);
// Waits for the other lanes, all of which give a value.
void meet(Fiber& f, Collective& c, const char* why);

// Each lane of `mask` gives `value`; returns all lanes' values, valid until the next but one.
template <class T>
Values exchange(unsigned mask, const T& value, const char* why) {
  static_assert(sizeof(T) <= 64);
  Fiber& f = *fiber;
  Collective& c = collective_of(f, mask, why);
  unsigned char* values = c.values[c.phase & 1];
  std::memcpy(values + f.lane * sizeof(T), &value, sizeof(T));
  meet(f, c, why);
  return values;
}

template <class T>
T value_of(Values values, unsigned lane) {
  T t;
  std::memcpy(&t, values + lane * sizeof(T), sizeof(T));
  return t;
}

// Runs `body` once for each thread of the grid. Threads of a `dependent` kernel must wait for the
// kernel before it: a device may begin it before that one has ended.
void launch(const char* kernel, Dim3 grid, Dim3 size, size_t shared_bytes,
            const std::function<void()>& body, bool dependent);

}  // namespace emu
