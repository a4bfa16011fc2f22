/// `Event`: what a request brings, one part at a time.

#ifndef VRUST_CPP_EVENT_HPP
#define VRUST_CPP_EVENT_HPP

#include <vrust/vrust.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/span.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// What an event is. Skip kinds that are not listed here: later libraries may bring more.
enum class EventKind : uint32_t {
  /// New output of one choice: text, tokens, logprobs.
  delta = VRUST_EVENT_DELTA,
  /// Of the prompt, before any delta: logprobs if asked for; text and tokens with echo.
  prompt = VRUST_EVENT_PROMPT,
  /// A choice ended.
  finished = VRUST_EVENT_FINISHED,
  /// The whole request failed: see error().
  error = VRUST_EVENT_ERROR,
  /// The engine is loading: value() is the fraction done. On the default queue.
  load = VRUST_EVENT_LOAD,
  /// The engine failed: see error(). On every queue.
  engine_failed = VRUST_EVENT_ENGINE_FAILED,
};

/// Why a choice ended. Later libraries may bring more.
enum class FinishReason : uint32_t {
  /// It has not ended.
  none = 0,
  /// The end-of-text token.
  eos = VRUST_FINISH_EOS,
  /// A token of stop_token_ids.
  stop_token = VRUST_FINISH_STOP_TOKEN,
  /// A stop string.
  stop_string = VRUST_FINISH_STOP_STRING,
  /// max_tokens or the model's context.
  length = VRUST_FINISH_LENGTH,
  /// The host aborted the request, or closed its queue or its engine.
  abort = VRUST_FINISH_ABORT,
  /// The request's deadline passed.
  deadline = VRUST_FINISH_DEADLINE,
};

/// OpenAI's name of a reason: "stop" or "length"; vrust's own "abort" and "deadline"; "" for none,
/// "unknown" for one that is not listed here.
inline const char* name(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::none: return "";
    case FinishReason::eos:
    case FinishReason::stop_token:
    case FinishReason::stop_string: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::abort: return "abort";
    case FinishReason::deadline: return "deadline";
  }
  return "unknown";
}

/// The log probability of one token at one place: position, token_id, logprob, rank.
using Logprob = VrustLogprob;

/// One event. A view, and so are the text and the arrays that it gives: they end with the next poll
/// of the queue or the next step of the stream that it came from. Copy what should stay.
class Event {
 public:
  /// The request; 0 for events of the engine.
  uint64_t request_id() const noexcept { return raw_.request_id; }
  /// The request's own user_data.
  uint64_t user_data() const noexcept { return raw_.user_data; }
  /// What it is.
  EventKind kind() const noexcept { return static_cast<EventKind>(raw_.kind); }
  /// The choice, 0 to n - 1.
  uint32_t choice() const noexcept { return raw_.choice; }
  /// Whether nothing more comes for this request.
  bool is_last() const noexcept { return (raw_.flags & VRUST_EVENT_LAST) != 0; }

  /// New text, whole UTF-8 scalars; may be empty. Of the kinds error and engine_failed: nothing,
  /// their message stands in error().
  std::string_view text() const noexcept {
    return is_failure() ? std::string_view() : chars(raw_.text_offset, raw_.text_len);
  }

  /// New token ids. Their text may come with a later event.
  Span<const uint32_t> tokens() const noexcept {
    return array<uint32_t>(raw_.tokens_offset, raw_.num_tokens);
  }

  /// Logprobs of those tokens, of kind `prompt` of the prompt's: at each place the chosen token,
  /// then the most likely ones. Empty unless asked for.
  Span<const Logprob> logprobs() const noexcept {
    return array<Logprob>(raw_.logprobs_offset, raw_.num_logprobs);
  }

  /// Of `finished`: why.
  FinishReason finish_reason() const noexcept {
    return static_cast<FinishReason>(raw_.finish_reason);
  }
  /// Of `finished` by a stop string: that string.
  std::string_view stop_string() const noexcept {
    return is_failure() ? std::string_view() : chars(raw_.detail_offset, raw_.detail_len);
  }
  /// Of `finished` by a stop token: that token.
  uint32_t stop_token() const noexcept { return raw_.stop_token_id; }
  /// Of `finished`: tokens of the prompt.
  uint32_t prompt_tokens() const noexcept { return raw_.prompt_tokens; }
  /// Of `finished`: those of them that were found in the prefix cache.
  uint32_t cached_tokens() const noexcept { return raw_.cached_tokens; }
  /// Of `finished`: tokens generated for this choice.
  uint32_t completion_tokens() const noexcept { return raw_.completion_tokens; }
  /// Of `load`: the fraction done. Of `finished`: the sum of the chosen tokens' logprobs, if asked
  /// for.
  float value() const noexcept { return raw_.value; }

  /// Of `error` and `engine_failed`: what went wrong, to keep; else an Error of ErrorCode::ok.
  Error error() const {
    if (!is_failure()) return Error();
    return Error(static_cast<ErrorCode>(raw_.status),
                 std::string(chars(raw_.text_offset, raw_.text_len)),
                 std::string(chars(raw_.detail_offset, raw_.detail_len)));
  }

  /// The C record, with all times (CLOCK_MONOTONIC, in nanoseconds).
  const VrustEvent& raw() const noexcept { return raw_; }

 private:
  friend class Queue;

  bool is_failure() const noexcept {
    return kind() == EventKind::error || kind() == EventKind::engine_failed;
  }

  std::string_view chars(uint32_t offset, uint32_t len) const noexcept {
    return {reinterpret_cast<const char*>(arena_) + offset, len};
  }

  template <typename T>
  Span<const T> array(uint32_t offset, uint32_t size) const noexcept {
    if (size == 0) return {};
    return {reinterpret_cast<const T*>(arena_ + offset), size};
  }

  // First: a poll writes these records in place, at a stride of sizeof(Event).
  VrustEvent raw_{};
  const unsigned char* arena_ = nullptr;
};

/// What a Stream is a range of: its request's events of the kinds delta, prompt and finished.
using Delta = Event;

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
