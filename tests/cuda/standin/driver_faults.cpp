// Failures on demand, counts of what is alive, and the report at the end.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../emulation/fiber.h"
#include "../emulation/registry.h"
#include "driver.h"

namespace standin {
namespace {

const char* const kNames[] = {"alloc", "launch", "copy", "sync", "lost"};
// Calls left until one fails; 0: none will.
uint64_t left[5];

uint64_t number(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

void set_fault(const std::string& what, uint64_t nth) {
  for (int i = 0; i < 5; i++) {
    if (what == kNames[i]) left[i] = nth;
  }
  if (what == "lost" && nth == 0) state().lost = false;
}

void read_faults(const char* text) {
  std::string all = text ? text : "";
  for (size_t at = 0; at < all.size();) {
    size_t end = std::min(all.find(',', at), all.size());
    size_t colon = all.find(':', at);
    if (colon < end) {
      set_fault(all.substr(at, colon - at), std::strtoull(&all[colon + 1], nullptr, 10));
    }
    at = end + 1;
  }
}

uint64_t alive(const std::string& what) {
  State& s = state();
  if (what == "allocations") return s.allocations.size();
  if (what == "bytes") return s.used;
  if (what == "pinned") return s.pinned.size();
  if (what == "streams") return s.streams.size();
  if (what == "events") return s.events.size();
  if (what == "graphs") return s.graphs.size();
  if (what == "modules") return s.modules.size();
  if (what == "launches") return s.counts.launches;
  if (what == "allocs") return s.counts.allocs;
  if (what == "waits") return s.counts.waits;
  if (what == "copies_in") return s.counts.copies_in;
  if (what == "copies_out") return s.counts.copies_out;
  if (what == "replays") return s.counts.replays;
  if (what == "maps") return s.counts.maps;
  if (what == "threads") return s.counts.threads.size();
  if (what.rfind("kernel:", 0) == 0) {
    auto found = s.counts.by_kernel.find(what.substr(7));
    return found == s.counts.by_kernel.end() ? 0 : found->second;
  }
  if (what == "contexts") {
    uint64_t retained = 0;
    for (const Context& c : s.contexts) retained += static_cast<uint64_t>(c.retained);
    return retained;
  }
  return UINT64_MAX;
}

void report() {
  State& s = state();
  FILE* file = std::fopen(s.options.report.c_str(), "w");
  if (!file) return;
  std::fprintf(file, "{\"seed\": %u, \"registered\": %zu", emu::seed, emu::registry().size());
  const char* const whats[] = {"launches", "allocs", "allocations", "bytes", "pinned", "streams",
                               "events", "graphs", "modules", "contexts"};
  for (const char* what : whats) {
    std::fprintf(file, ", \"%s\": %llu", what, static_cast<unsigned long long>(alive(what)));
  }
  std::fprintf(file, ", \"kernels\": {");
  const char* comma = "";
  for (const auto& [name, count] : s.counts.by_kernel) {
    std::fprintf(file, "%s\"%s\": %llu", comma, name.c_str(),
                 static_cast<unsigned long long>(count));
    comma = ", ";
  }
  std::fprintf(file, "}}\n");
  std::fclose(file);
}

// Reads the environment when the library is loaded.
struct Start {
  Start() {
    Options& o = state().options;
    emu::seed = static_cast<unsigned>(number("VRUST_EMU_SEED", 0));
    emu::host_threads = static_cast<unsigned>(number("VRUST_EMU_THREADS", 0));
    o.lazy = number("VRUST_EMU_LAZY", 1) != 0;
    o.memory = number("VRUST_EMU_MEMORY", o.memory);
    o.tight = number("VRUST_EMU_TIGHT", 0) != 0;
    o.capability = static_cast<unsigned>(number("VRUST_EMU_CC", o.capability));
    o.devices = static_cast<unsigned>(number("VRUST_EMU_DEVICES", o.devices));
    o.version = static_cast<unsigned>(number("VRUST_EMU_DRIVER", o.version));
    read_faults(std::getenv("VRUST_EMU_FAIL"));
    const char* path = std::getenv("VRUST_EMU_REPORT");
    if (path && *path) {
      o.report = path;
      std::atexit(report);
    }
  }
} start;

}  // namespace

// Never destroyed: the report and late calls find it.
State& state() {
  static State* s = new State;
  return *s;
}

Context*& current() {
  static thread_local Context* context = nullptr;
  return context;
}

bool strikes(Fault fault) {
  uint64_t& n = left[static_cast<int>(fault)];
  return n != 0 && --n == 0;
}

}  // namespace standin

EXPORT uint64_t vrust_emu_count(const char* what) {
  ENTER_ANY();
  return standin::alive(what);
}

EXPORT void vrust_emu_fail(const char* what, uint64_t nth) {
  ENTER_ANY();
  standin::set_fault(what, nth);
}

EXPORT void vrust_emu_seed(unsigned seed) {
  ENTER_ANY();
  emu::seed = seed;
}
