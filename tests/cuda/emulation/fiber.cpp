#include "fiber.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdarg>
#include <mutex>
#include <thread>

#include "hopper.h"

namespace emu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

// r15 is `fiber`, so that each finds itself there when it goes on.
__attribute__((naked, noinline)) void swap_stacks(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

// What a fiber runs: the kernel, then never again.
void entry();

// A small generator: the schedule must not depend on the library.
struct Random {
  uint64_t state;
  unsigned below(unsigned n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<unsigned>((state >> 32) * n >> 32);
  }
  void shuffle(std::vector<unsigned>& v) {
    for (size_t i = v.size(); i > 1; i--) std::swap(v[i - 1], v[below(static_cast<unsigned>(i))]);
  }
};

void set_up(Block& b, unsigned char* stacks) {
  b.alive = b.threads;
  b.host.block = &b;
  const unsigned warps = (b.threads + 31) / 32;
  if (b.warps.size() < warps) {
    b.fibers.resize(warps * 32);
    b.warps.resize(warps);
  }
  for (Warp& w : b.warps) w.used = 0;
  for (Barrier& barrier : b.barriers) barrier = Barrier{};
  for (unsigned i = 0; i < b.threads; i++) {
    Fiber& f = b.fibers[i];
    f.thread = {i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y)};
    f.block = &b;
    f.lane = i % 32;
    f.warp = i / 32;
    f.done = f.has_waited = false;
    f.wait = nullptr;
    f.groups.clear();
    f.open.clear();
    // Where `swap_stacks` finds six registers and the address to return to.
    void** top = reinterpret_cast<void**>(stacks + (i + 1) * kStack);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&entry);
    top -= 6;
    top[0] = &f;  // r15
    f.stack_pointer = top;
  }
}

void report_deadlock(const Block& b) {
  std::fprintf(stderr, "emulation: deadlock in %s, block (%u,%u,%u):", b.kernel, b.index.x,
               b.index.y, b.index.z);
  for (size_t first = 0, next; first < b.threads; first = next) {
    const Fiber& f = b.fibers[first];
    auto alike = [&](const Fiber& g) { return g.done == f.done && (f.done || g.why == f.why); };
    for (next = first + 1; next < b.threads && alike(b.fibers[next]); next++) {
    }
    if (!f.done) std::fprintf(stderr, " %zu-%zu:%s", first, next - 1, f.why);
  }
  std::fprintf(stderr, "\n");
  std::abort();
}

}  // namespace

// Which thread of a block runs next. A warp runs in rounds over its lanes until none of them can go
// on, or until the seed says so; then the next warp.
class Schedule {
 public:
  explicit Schedule(Block& b) : block_(b), lanes_(32), warps_((b.threads + 31) / 32) {
    const uint64_t row = b.index.z * uint64_t{b.grid.y} + b.index.y;
    random_ = {seed * 0x9e3779b97f4a7c15ull + row * b.grid.x + b.index.x};
    for (unsigned i = 0; i < 32; i++) lanes_[i] = i;
    for (unsigned i = 0; i < warps_.size(); i++) warps_[i] = i;
    stuck_.assign(warps_.size(), ~uint64_t{0});
    if (seed) random_.shuffle(warps_);
    begin_round();
  }

  // Nothing once all have ended.
  Fiber* next() {
    for (;;) {
      while (lane_ < 32) {
        const unsigned lane = lanes_[lane_++];
        if (lane >= count_) continue;
        Fiber& f = first_[lane];
        if (f.done || (f.wait && *f.wait == f.wait_value)) continue;
        ran_ = any_ = true;
        if (lane_ < 32) fetch_stack(first_[lanes_[lane_]]);
        return &f;
      }
      if (!ran_) stuck_[warps_[warp_]] = block_.releases;
      // Another warp's turn may come between any two rounds of this one.
      const bool leaves = seed && random_.below(4) == 0;
      if ((leaves || !ran_) && !next_warp()) return nullptr;
      begin_round();
    }
  }

 private:
  void begin_round() {
    const unsigned base = warps_[warp_] * 32;
    first_ = &block_.fibers[base];
    count_ = std::min(32u, block_.threads - base);
    for (unsigned i = 0; i < count_; i++) __builtin_prefetch(&first_[i]);
    ran_ = false;
    lane_ = 0;
    if (seed) random_.shuffle(lanes_);
  }

  // Most of a switch would be to wait for what the next one finds on its stack.
  static void fetch_stack(const Fiber& f) {
    const char* top = static_cast<const char*>(f.stack_pointer);
    for (int i = 0; i < 3; i++) __builtin_prefetch(top + i * 64);
  }

  bool next_warp() {
    if (seed && random_.below(4) == 0) any_ |= end_a_copy();
    for (;;) {
      while (++warp_ < warps_.size()) {
        if (stuck_[warps_[warp_]] != block_.releases) return true;
      }
      if (block_.alive == 0) return false;
      if (!any_ && !end_a_copy()) report_deadlock(block_);
      any_ = false;
      warp_ = ~size_t{0};
      if (seed) random_.shuffle(warps_);
    }
  }

