/// The library's log.

#ifndef VRUST_CPP_LOG_HPP
#define VRUST_CPP_LOG_HPP

#include <vrust/vrust.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vrust/cpp/error.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// How much is logged, and how grave a record is.
enum class LogLevel : uint32_t {
  off = VRUST_LOG_OFF,
  error = VRUST_LOG_ERROR,
  warn = VRUST_LOG_WARN,
  info = VRUST_LOG_INFO,
  debug = VRUST_LOG_DEBUG,
  trace = VRUST_LOG_TRACE,
};

/// Receives one record: its level, where it comes from, what it says. Runs on any thread, one or
/// several at a time. It must not block, and the texts end with the call. It may not call set_log,
/// Engine::wait_ready, Engine::shutdown or Engine::close, or destroy an engine. What it throws is
/// dropped.
using LogCallback = std::function<void(LogLevel, std::string_view, std::string_view)>;

namespace detail {

/// The callback of the process. Never destroyed: threads of the library may log until the end.
struct Log {
  static Log& get() {
    static Log* const log = new Log;
    return *log;
  }

  static bool& inside() noexcept {
    thread_local bool inside = false;
    return inside;
  }

  std::mutex lock;
  std::unique_ptr<LogCallback> callback;
};

inline void write_log(void* user_data, uint32_t level, const char* target, size_t target_len,
                      const char* message, size_t message_len) noexcept {
  Log::inside() = true;
  const auto& callback = *static_cast<LogCallback*>(user_data);
#ifndef VRUST_NO_EXCEPTIONS
  // No exception may pass through the library, and a log that fails should not end a program.
  try {
    callback(static_cast<LogLevel>(level), {target, target_len}, {message, message_len});
  } catch (...) {
  }
#else
  callback(static_cast<LogLevel>(level), {target, target_len}, {message, message_len});
#endif
  Log::inside() = false;
}

}  // namespace detail

/// Sends the log of the whole process, up to `level`, to `callback`; without one, or with
/// LogLevel::off, the library is silent, as it is at the start. When it returns, the callback that
/// was set before has ended and is destroyed. Any thread. ErrorCode::unsupported where a Rust
/// program has a log of its own; ErrorCode::invalid_argument inside of a callback.
inline Result<void> set_log(LogLevel level, LogCallback callback = nullptr) {
  // Waiting for the lock here could wait for another set_log that waits for this callback.
  if (detail::Log::inside()) return detail::invalid("set_log", "not from inside of the callback");
  detail::Log& log = detail::Log::get();
  const std::lock_guard<std::mutex> guard(log.lock);
  std::unique_ptr<LogCallback> next;
  if (callback && level != LogLevel::off) next = std::make_unique<LogCallback>(std::move(callback));
  VrustError* err = nullptr;
  const VrustStatus status =
      vrust_log_set(next ? static_cast<uint32_t>(level) : VRUST_LOG_OFF,
                    next ? detail::write_log : nullptr, next.get(), &err);
  if (status < 0) return Error::adopt(status, err);
  log.callback = std::move(next);
  return {};
}

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
