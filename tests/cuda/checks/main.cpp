// Runs every check on a device: the stand-in, in several schedules, or a real one.
//
//   kernel_checks --cuda libcuda.so.1 --nvrtc libnvrtc.so.13 [--sources kernels] [--only text]
//                 [--seeds 0,7] [--record file] [--against file]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <sstream>

#include "check.h"

namespace {

struct Options {
  std::string cuda = "libcuda.so.1", nvrtc = "libnvrtc.so.13", only, record, against;
  std::vector<std::string> sources;
  std::vector<unsigned> seeds = {0, 7};
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream in(list);
  std::string part;
  while (std::getline(in, part, ',')) parts.push_back(part);
  return parts;
}

bool parse(int argc, char** argv, Options& o) {
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (key == "--cuda") {
      o.cuda = value;
    } else if (key == "--nvrtc") {
      o.nvrtc = value;
    } else if (key == "--sources") {
      o.sources = split(value);
    } else if (key == "--only") {
      o.only = value;
    } else if (key == "--record") {
      o.record = value;
    } else if (key == "--against") {
      o.against = value;
    } else if (key == "--seeds") {
      o.seeds.clear();
      for (const auto& s : split(value)) {
        o.seeds.push_back(static_cast<unsigned>(std::strtoul(s.c_str(), nullptr, 10)));
      }
    } else {
      return false;
    }
  }
  if (o.sources.empty()) o.sources = {"kernels", "tests/cuda/checks"};
  return argc % 2 == 1;
}

double now() {
  auto t = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(t).count();
}

struct Totals {
  int passed = 0, failed = 0;
  std::set<std::string> kernels, shapes;
  std::map<std::string, uint64_t> digests;
};

void run_entry(Device& device, const Entry& entry, unsigned seed, Totals& totals,
               Record* record) {
  Check check(device, entry.name, record);
  double began = now();
  device.seed(seed);
  try {
    entry.run(check);
  } catch (const std::exception& e) {
    check.fail(e.what());
  }
  // Whatever the schedule, the bits are the same.
  auto [first, fresh] = totals.digests.emplace(entry.name, check.digest);
  if (!fresh && first->second != check.digest) {
    check.fail("other bits than in the first schedule");
  }
  totals.kernels.insert(check.kernels.begin(), check.kernels.end());
  totals.shapes.insert(check.shapes.begin(), check.shapes.end());
  bool ok = check.failures.empty();
  (ok ? totals.passed : totals.failed)++;
  std::printf("%-40s schedule %u %s %.2f s\n", entry.name, seed, ok ? "ok" : "FAILED",
              now() - began);
  size_t shown = 0;
  for (const auto& failure : check.failures) {
    if (shown++ < 8) std::printf("    %s\n", failure.c_str());
  }
  std::fflush(stdout);
}

int run(const Options& o) {
  Device device(o.cuda, o.nvrtc, o.sources);
  std::printf("%s, sm_%u, %zu kernels compiled in %.2f s\n", device.name().c_str(),
              device.capability(), device.kernels().size(), device.compile_seconds());
  std::vector<unsigned> seeds = o.seeds;
  if (!device.emulated()) seeds.resize(1);
  Totals totals;
  Record record(o.record, o.against);
  for (unsigned seed : seeds) {
    for (const Entry& entry : entries()) {
      if (std::string(entry.name).find(o.only) == std::string::npos) continue;
      run_entry(device, entry, seed, totals, seed == seeds[0] ? &record : nullptr);
    }
  }
  record.save();
  if (o.only.empty()) {
    for (const auto& kernel : device.kernels()) {
      if (totals.kernels.count(kernel)) continue;
      std::printf("no check runs %s\n", kernel.c_str());
      totals.failed++;
    }
  }
  std::printf("%zu kernels, %zu shapes, %zu schedules\n", totals.kernels.size(),
              totals.shapes.size(), seeds.size());
  std::printf("%d passed, %d failed\n", totals.passed, totals.failed);
  return totals.failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr, "usage: kernel_checks [--cuda F] [--nvrtc F] [--sources A,B] "
                         "[--only TEXT] [--seeds 0,7] [--record F] [--against F]\n");
    return 2;
  }
  try {
    return run(options);
  } catch (const std::exception& e) {
    std::printf("%s\n0 passed, 1 failed\n", e.what());
    return 1;
  }
}