  // Lets a copy of those under way arrive; says whether there was one. Without a seed the oldest,
  // and only when nobody can go on.
  bool end_a_copy() {
    if (!block_.hopper || block_.hopper->copies.empty()) return false;
    const unsigned count = static_cast<unsigned>(block_.hopper->copies.size());
    block_.hopper->end_copy(seed ? random_.below(count) : 0);
    return true;
  }

  Block& block_;
  Random random_;
  std::vector<unsigned> lanes_, warps_;
  std::vector<uint64_t> stuck_;  // the releases after which no lane of a warp could go on
  size_t warp_ = 0, lane_ = 0;
  Fiber* first_ = nullptr;  // of the warp
  unsigned count_ = 0;
  bool ran_ = false, any_ = false;
};

namespace {

// From `from` to whoever is next, which may be itself.
void switch_from(Fiber& from) {
  Block& b = *from.block;
  Fiber* next = b.schedule->next();
  if (next == &from) return;
  b.running = next;
  swap_stacks(&from.stack_pointer, (next ? next : &b.host)->stack_pointer);
}

void yield(Fiber& f) {
  f.block->switches++;
  switch_from(f);
}

// Waits while `phase == value`.
void wait(Fiber& f, const unsigned& phase, unsigned value, const char* why) {
  f.wait = &phase;
  f.wait_value = value;
  f.why = why;
  yield(f);
  f.wait = nullptr;
}

void entry() {
  Fiber* f = fiber;
  Block* b = f->block;
  (*b->body)();
  for (auto& group : f->groups) {
    if (!group.empty()) fail("a thread ends with asynchronous copies that it did not wait for");
  }
  if (!f->open.empty()) fail("a thread ends with asynchronous copies that it did not wait for");
  if (b->hopper) b->hopper->check_thread();
  if (b->dependent && !f->has_waited) fail("a thread ends without waiting for the kernel before");
  f->done = true;
  b->alive--;
  // Threads that ended count as arrived.
  Barrier& all = b->barriers[0];
  if (all.arrived != 0 && all.arrived == b->alive) all.release();
  switch_from(*f);
  __builtin_unreachable();
}

void run_block(Block& b, unsigned char* stacks) {
  block = &b;
  set_up(b, stacks);
  if (b.shared_bytes) std::memset(b.shared, 0xff, b.shared_bytes);
  Schedule schedule(b);
  b.schedule = &schedule;
  switch_from(b.host);
  if (b.hopper) b.hopper->check_block();
  b.hopper = nullptr;
  block = nullptr;
}

// Memory whose end is the end of a page, with a page behind it that nobody may touch.
class Guarded {
 public:
  // The last `bytes` of the memory; what an earlier call returned is no longer valid.
  unsigned char* last(size_t bytes) {
    size_t pages = (bytes + kPage - 1) / kPage * kPage;
    if (pages > pages_) {
      release();
      void* p = mmap(nullptr, pages + kPage, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) std::abort();
      // Stacks of a block lie on more small pages than a core looks up fast.
      if (pages >= kHugePage) madvise(p, pages, MADV_HUGEPAGE);
      base_ = static_cast<unsigned char*>(p);
      pages_ = pages;
      mprotect(base_ + pages, kPage, PROT_NONE);
    }
    return base_ + pages_ - bytes;
  }
  ~Guarded() { release(); }

 private:
  void release() {
    if (base_) munmap(base_, pages_ + kPage);
  }
  unsigned char* base_ = nullptr;
  size_t pages_ = 0;
};

// What one host thread needs, kept from launch to launch.
struct Workspace {
  Guarded stacks, shared;
  Block block;
};

// Host threads that wait for work, as many as a launch has asked for. They are never ended.
class Pool {
 public:
  // Runs `work` here and on `others` threads; returns when all are done.
  void run(unsigned others, const std::function<void()>& work) {
    std::lock_guard one_launch(launching_);
    {
      std::lock_guard lock(mutex_);
      for (; threads_ < others; threads_++) std::thread([this] { serve(); }).detach();
      work_ = &work;
      wanted_ = busy_ = others;
    }
    if (others) begin_.notify_all();
    work();
    std::unique_lock lock(mutex_);
    end_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      begin_.wait(lock, [this] { return wanted_ != 0; });
      wanted_--;
      const std::function<void()>& work = *work_;
      lock.unlock();
      work();
      lock.lock();
      if (--busy_ == 0) end_.notify_one();
    }
  }

  std::mutex launching_, mutex_;
  std::condition_variable begin_, end_;
  const std::function<void()>* work_ = nullptr;
  unsigned threads_ = 0, wanted_ = 0, busy_ = 0;
};

