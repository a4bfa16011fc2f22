/// Handles that destroy themselves, and the small things around C calls. Not for programs.

#ifndef VRUST_CPP_HANDLE_HPP
#define VRUST_CPP_HANDLE_HPP

#include <vrust/vrust.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vrust/cpp/error.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// No limit of time.
inline constexpr std::chrono::milliseconds forever{-1};

namespace detail {

/// A destroy function as a type. Its result is dropped: a handle that is stale by now is one that
/// close() has ended, and that is fine.
template <typename T, VrustStatus (*destroy)(T*)>
struct Destroy {
  void operator()(T* handle) const noexcept { static_cast<void>(destroy(handle)); }
};

template <typename T, VrustStatus (*destroy)(T*)>
using Handle = std::unique_ptr<T, Destroy<T, destroy>>;

using EngineHandle = Handle<VrustEngine, vrust_engine_destroy>;
using QueueHandle = Handle<VrustQueue, vrust_queue_destroy>;
using TokenizerHandle = Handle<VrustTokenizer, vrust_tokenizer_destroy>;
using ChatParserHandle = Handle<VrustChatParser, vrust_chat_parser_destroy>;
using BytesHandle = Handle<VrustBytes, vrust_bytes_destroy>;

/// Copies and destroys what a call wrote.
inline std::string take(VrustBytes* raw) {
  BytesHandle bytes(raw);
  const auto* data = reinterpret_cast<const char*>(vrust_bytes_data(raw));
  return data == nullptr ? std::string() : std::string(data, vrust_bytes_len(raw));
}

/// The C form of a timeout.
inline int32_t milliseconds(std::chrono::milliseconds timeout) noexcept {
  constexpr auto most = std::numeric_limits<int32_t>::max();
  if (timeout.count() < 0) return -1;
  return timeout.count() > most ? most : static_cast<int32_t>(timeout.count());
}

/// Sets a pointer and a length; NULL for nothing.
inline void set_text(const std::string& text, const char*& data, size_t& len) noexcept {
  data = text.empty() ? nullptr : text.data();
  len = text.size();
}

}  // namespace detail
}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
