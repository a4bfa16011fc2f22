// What the tests share: checks, a list of tests, and what they ask of an engine.

#ifndef VRUST_CPP_TESTS_HARNESS_HPP
#define VRUST_CPP_TESTS_HARNESS_HPP

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vrust/vrust.hpp>

// Ends the program unless `condition` holds.
#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : harness::fail(__FILE__, __LINE__, #condition))

// The value of a Result; ends the program with the message where there is none.
#define GET(result) harness::get((result), __FILE__, __LINE__)

// Ends the program unless the Result is an error of this code.
#define CHECK_ERROR(expected, result) \
  harness::check_error(vrust::ErrorCode::expected, (result), __FILE__, __LINE__)

namespace harness {

using namespace std::chrono_literals;

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::exit(1);
}

template <typename T>
T get(vrust::Result<T> result, const char* file, int line) {
  if (!result) {
    const vrust::Error& error = result.error();
    fail(file, line, std::string(vrust::name(error.code())) + ": " + error.message());
  }
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

template <typename T>
vrust::Error check_error(vrust::ErrorCode expected, const vrust::Result<T>& result,
                         const char* file, int line) {
  if (result || result.error().code() != expected || result.error().message().empty()) {
    fail(file, line, std::string("expected ") + vrust::name(expected) + ", got " +
                         vrust::name(result.error().code()) + ": " + result.error().message());
  }
  return result.error();
}

inline std::string& model() {
  static std::string folder = "examples/demo-model";
  return folder;
}

inline vrust::EngineOptions options() {
  vrust::EngineOptions options;
  options.model = model();
  options.cpu_threads = 1;
  options.max_num_seqs = 64;
  options.kv_cache_memory_bytes = uint64_t{16} << 20;
  return options;
}

inline vrust::Engine ready_engine() {
  vrust::Engine engine = GET(vrust::Engine::create(options()));
  CHECK(GET(engine.wait_ready()));
  return engine;
}

// A greedy request.
inline vrust::Request greedy(std::string prompt, uint32_t max_tokens) {
  vrust::Request request;
  request.prompt = std::move(prompt);
  request.temperature = 0.0f;
  request.max_tokens = max_tokens;
  return request;
}

// A request that goes on until something ends it.
inline vrust::Request endless(std::string prompt = "Once") {
  vrust::Request request = greedy(std::move(prompt), 1900);
  request.ignore_eos = true;
  return request;
}

// Waits until no request is left and every KV block is free or merely cached.
inline void check_idle(const vrust::Engine& engine) {
  const auto limit = std::chrono::steady_clock::now() + 20s;
  while (std::chrono::steady_clock::now() < limit) {
    const vrust::Stats stats = GET(engine.stats());
    if (stats.live_requests == 0 && stats.kv_blocks_used == 0) return;
    std::this_thread::sleep_for(5ms);
  }
  fail(__FILE__, __LINE__, "the engine is not idle");
}

// A number of /proc/self/status, such as VmRSS in KiB or Threads.
inline long process_figure(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, name.size() + 1, name + ":") == 0) {
      return std::atol(line.c_str() + name.size() + 1);
    }
  }
  fail(__FILE__, __LINE__, "no " + name + " in /proc/self/status");
}

struct Test {
  const char* name;
  void (*run)();
};

// main: runs the tests that the arguments name, after the model folder; all, if none.
template <size_t size>
int run(const Test (&tests)[size], int argc, char** argv) {
  if (argc > 1) model() = argv[1];
  int passed = 0;
  for (const Test& test : tests) {
    bool selected = argc <= 2;
    for (int i = 2; i < argc; i++) selected = selected || std::string(argv[i]) == test.name;
    if (!selected) continue;
    std::printf("%-24s", test.name);
    std::fflush(stdout);
    const auto began = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    std::printf("ok  %6.2f s\n", took.count());
    passed++;
  }
  std::printf("%d passed\n", passed);
  return passed > 0 ? 0 : 1;
}

}  // namespace harness

#endif