Pool& pool() {
  static Pool* all = new Pool;
  return *all;
}

struct sigaction old_action;

void on_fault(int signal, siginfo_t* info, void* context) {
  if (block != nullptr && block->running != nullptr) {
    fail("access to %p, which is no memory of the device", info->si_addr);
  }
  if (old_action.sa_flags & SA_SIGINFO) {
    old_action.sa_sigaction(signal, info, context);
    return;
  }
  sigaction(SIGSEGV, &old_action, nullptr);
}

void watch_faults() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_action);
  });
}

}  // namespace

void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  std::fprintf(stderr, "emulation: ");
  std::vfprintf(stderr, format, list);
  va_end(list);
  if (block != nullptr && block->running != nullptr) {
    const Fiber& f = *block->running;
    std::fprintf(stderr, " (%s, block %u,%u,%u, thread %u)", block->kernel, block->index.x,
                 block->index.y, block->index.z, f.warp * 32 + f.lane);
  }
  std::fprintf(stderr, "\n");
  std::abort();
}

Collective& Warp::another(unsigned mask) {
  int at = used;
  if (used == kMost) {
    for (at = 0; at < kMost && collectives[at].count != 0;) at++;
    if (at == kMost) fail("too many collectives of one warp at once");
  } else {
    used++;
  }
  collectives[at].mask = mask;
  collectives[at].count = 0;
  collectives[at].phase = 0;
  return collectives[at];
}

void Barrier::release() {
  unsigned set = phase & 1;
  result_any[set] = any;
  result_all[set] = all;
  result_count[set] = count;
  any = 0;
  all = 1;
  count = 0;
  arrived = 0;
  phase++;
  fiber->block->releases++;
}

void wait_on(const unsigned& phase, unsigned value, const char* why) {
  wait(*fiber, phase, value, why);
}

unsigned arrive_and_wait(unsigned id, unsigned expected, int predicate, const char* why) {
  if (id >= kBarriers) fail("barrier %u of %u", id, kBarriers);
  Fiber& f = *fiber;
  Barrier& barrier = f.block->barriers[id];
  unsigned phase = barrier.phase;
  barrier.any |= predicate != 0;
  barrier.all &= predicate != 0;
  barrier.count += predicate != 0;
  if (++barrier.arrived == (expected ? expected : f.block->alive)) {
    barrier.release();
    // Who releases a barrier does not run on before the others in every schedule.
    if (seed) yield(f);
  } else {
    wait(f, barrier.phase, phase, why);
  }
  return phase & 1;
}

void arrive(unsigned id, unsigned expected) {
  Barrier& barrier = fiber->block->barriers[id];
  if (++barrier.arrived == expected) barrier.release();
}

Collective& collective_of(const Fiber& f, unsigned mask, const char* why) {
  if (!(mask >> f.lane & 1)) fail("%s with mask 0x%08x, which lacks lane %u", why, mask, f.lane);
  unsigned present = f.block->threads - f.warp * 32;
  if (present < 32 && mask >> present) fail("%s with mask 0x%08x of a short warp", why, mask);
  return f.block->warps[f.warp].of(mask);
}

void meet(Fiber& f, Collective& c, const char* why) {
  if (++c.count == static_cast<unsigned>(__builtin_popcount(c.mask))) {
    c.count = 0;
    c.phase++;
  } else {
    wait(f, c.phase, c.phase, why);
  }
}

void launch(const char* kernel, Dim3 grid, Dim3 size, size_t shared_bytes,
            const std::function<void()>& body, bool dependent) {
  watch_faults();
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::atomic<uint64_t> next{0};
  const std::function<void()> work = [&] {
    static thread_local Workspace workspace;
    Block& b = workspace.block;
    b.grid = grid;
    b.size = size;
    b.kernel = kernel;
    b.threads = size.x * size.y * size.z;
    b.body = &body;
    b.dependent = dependent;
    b.shared_bytes = shared_bytes;
    b.switches = 0;
    unsigned char* stack_memory = workspace.stacks.last(b.threads * kStack);
    // Its end is up to 127 bytes from the guard page, its start aligned to 128.
    b.shared = workspace.shared.last((shared_bytes + 127) / 128 * 128);
    for (uint64_t i; (i = next++) < blocks;) {
      b.index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                 static_cast<unsigned>(i / (uint64_t{grid.x} * grid.y))};
      run_block(b, stack_memory);
    }
    totals.switches += b.switches;
  };
  uint64_t threads = host_threads ? host_threads : std::thread::hardware_concurrency();
  threads = std::min(std::max<uint64_t>(threads, 1), blocks);
  // To wake a thread costs more than a small grid.
  if (blocks * size.x * size.y * size.z <= 4096) threads = 1;
  pool().run(static_cast<unsigned>(threads - 1), work);
  totals.launches++;
  totals.blocks += blocks;
}

}  // namespace emu
