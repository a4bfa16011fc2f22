/// `Engine`: a model being served.

#ifndef VRUST_CPP_ENGINE_HPP
#define VRUST_CPP_ENGINE_HPP

#include <vrust/vrust.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vrust/cpp/chat_parser.hpp>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/handle.hpp>
#include <vrust/cpp/options.hpp>
#include <vrust/cpp/output.hpp>
#include <vrust/cpp/queue.hpp>
#include <vrust/cpp/request.hpp>
#include <vrust/cpp/stream.hpp>
#include <vrust/cpp/tokenizer.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// A snapshot of an engine's figures; the fields are described in vrust.h.
using Stats = VrustStats;

/// A model being served: scheduler, worker thread, weights, KV cache. All threads may use it at the
/// same time. Destroying it aborts its requests and gives its memory back.
class Engine {
 public:
  /// Takes a handle over.
  explicit Engine(VrustEngine* handle) noexcept : handle_(handle) {}

  /// Makes an engine. Checks the options, starts to load the weights and returns at once: requests
  /// may be submitted meanwhile, and wait_ready waits. Progress comes to the default queue.
  ///
  /// ErrorCode::invalid_argument and unsupported for the options; not_found, io and model_format
  /// for the folder.
  static Result<Engine> create(const EngineOptions& options) {
    const VrustEngineOptions raw = detail::raw_options(options);
    VrustEngine* handle = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_engine_create(&raw, &handle, &err);
    if (status < 0) return Error::adopt(status, err);
    return Engine(handle);
  }

  /// Waits until the engine has loaded: true; false when `timeout` passes first. The reason when
  /// loading failed; ErrorCode::shutting_down when it was cancelled.
  Result<bool> wait_ready(std::chrono::milliseconds timeout = forever) const {
    VrustError* err = nullptr;
    const VrustStatus status =
        vrust_engine_wait_ready(handle_.get(), detail::milliseconds(timeout), &err);
    if (status < 0) return Error::adopt(status, err);
    return status != VRUST_TIMEOUT;
  }

  /// Where the engine stands.
  Result<EngineState> state() const {
    uint32_t state = 0;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_engine_state(handle_.get(), &state, &err);
    if (status < 0) return Error::adopt(status, err);
    return static_cast<EngineState>(state);
  }

  /// Facts about the engine, a JSON object: model, max_model_len, vocab_size, dtype ..
  /// ErrorCode::invalid_argument before it is ready.
  Result<std::string> info_json() const { return text(vrust_engine_info_json); }

  /// The figures. Never waits for a step.
  Result<Stats> stats() const {
    Stats stats{};
    VrustError* err = nullptr;
    const VrustStatus status = vrust_stats_get(handle_.get(), &stats, sizeof stats, &err);
    if (status < 0) return Error::adopt(status, err);
    return stats;
  }

  /// The figures in Prometheus' text format, under vLLM's names.
  Result<std::string> prometheus() const { return text(vrust_stats_prometheus); }

  /// The engine's tokenizer and chat template, which may outlive it. ErrorCode::invalid_argument
  /// before the engine is ready; unsupported when it runs without one.
  Result<Tokenizer> tokenizer() const {
    VrustTokenizer* tokenizer = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_engine_tokenizer(handle_.get(), &tokenizer, &err);
    if (status < 0) return Error::adopt(status, err);
    return Tokenizer(tokenizer);
  }

  /// A parser that tells reasoning and tool calls from content in one choice of a chat's answer; it
  /// may outlive the engine. See ChatParser::create.
  Result<ChatParser> chat_parser(const ChatParserOptions& options = {}) const {
    const Result<Tokenizer> found = tokenizer();
    if (!found) return found.error();
    return ChatParser::create(*found, options);
  }

  /// Submits a request and gives the stream of its deltas. Never waits for the model. What shows up
  /// only later, such as a text too long for the context, is the stream's error.
  ///
  /// ErrorCode::invalid_argument names the field; unsupported, context_length, queue_full
  /// (retryable), shutting_down, engine_failed.
  Result<Stream> submit(const Request& request, const QueueOptions& options = {}) const {
    return stream(options, [&](const Queue& queue) { return submit(request, queue); });
  }

  /// The same from the body of an OpenAI /v1/completions or /v1/chat/completions request, with
  /// vLLM's further fields and `deadline_ms`.
  Result<Stream> submit_json(std::string_view body, const QueueOptions& options = {}) const {
    return stream(options, [&](const Queue& queue) { return submit_json(body, queue); });
  }

