/// Options of an engine and of a queue, and the states of an engine.

#ifndef VRUST_CPP_OPTIONS_HPP
#define VRUST_CPP_OPTIONS_HPP

#include <vrust/vrust.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vrust/cpp/handle.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// Which weights: the folder's, or seeded random ones from config.json alone.
enum class LoadFormat : uint32_t { automatic = VRUST_LOAD_AUTO, dummy = VRUST_LOAD_DUMMY };

/// The arithmetic. `automatic`: bfloat16 checkpoints run in bfloat16, all others in float32.
enum class Dtype : uint32_t {
  automatic = VRUST_DTYPE_AUTO,
  float32 = VRUST_DTYPE_FLOAT32,
  bfloat16 = VRUST_DTYPE_BFLOAT16,
};

/// What computes: the fast backend of the device, the CPU's, or plain float32 loops, the oracle.
enum class Backend : uint32_t {
  automatic = VRUST_BACKEND_AUTO,
  cpu = VRUST_BACKEND_CPU,
  reference = VRUST_BACKEND_REFERENCE
};

/// Which request is next: the first that came, or the one of the lowest priority number.
enum class SchedulingPolicy : uint32_t {
  fcfs = VRUST_SCHEDULING_FCFS,
  priority = VRUST_SCHEDULING_PRIORITY,
};

/// Where an engine stands: reading weights (requests are accepted and wait), serving, finishing
/// what it has, failed, shut down.
enum class EngineState : uint32_t {
  loading = VRUST_STATE_LOADING,
  ready = VRUST_STATE_READY,
  draining = VRUST_STATE_DRAINING,
  failed = VRUST_STATE_FAILED,
  closed = VRUST_STATE_CLOSED,
};

/// What becomes of live requests: they are finished, or aborted.
enum class ShutdownMode : uint32_t { drain = VRUST_SHUTDOWN_DRAIN, abort = VRUST_SHUTDOWN_ABORT };

/// Options of an engine. Only `model` is needed; what is not set has the library's default.
struct EngineOptions {
  /// Model folder, in Hugging Face's layout.
  std::string model{};
  /// Tokenizer folder; the model folder when empty.
  std::string tokenizer{};
  /// Jinja chat template to use instead of the checkpoint's.
  std::string chat_template{};
  /// JSON object of rarer options, listed in vrust.h.
  std::string extra_json{};
  /// Bytes of the KV cache; 0: the smaller of 4 GiB and a quarter of what the process may use.
  std::optional<uint64_t> kv_cache_memory_bytes{};
  /// Bytes of undrained events of the default queue past which its requests wait. 64 MiB.
  std::optional<uint64_t> max_undrained_bytes{};
  /// Seed of requests that bring none. 0.
  std::optional<uint64_t> seed{};
  /// Which weights.
  std::optional<LoadFormat> load_format{};
  /// The arithmetic.
  std::optional<Dtype> dtype{};
  /// What computes.
  std::optional<Backend> backend{};
  /// Which request is next.
  std::optional<SchedulingPolicy> scheduling_policy{};
  /// Most positions of a sequence; 0: the model's own limit.
  std::optional<uint32_t> max_model_len{};
  /// Most sequences of a step. 128.
  std::optional<uint32_t> max_num_seqs{};
  /// Most tokens of a step. 2048.
  std::optional<uint32_t> max_num_batched_tokens{};
  /// Positions of a KV block, a multiple of 8 up to 256. 16.
  std::optional<uint32_t> block_size{};
  /// Longest part of a prompt in one step; 0: no such limit.
  std::optional<uint32_t> long_prefill_token_threshold{};
  /// Most requests waiting; one more is ErrorCode::queue_full. 4096.
  std::optional<uint32_t> max_num_queued_reqs{};
  /// Most logprobs a request may ask for. 20.
  std::optional<uint32_t> max_logprobs{};
  /// Compute threads; 0: one for each core that the process may use.
  std::optional<uint32_t> cpu_threads{};
  /// Ranks of tensor parallelism. This version has only 1.
  std::optional<uint32_t> tensor_parallel_size{};
  /// Shares the KV blocks of equal prefixes. True.
  std::optional<bool> enable_prefix_caching{};
  /// Cuts long prompts to the step's budget. True.
  std::optional<bool> enable_chunked_prefill{};
  /// Takes sampling defaults from generation_config.json. True.
  std::optional<bool> use_generation_config{};
  /// Runs without a tokenizer: token prompts only, no text. False.
  std::optional<bool> skip_tokenizer{};
};

/// Options of a queue; what is not set has the library's default.
struct QueueOptions {
  /// Bytes of undrained events past which the queue's requests wait. 64 MiB.
  std::optional<uint64_t> max_undrained_bytes{};
};

namespace detail {

/// Sets a field of a C struct where the program set one.
template <typename To, typename From>
void set_if(To& to, const std::optional<From>& from) noexcept {
  if (from) to = static_cast<To>(*from);
}

/// The C form, which borrows the strings of `from`.
inline VrustEngineOptions raw_options(const EngineOptions& from) noexcept {
  VrustEngineOptions to;
  vrust_engine_options_init(&to, sizeof to);
  set_text(from.model, to.model, to.model_len);
  set_text(from.tokenizer, to.tokenizer, to.tokenizer_len);
  set_text(from.chat_template, to.chat_template, to.chat_template_len);
  set_text(from.extra_json, to.extra_json, to.extra_json_len);
  set_if(to.kv_cache_memory_bytes, from.kv_cache_memory_bytes);
  set_if(to.max_undrained_bytes, from.max_undrained_bytes);
  set_if(to.seed, from.seed);
  set_if(to.load_format, from.load_format);
  set_if(to.dtype, from.dtype);
  set_if(to.backend, from.backend);
  set_if(to.scheduling_policy, from.scheduling_policy);
  set_if(to.max_model_len, from.max_model_len);
  set_if(to.max_num_seqs, from.max_num_seqs);
  set_if(to.max_num_batched_tokens, from.max_num_batched_tokens);
  set_if(to.block_size, from.block_size);
  set_if(to.long_prefill_token_threshold, from.long_prefill_token_threshold);
  set_if(to.max_num_queued_reqs, from.max_num_queued_reqs);
  set_if(to.max_logprobs, from.max_logprobs);
  set_if(to.cpu_threads, from.cpu_threads);
  set_if(to.tensor_parallel_size, from.tensor_parallel_size);
  set_if(to.enable_prefix_caching, from.enable_prefix_caching);
  set_if(to.enable_chunked_prefill, from.enable_chunked_prefill);
  set_if(to.use_generation_config, from.use_generation_config);
  set_if(to.skip_tokenizer, from.skip_tokenizer);
  return to;
}

}  // namespace detail
}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
