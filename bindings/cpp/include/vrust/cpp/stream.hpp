/// `Stream`: one request as a range of deltas; `Cancel`: how others end it.

#ifndef VRUST_CPP_STREAM_HPP
#define VRUST_CPP_STREAM_HPP

#include <vrust/vrust.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/event.hpp>
#include <vrust/cpp/output.hpp>
#include <vrust/cpp/queue.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// Ends one request: call it, from any thread, any number of times, also after the request, its
/// stream or its engine has ended. Copy it freely; it keeps nothing alive. It fits std::function
/// and std::stop_callback.
class Cancel {
 public:
  /// Cancels nothing.
  Cancel() = default;

  /// Ends request `id` of an engine.
  Cancel(VrustEngine* engine, uint64_t id) noexcept : engine_(engine), id_(id) {}

  /// Ends the request within one step; its choices finish with FinishReason::abort.
  void operator()() const noexcept {
    // An engine that has ended has ended its requests: what the call says of it is no news.
    if (id_ != 0) static_cast<void>(vrust_abort(engine_, id_, nullptr));
  }

 private:
  // No ownership: a handle is never used again, so that a stale one is harmless.
  VrustEngine* engine_ = nullptr;
  uint64_t id_ = 0;
};

/// The deltas of one request: an input range, for one thread at a time, with a queue of its own.
/// Destroying an unfinished stream aborts its request. It outlives its engine. Deltas that wait
/// for a slow reader become one.
class Stream {
 public:
  class Iterator;

  /// Takes over request `id` of an engine, whose events go to `queue` alone.
  Stream(VrustEngine* engine, uint64_t id, Queue queue)
      : queue_(std::move(queue)), cancel_(engine, id), id_(id) {}

  /// The request's id in its engine.
  uint64_t id() const noexcept { return id_; }

  /// The next delta, valid until the next call; NULL when `timeout` passes first, or when the
  /// request has ended (is_done). The error that ended the request, and the same again from then
  /// on; ErrorCode::cancelled when its queue was closed under it.
  Result<const Delta*> next(std::chrono::milliseconds timeout = forever) {
    while (!done_) {
      if (pending_.empty()) {
        const PollState state = fill(timeout);
        if (state == PollState::timeout) return nullptr;
        if (state == PollState::closed) break;
      }
      const Event& event = *pending_.begin();
      pending_ = pending_.drop(1);
      if (event.request_id() != id_) continue;
      done_ = event.is_last();
      if (event.kind() == EventKind::error) error_ = event.error();
      if (event.kind() == EventKind::delta || event.kind() == EventKind::prompt ||
          event.kind() == EventKind::finished) {
        return &event;
      }
    }
    if (error_.code() != ErrorCode::ok) return error_;
    return nullptr;
  }

  /// Whether the request has ended and all of it was read.
  bool is_done() const noexcept { return done_; }

  /// The error that ended the request; ErrorCode::ok while there is none.
  const Error& error() const noexcept { return error_; }

  /// Waits for the first delta, or the next one where reading had begun. A request's error ends
  /// the range: thrown as Error where there are exceptions, else look at error() afterwards.
  Iterator begin();

  /// The end of the range.
  Iterator end() noexcept;

  /// Reads all that is left.
  Result<Output> collect() {
    Output output;
    for (;;) {
      Result<const Delta*> delta = next();
      if (!delta) return delta.error();
      if (*delta == nullptr) return output;
      output.add(**delta);
    }
  }

  /// Ends the request within one step; what came before can still be read, then its choices finish
  /// with FinishReason::abort. Any thread.
  void cancel() const noexcept { cancel_(); }

  /// What ends this request from elsewhere.
  Cancel canceller() const noexcept { return cancel_; }

  /// A file descriptor to wait on, as Queue::fd: then call next() with a timeout of 0 until it
  /// gives NULL. Any thread.
  Result<int> fd() const { return queue_.fd(); }

 private:
  // `closed` also for a poll that failed; error_ says why.
  PollState fill(std::chrono::milliseconds timeout) {
    Result<Batch> batch = queue_.poll(timeout);
    if (!batch) {
      error_ = batch.error();
    } else if (batch->state == PollState::closed) {
      error_ = Error(ErrorCode::cancelled, "stream: its queue was closed before its request ended");
    } else {
      pending_ = batch->events;
      return batch->state;
    }
    done_ = true;
    return PollState::closed;
  }

  Queue queue_;
  // Events of queue_'s newest poll; they stay in place when the queue is moved.
  Span<const Event> pending_;
  Cancel cancel_;
  uint64_t id_ = 0;
  bool done_ = false;
  Error error_;
};

/// Where a loop over a Stream stands. An input iterator: a step ends the delta before it. The
/// stream must stay in place.
class Stream::Iterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = Delta;
  using difference_type = std::ptrdiff_t;
  using pointer = const Delta*;
  using reference = const Delta&;

  /// The end.
  Iterator() = default;

  /// The delta.
  const Delta& operator*() const noexcept { return *delta_; }
  /// The delta.
  const Delta* operator->() const noexcept { return delta_; }

  /// Waits for the next delta; as Stream::begin.
  Iterator& operator++() {
    Result<const Delta*> delta = stream_->next();
#ifndef VRUST_NO_EXCEPTIONS
    delta_ = nullptr;
    delta_ = delta.value();
#else
    delta_ = delta ? *delta : nullptr;
#endif
    return *this;
  }
  /// The same. There is no old delta to give.
  void operator++(int) { ++*this; }

  /// Whether both are at the end, or both at one delta.
  friend bool operator==(const Iterator& a, const Iterator& b) noexcept {
    return a.delta_ == b.delta_;
  }
  friend bool operator!=(const Iterator& a, const Iterator& b) noexcept { return !(a == b); }

 private:
  friend class Stream;
  explicit Iterator(Stream* stream) : stream_(stream) { ++*this; }

  Stream* stream_ = nullptr;
  const Delta* delta_ = nullptr;
};

inline Stream::Iterator Stream::begin() { return Iterator(this); }

inline Stream::Iterator Stream::end() noexcept { return Iterator(); }

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
