/// `Queue`: the events of many requests, for one consumer, such as an event loop.

#ifndef VRUST_CPP_QUEUE_HPP
#define VRUST_CPP_QUEUE_HPP

#include <vrust/vrust.h>

#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/event.hpp>
#include <vrust/cpp/handle.hpp>
#include <vrust/cpp/span.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// What a poll leaves behind.
enum class PollState {
  /// Events came, and the queue is empty now.
  drained,
  /// Events came, and more are waiting: poll again.
  more,
  /// None came in time, or wake() was called.
  timeout,
  /// None came, and none will: the engine has ended, or the queue was closed.
  closed,
};

/// What one poll brought. The events are views, valid until the queue is polled again or ends.
struct Batch {
  /// Oldest first.
  Span<const Event> events;
  /// What is left.
  PollState state = PollState::drained;
};

/// A queue of events on their way to one consumer: Engine::default_queue, Engine::create_queue.
/// It outlives its engine. Destroying it aborts its unfinished requests; of the default queue it
/// gives up this handle alone.
class Queue {
 public:
  /// Takes a queue over, with room for so many events, and bytes of them, in one poll; a larger
  /// event makes the room grow.
  explicit Queue(VrustQueue* handle, size_t max_events = 256, size_t bytes = 1 << 16)
      : handle_(handle), events_(max_events), arena_(bytes / sizeof(uint32_t)) {}

  /// Takes the events that are there, waiting up to `timeout` for the first one. One thread at a
  /// time; the events of the poll before end here.
  Result<Batch> poll(std::chrono::milliseconds timeout = forever) {
    for (;;) {
      size_t n_events = 0;
      size_t n_bytes = 0;
      VrustError* err = nullptr;
      auto* arena = reinterpret_cast<unsigned char*>(arena_.data());
      const VrustStatus status = vrust_queue_poll(
          handle_.get(), reinterpret_cast<VrustEvent*>(events_.data()), sizeof(Event),
          events_.size(), arena, arena_.size() * sizeof(uint32_t), detail::milliseconds(timeout),
          &n_events, &n_bytes, &err);
      if (status == VRUST_ERROR_BUFFER_TOO_SMALL) {
        vrust_error_destroy(err);
        arena_.resize(n_bytes / sizeof(uint32_t) + 1);
        continue;
      }
      if (status < 0) return Error::adopt(status, err);
      for (size_t i = 0; i < n_events; i++) events_[i].arena_ = arena;
      return Batch{{events_.data(), n_events}, state(status)};
    }
  }

  /// A file descriptor that becomes readable when events begin to wait, for poll(2), epoll and
  /// event loops: once it did, poll with a timeout of 0 until the state is not `more`. It belongs
  /// to the queue: wait on it, never read or close it. Any thread.
  Result<int> fd() const {
    int32_t fd = -1;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_queue_fd(handle_.get(), &fd, &err);
    if (status < 0) return Error::adopt(status, err);
    return static_cast<int>(fd);
  }

  /// Makes the poll that is waiting, or else the next one that would, return `timeout` at once.
  /// Any thread.
  Result<void> wake() const {
    VrustError* err = nullptr;
    const VrustStatus status = vrust_queue_wake(handle_.get(), &err);
    if (status < 0) return Error::adopt(status, err);
    return {};
  }

  /// Ends the queue as its destruction would, also while another thread polls, whose poll then
  /// says `closed`. Any thread, any number of times.
  void close() const noexcept { static_cast<void>(vrust_queue_destroy(handle_.get())); }

  /// The C handle, which stays this object's.
  VrustQueue* handle() const noexcept { return handle_.get(); }

 private:
  static_assert(std::is_standard_layout_v<Event>, "a record begins where its Event begins");

  static PollState state(VrustStatus status) noexcept {
    switch (status) {
      case VRUST_TRUNCATED: return PollState::more;
      case VRUST_TIMEOUT: return PollState::timeout;
      case VRUST_CLOSED: return PollState::closed;
      default: return PollState::drained;
    }
  }

  detail::QueueHandle handle_;
  std::vector<Event> events_;
  // Words, so that tokens and logprobs can be read in place.
  std::vector<uint32_t> arena_;
};

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
