// A libnvrtc that compiles nothing: its cubin names the architecture and the kernels of the source,
// which the stand-in driver runs from its own. A source with `#error` fails, with a log.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum { kSuccess = 0, kInvalidInput = 3, kInvalidProgram = 4, kInvalidOption = 5, kCompilation = 6 };

struct Program {
  std::string source, name, log, cubin;
  std::map<std::string, std::string> headers;
};

// The macros that a source defines, with parameters and body, continued lines joined.
struct Macro {
  std::vector<std::string> parameters;
  std::string body;
};

std::string joined(const std::string& source) {
  return std::regex_replace(source, std::regex("\\\\\n"), " ");
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::string part;
  std::stringstream in(list);
  while (std::getline(in, part, ',')) {
    parts.push_back(std::regex_replace(part, std::regex("^\\s+|\\s+$"), ""));
  }
  return parts;
}

std::string expand(const Macro& macro, const std::vector<std::string>& values) {
  std::string body = macro.body;
  for (size_t i = 0; i < macro.parameters.size() && i < values.size(); i++) {
    std::regex word("\\b" + macro.parameters[i] + "\\b");
    body = std::regex_replace(body, word, values[i]);
  }
  return std::regex_replace(body, std::regex("\\s*##\\s*"), "");
}

void find_kernels(const std::string& text, std::string& out) {
  static const std::regex kernel(
      "extern \"C\" __global__ void\\s+(?:__launch_bounds__\\s*\\([^)]*\\)\\s*)?(\\w+)\\s*\\(");
  for (std::sregex_iterator i(text.begin(), text.end(), kernel), end; i != end; ++i) {
    out += (*i)[1].str() + "\n";
  }
}

// Goes through the source line by line: macros that hold kernels are kept, and their uses expanded.
std::string kernels_of(const std::string& source) {
  static const std::regex define("^\\s*#define\\s+(\\w+)\\(([^)]*)\\)(.*)$");
  static const std::regex use("^\\s*(\\w+)\\(([^)]*)\\)\\s*;?\\s*$");
  std::map<std::string, Macro> macros;
  std::string out, plain, line;
  std::stringstream in(joined(source));
  std::smatch m;
  while (std::getline(in, line)) {
    if (std::regex_match(line, m, define)) {
      macros[m[1].str()] = {split(m[2].str()), m[3].str()};
    } else if (std::regex_match(line, m, use) && macros.count(m[1].str())) {
      find_kernels(expand(macros[m[1].str()], split(m[2].str())), out);
    } else {
      plain += line + "\n";
    }
  }
  find_kernels(plain, out);
  return out;
}

}  // namespace

EXPORT const char* nvrtcGetErrorString(int code) {
  switch (code) {
    case kSuccess: return "NVRTC_SUCCESS";
    case kInvalidInput: return "NVRTC_ERROR_INVALID_INPUT";
    case kInvalidProgram: return "NVRTC_ERROR_INVALID_PROGRAM";
    case kInvalidOption: return "NVRTC_ERROR_INVALID_OPTION";
    default: return "NVRTC_ERROR_COMPILATION";
  }
}
EXPORT int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return kSuccess;
}
EXPORT int nvrtcGetNumSupportedArchs(int* count) {
  *count = 5;
  return kSuccess;
}
EXPORT int nvrtcGetSupportedArchs(int* archs) {
  const int all[] = {80, 89, 90, 100, 120};
  std::memcpy(archs, all, sizeof all);
  return kSuccess;
}
EXPORT int nvrtcCreateProgram(void** program, const char* source, const char* name, int count,
                              const char* const* headers, const char* const* names) {
  if (!source) return kInvalidInput;
  Program* p = new Program;
  p->source = source;
  p->name = name ? name : "default_program";
  for (int i = 0; i < count; i++) p->headers[names[i]] = headers[i];
  *program = p;
  return kSuccess;
}
EXPORT int nvrtcDestroyProgram(void** program) {
  if (!program || !*program) return kInvalidProgram;
  delete static_cast<Program*>(*program);
  *program = nullptr;
  return kSuccess;
}
// For tests: programs compiled so far, and the most that were compiled at once. With
// VRUST_EMU_COMPILE_MS a program takes so long.
std::atomic<uint64_t> compiled, inside, most_inside;
EXPORT uint64_t vrust_emu_compiled() { return compiled; }
EXPORT uint64_t vrust_emu_compiled_at_once() { return most_inside; }
struct Inside {
  Inside() {
    uint64_t now = ++inside, most = most_inside;
    while (now > most && !most_inside.compare_exchange_weak(most, now)) {
    }
    if (const char* ms = std::getenv("VRUST_EMU_COMPILE_MS"))
      std::this_thread::sleep_for(std::chrono::milliseconds(std::atoi(ms)));
  }
  ~Inside() { inside--; }
};
EXPORT int nvrtcCompileProgram(void* program, int count, const char* const* options) {
  compiled++;
  Inside here;
  Program* p = static_cast<Program*>(program);
  if (!p) return kInvalidProgram;
  std::string arch;
  for (int i = 0; i < count; i++) {
    std::string option = options[i];
    if (option.empty() || option[0] != '-') {
      p->log = "nvrtc: error: unrecognized option " + option + "\n";
      return kInvalidOption;
    }
    for (const char* name : {"--gpu-architecture=", "-arch="}) {
      if (option.rfind(name, 0) == 0) arch = option.substr(std::strlen(name));
    }
  }
  if (arch.rfind("sm_", 0) != 0) {
    p->log = "nvrtc: error: no cubin without --gpu-architecture=sm_..\n";
    return kInvalidOption;
  }
  static const std::regex include("#include\\s+[\"<]([^\">]+)[\">]");
  std::sregex_iterator end;
  for (std::sregex_iterator i(p->source.begin(), p->source.end(), include); i != end; ++i) {
    if (!p->headers.count((*i)[1].str())) {
      std::string file = (*i)[1].str();
      p->log = p->name + ": catastrophic error: cannot open source file \"" + file + "\"\n";
      return kCompilation;
    }
  }
  if (p->source.find("#error") != std::string::npos) {
    p->log = p->name + ": error: #error directive\n";
    return kCompilation;
  }
  p->cubin = "vrust-emulated-cubin\n" + arch + "\n" + kernels_of(p->source);
  return kSuccess;
}
EXPORT int nvrtcGetProgramLogSize(void* program, size_t* size) {
  *size = static_cast<Program*>(program)->log.size() + 1;
  return kSuccess;
}
EXPORT int nvrtcGetProgramLog(void* program, char* log) {
  std::strcpy(log, static_cast<Program*>(program)->log.c_str());
  return kSuccess;
}
EXPORT int nvrtcGetCUBINSize(void* program, size_t* size) {
  Program* p = static_cast<Program*>(program);
  if (p->cubin.empty()) return kInvalidProgram;
  *size = p->cubin.size() + 1;
  return kSuccess;
}
EXPORT int nvrtcGetCUBIN(void* program, char* cubin) {
  Program* p = static_cast<Program*>(program);
  if (p->cubin.empty()) return kInvalidProgram;
  std::memcpy(cubin, p->cubin.c_str(), p->cubin.size() + 1);
  return kSuccess;
}
