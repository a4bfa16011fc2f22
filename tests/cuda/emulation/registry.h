// The kernels that are built into this library, by name. build.sh writes a source for each .cu that
// includes it and registers what it finds there.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace emu {

struct Kernel {
  std::string name, file;
  std::vector<size_t> sizes;  // of the parameters, in bytes
  // Copies the parameters, as a launch does, and returns what each thread runs.
  std::function<std::function<void()>(void** parameters)> bind;
};

inline std::map<std::string, Kernel>& registry() {
  static std::map<std::string, Kernel> kernels;
  return kernels;
}

template <class... A>
bool register_kernel(const char* name, const char* file, void (*kernel)(A...)) {
  Kernel& k = registry()[name];
  k.name = name;
  k.file = file;
  k.sizes = {sizeof(A)...};
  k.bind = [kernel](void** parameters) {
    return [&]<size_t... I>(std::index_sequence<I...>) -> std::function<void()> {
      std::tuple<std::remove_const_t<A>...> values{
          *static_cast<std::remove_const_t<A>*>(parameters[I])...};
      return [kernel, values] { std::apply(kernel, values); };
    }(std::index_sequence_for<A...>{});
  };
  return true;
}

}  // namespace emu
