/// What went wrong: `Error`, `ErrorCode`, and `Result<T>`, which is a value or an Error.

#ifndef VRUST_CPP_ERROR_HPP
#define VRUST_CPP_ERROR_HPP

#include <vrust/vrust.h>

#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vrust/cpp/config.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// Why a call failed; what each means stands at VRUST_ERROR_* in vrust.h. Later libraries may
/// bring numbers that are not listed here.
enum class ErrorCode : VrustStatus {
  ok = VRUST_OK,
  invalid_argument = VRUST_ERROR_INVALID_ARGUMENT,
  abi_mismatch = VRUST_ERROR_ABI_MISMATCH,
  unsupported = VRUST_ERROR_UNSUPPORTED,
  not_found = VRUST_ERROR_NOT_FOUND,
  io = VRUST_ERROR_IO,
  model_format = VRUST_ERROR_MODEL_FORMAT,
  tokenizer = VRUST_ERROR_TOKENIZER,
  chat_template = VRUST_ERROR_TEMPLATE,
  grammar = VRUST_ERROR_GRAMMAR,
  context_length = VRUST_ERROR_CONTEXT_LENGTH,
  queue_full = VRUST_ERROR_QUEUE_FULL,
  out_of_memory = VRUST_ERROR_OUT_OF_MEMORY,
  device_memory = VRUST_ERROR_DEVICE_MEMORY,
  device = VRUST_ERROR_DEVICE,
  engine_failed = VRUST_ERROR_ENGINE_FAILED,
  shutting_down = VRUST_ERROR_SHUTTING_DOWN,
  buffer_too_small = VRUST_ERROR_BUFFER_TOO_SMALL,
  panic = VRUST_ERROR_PANIC,
  forked = VRUST_ERROR_FORKED,
  cancelled = VRUST_ERROR_CANCELLED,
};

/// The name of a code as the library spells it, such as "INVALID_ARGUMENT"; "UNKNOWN" for one that
/// the library does not know. Static. Any thread.
inline const char* name(ErrorCode code) noexcept {
  return vrust_status_name(static_cast<VrustStatus>(code));
}

/// What went wrong in one call. An ordinary value; what Result<T>::value() throws.
class Error : public std::exception {
 public:
  /// No error: ErrorCode::ok and no message.
  Error() = default;

  /// An error with a message for people and details for programs, a JSON object.
  Error(ErrorCode code, std::string message, std::string detail_json = "{}")
      : code_(code), message_(std::move(message)), detail_json_(std::move(detail_json)) {}

  /// Takes over what a C call left: `status` is what it returned, `raw` may be NULL.
  static Error adopt(VrustStatus status, VrustError* raw) {
    if (raw == nullptr) {
      return Error(static_cast<ErrorCode>(status), vrust_status_name(status));
    }
    size_t message_len = 0;
    size_t detail_len = 0;
    const char* message = vrust_error_message(raw, &message_len);
    const char* detail = vrust_error_detail_json(raw, &detail_len);
    Error error(static_cast<ErrorCode>(status), {message, message_len}, {detail, detail_len});
    vrust_error_destroy(raw);
    return error;
  }

  /// Why.
  ErrorCode code() const noexcept { return code_; }

  /// Names the field, its limit and the value given.
  const std::string& message() const noexcept { return message_; }

  /// Details, a JSON object such as {"field":"max_tokens","limit":1,"value":0}; {} where there are
  /// none.
  const std::string& detail_json() const noexcept { return detail_json_; }

  /// Whether the same call may succeed later without a change.
  bool is_retryable() const noexcept { return code_ == ErrorCode::queue_full; }

  /// The message. Valid as long as the error.
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorCode code_ = ErrorCode::ok;
  std::string message_;
  std::string detail_json_ = "{}";
};

/// A T, or the Error that came instead. Test it before `*` and `->`, which end the program
/// (std::abort) where there is no value.
template <typename T>
class [[nodiscard]] Result {
 public:
  /// Success.
  Result(T value) : value_(std::move(value)) {}

  /// Failure.
  Result(Error error) : error_(std::move(error)) {}

  /// Whether there is a value.
  explicit operator bool() const noexcept { return value_.has_value(); }

  /// Whether there is a value.
  bool has_value() const noexcept { return value_.has_value(); }

  /// What went wrong; an Error of ErrorCode::ok where nothing did.
  const Error& error() const& noexcept { return error_; }
  /// The same, to keep.
  Error error() && noexcept { return std::move(error_); }

  /// The value, which must be there.
  T& operator*() & noexcept { return *checked(); }
  /// The value, which must be there.
  const T& operator*() const& noexcept { return *const_cast<Result*>(this)->checked(); }
  /// The value, which must be there, to keep.
  T operator*() && { return std::move(*checked()); }
  /// The value, which must be there.
  T* operator->() noexcept { return checked(); }
  /// The value, which must be there.
  const T* operator->() const noexcept { return const_cast<Result*>(this)->checked(); }

  /// The value, or `other` where there is none.
  template <typename U>
  T value_or(U&& other) && {
    return value_ ? std::move(*value_) : static_cast<T>(std::forward<U>(other));
  }

#ifndef VRUST_NO_EXCEPTIONS
  /// The value; throws the Error where there is none.
  T& value() & { return *(value_ ? &*value_ : throw error_); }
  /// The same.
  const T& value() const& { return *(value_ ? &*value_ : throw error_); }
  /// The same, to keep.
  T value() && {
    if (!value_) throw std::move(error_);
    return std::move(*value_);
  }
#endif

 private:
  T* checked() noexcept {
    if (!value_) std::abort();
    return &*value_;
  }

  std::optional<T> value_;
  Error error_;
};

/// Done, or the Error that says why not.
template <>
class [[nodiscard]] Result<void> {
 public:
  /// Success.
  Result() = default;

  /// Failure, unless `error` is of ErrorCode::ok.
  Result(Error error) : error_(std::move(error)) {}

  /// Whether it was done.
  explicit operator bool() const noexcept { return has_value(); }

  /// Whether it was done.
  bool has_value() const noexcept { return error_.code() == ErrorCode::ok; }

  /// What went wrong; an Error of ErrorCode::ok where nothing did.
  const Error& error() const& noexcept { return error_; }
  /// The same, to keep.
  Error error() && noexcept { return std::move(error_); }

#ifndef VRUST_NO_EXCEPTIONS
  /// Throws the Error if there is one.
  void value() const {
    if (!has_value()) throw error_;
  }
#endif

 private:
  Error error_;
};

namespace detail {

/// An error for one field, in the library's form.
inline Error invalid(const char* field, const std::string& problem) {
  return Error(ErrorCode::invalid_argument, std::string(field) + ": " + problem,
               std::string("{\"field\":\"") + field + "\"}");
}

}  // namespace detail
}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
