// A translation unit without exceptions, in a program that has them.

#define VRUST_NO_EXCEPTIONS 1
#include <string>
#include <utility>
#include <vrust/vrust.hpp>

#include <vrust/vrust.hpp>

// value() throws, so it must be gone.
template <typename T, typename = void>
constexpr bool has_value_call = false;
template <typename T>
constexpr bool has_value_call<T, std::void_t<decltype(std::declval<T>().value())>> = true;
static_assert(!has_value_call<vrust::Result<int>> && !has_value_call<vrust::Result<void>>);

const char* plain_version() { return vrust::version(); }

int plain_failure(const std::string& model) {
  vrust::EngineOptions options;
  options.model = model;
  options.block_size = 7;
  const vrust::Result<vrust::Engine> engine = vrust::Engine::create(options);
  return engine ? 0 : static_cast<int>(engine.error().code());
}