  /// Submits a request whose events go to a queue of this engine, together with those of others,
  /// and gives its id. They carry its `user_data`, and may come before this returns. The request
  /// owes exactly one event that is_last. Errors as above.
  Result<uint64_t> submit(const Request& request, const Queue& queue) const {
    const Result<void> checked = detail::RawRequest::check(request);
    if (!checked) return checked.error();
    detail::RawRequest form(request);
    form.raw.queue = queue.handle();
    uint64_t id = 0;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_submit(handle_.get(), &form.raw, &id, &err);
    if (status < 0) return Error::adopt(status, err);
    return id;
  }

  /// The same from an OpenAI body.
  Result<uint64_t> submit_json(std::string_view body, const Queue& queue,
                               uint64_t user_data = 0) const {
    uint64_t id = 0;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_submit_json(handle_.get(), queue.handle(), body.data(),
                                                 body.size(), user_data, &id, &err);
    if (status < 0) return Error::adopt(status, err);
    return id;
  }

  /// Submits a request and waits for all of it.
  Result<Output> generate(const Request& request) const {
    Result<Stream> stream = submit(request);
    if (!stream) return stream.error();
    return stream->collect();
  }

  /// What ends request `id` from elsewhere.
  Cancel canceller(uint64_t id) const noexcept { return Cancel(handle_.get(), id); }

  /// Ends a request within one step. One that has ended already is fine; ErrorCode::not_found for
  /// an id that this engine never gave.
  Result<void> abort(uint64_t id) const {
    VrustError* err = nullptr;
    const VrustStatus status = vrust_abort(handle_.get(), id, &err);
    if (status < 0) return Error::adopt(status, err);
    return {};
  }

  /// Ends every request that has not ended.
  Result<void> abort_all() const {
    VrustError* err = nullptr;
    const VrustStatus status = vrust_abort_all(handle_.get(), &err);
    if (status < 0) return Error::adopt(status, err);
    return {};
  }

  /// The default queue, which takes also the progress of loading. Each call gives another handle
  /// to the same queue.
  Result<Queue> default_queue() const {
    VrustQueue* queue = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_engine_default_queue(handle_.get(), &queue, &err);
    if (status < 0) return Error::adopt(status, err);
    return Queue(queue);
  }

  /// Another queue, for another consumer.
  Result<Queue> create_queue(const QueueOptions& options = {}) const {
    Result<VrustQueue*> queue = raw_queue(options);
    if (!queue) return queue.error();
    return Queue(*queue);
  }

  /// Refuses new requests, finishes or aborts the live ones, and ends the engine: true; false when
  /// `timeout` passes first: it goes on ending, and the call may be repeated. Draining needs that
  /// the events are read: without a limit, only while other threads do.
  Result<bool> shutdown(ShutdownMode mode = ShutdownMode::drain,
                        std::chrono::milliseconds timeout = forever) const {
    VrustError* err = nullptr;
    const VrustStatus status = vrust_engine_shutdown(handle_.get(), static_cast<uint32_t>(mode),
                                                     detail::milliseconds(timeout), &err);
    if (status < 0) return Error::adopt(status, err);
    return status != VRUST_TIMEOUT;
  }

  /// Ends the engine as its destruction would, also while other threads use it: their calls fail
  /// with ErrorCode::invalid_argument from then on, and streams and queues bring their last events.
  /// Any number of times.
  void close() const noexcept { static_cast<void>(vrust_engine_destroy(handle_.get())); }

  /// The C handle, which stays this object's.
  VrustEngine* handle() const noexcept { return handle_.get(); }

 private:
  using TextCall = VrustStatus(const VrustEngine*, VrustBytes**, VrustError**);

  Result<std::string> text(TextCall* call) const {
    VrustBytes* bytes = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status = call(handle_.get(), &bytes, &err);
    if (status < 0) return Error::adopt(status, err);
    return detail::take(bytes);
  }

  Result<VrustQueue*> raw_queue(const QueueOptions& options) const {
    VrustQueueOptions raw;
    vrust_queue_options_init(&raw, sizeof raw);
    detail::set_if(raw.max_undrained_bytes, options.max_undrained_bytes);
    VrustQueue* queue = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_queue_create(handle_.get(), &raw, &queue, &err);
    if (status < 0) return Error::adopt(status, err);
    return queue;
  }

  template <typename Submit>
  Result<Stream> stream(const QueueOptions& options, Submit submit_to) const {
    Result<VrustQueue*> raw = raw_queue(options);
    if (!raw) return raw.error();
    // Little room: there may be thousands of streams, and it grows where a delta needs more.
    Queue queue(*raw, 8, 2048);
    const Result<uint64_t> id = submit_to(queue);
    if (!id) return id.error();
    return Stream(handle_.get(), *id, std::move(queue));
  }

  detail::EngineHandle handle_;
};

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
