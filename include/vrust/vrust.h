/**
 * vrust: an LLM serving engine as a library.
 *
 * Generated from src/ffi by `make header`. Do not edit.
 *
 *   VrustEngineOptions options;
 *   vrust_engine_options_init(&options, sizeof options);
 *   options.model = "model";
 *   options.model_len = 5;
 *   vrust_engine_create(&options, &engine, &err);
 *   vrust_engine_default_queue(engine, &queue, &err);
 *   vrust_submit(engine, &request, &id, &err);
 *   while (...) vrust_queue_poll(queue, events, sizeof *events, 64, arena, sizeof arena, -1, ..);
 *   vrust_queue_destroy(queue);
 *   vrust_engine_destroy(engine);
 *
 * What holds for every function:
 *
 * Handles. VrustEngine, VrustQueue, VrustTokenizer, VrustChatParser, VrustError and VrustBytes are
 *   named by handles, which look like pointers and are not addresses: a number of an object and of
 *   its use. Do not dereference, tag or compress them. NULL, a destroyed handle and one of another
 *   kind are VRUST_ERROR_INVALID_ARGUMENT wherever a live one is needed, never undefined behaviour;
 *   a destroy function of NULL does nothing, and a second destroy is VRUST_ERROR_INVALID_ARGUMENT.
 *   Handles may be destroyed in any order, at any time, also while other threads use them.
 *
 * Threads. Any function, on any handle, on any thread, at the same time, except that only one
 *   thread at a time may poll a queue (checked), and that the strings of an error and the data of
 *   bytes live until these are destroyed. A const handle says that the call changes nothing that
 *   other calls could notice as a race.
 *
 * Errors. Calls that can fail return a VrustStatus: 0 done, positive not an error, negative an
 *   error. The last parameter, `err`, may be NULL; else it receives, on an error and only then, a
 *   VrustError to be destroyed by the caller. Other outputs are written on success only, but for
 *   the sizes that go with VRUST_ERROR_BUFFER_TOO_SMALL. There is no last error of a thread.
 *
 * Pointers. Text comes in as UTF-8 bytes and a length; it need not end with a NUL, and may hold
 *   one. NULL goes with a length of 0 only. Inputs are copied before the call returns. Outputs
 *   must not be NULL unless said. Arrays of uint32_t are aligned.
 *
 * Structs. Each options struct begins with its own size and the ABI version it was compiled for;
 *   its init function, given sizeof, sets both and all defaults. A library newer than the program
 *   sees that the struct is shorter and takes defaults for the rest. An older library refuses a
 *   newer abi_version, and a set field that it does not know, with VRUST_ERROR_ABI_MISMATCH.
 *
 * Memory. The caller destroys what a call hands out through a handle; nothing is freed with free().
 *   Every allocation whose size comes from input or options may fail with
 *   VRUST_ERROR_OUT_OF_MEMORY. What remains: a process that cannot get a few hundred bytes at all
 *   is ended by the allocator, as with most libraries.
 *
 * The process. The library prints nothing, installs no signal handler, never exits or aborts, and
 *   needs no initialisation or end; a live engine at exit is fine. A bug of its own is
 *   VRUST_ERROR_PANIC, or ends an engine with VRUST_ERROR_ENGINE_FAILED, and never unwinds into
 *   the caller. After fork() the child's calls are VRUST_ERROR_FORKED if the parent had used the
 *   library, and touch nothing; exec first. The library stays loaded: dlclose() does not unload it.
 *
 * Evolution. For the life of libvrust.so.0, fields, functions and constants are only ever added;
 *   numbers never change. Tolerate event kinds, finish reasons and errors that you do not know.
 */


#ifndef VRUST_VRUST_H
#define VRUST_VRUST_H

#include <stddef.h>
#include <stdint.h>

/// Version of the library that this header came with.
#define VRUST_VERSION "0.1.0"
#define VRUST_VERSION_MAJOR 0
#define VRUST_VERSION_MINOR 1
#define VRUST_VERSION_PATCH 0

/// Version of the ABI that this header describes: major << 16 | minor. A library serves every
/// program of its own major version whose minor version is not above its own.
#define VRUST_ABI_VERSION 2

/// Nothing.
#define VRUST_LOG_OFF 0

/// What went wrong.
#define VRUST_LOG_ERROR 1

/// What may be wrong.
#define VRUST_LOG_WARN 2

/// What happens once: loading, shutting down.
#define VRUST_LOG_INFO 3

/// What happens to each request.
#define VRUST_LOG_DEBUG 4

/// What happens in each step.
#define VRUST_LOG_TRACE 5

/// `load_format`: the folder's safetensors files.
#define VRUST_LOAD_AUTO 0

/// `load_format`: seeded random weights from config.json alone, for benchmarks.
#define VRUST_LOAD_DUMMY 1

/// `dtype`: bfloat16 checkpoints run in bfloat16, all others in float32.
#define VRUST_DTYPE_AUTO 0

/// `dtype`: float32 arithmetic.
#define VRUST_DTYPE_FLOAT32 1

/// `dtype`: bfloat16.
#define VRUST_DTYPE_BFLOAT16 2

/// `backend`: the fast CPU backend.
#define VRUST_BACKEND_CPU 0

/// `backend`: plain float32 loops on the CPU, the oracle; slow.
#define VRUST_BACKEND_REFERENCE 1

/// `backend`: the fast one of `device` (see `extra_json`).
#define VRUST_BACKEND_AUTO 2

/// `scheduling_policy`: first come, first served.
#define VRUST_SCHEDULING_FCFS 0

/// `scheduling_policy`: lower `priority` first, then arrival.
#define VRUST_SCHEDULING_PRIORITY 1

/// `vrust_engine_state`: reading weights; requests are accepted and wait.
#define VRUST_STATE_LOADING 0

/// `vrust_engine_state`: serving.
#define VRUST_STATE_READY 1

/// `vrust_engine_state`: finishing what it has; new requests are refused.
#define VRUST_STATE_DRAINING 2

/// `vrust_engine_state`: failed; every request was ended with an error.
#define VRUST_STATE_FAILED 3

/// `vrust_engine_state`: shut down.
#define VRUST_STATE_CLOSED 4

/// `vrust_engine_shutdown`: finish the live requests.
#define VRUST_SHUTDOWN_DRAIN 0

/// `vrust_engine_shutdown`: abort the live requests.
#define VRUST_SHUTDOWN_ABORT 1

/// `kind`: new output of one choice: text, tokens, logprobs.
#define VRUST_EVENT_DELTA 1

/// `kind`: of the prompt, before any delta: logprobs if asked for; text and tokens with echo.
#define VRUST_EVENT_PROMPT 2

/// `kind`: a choice ended: reason, token counts, times.
#define VRUST_EVENT_FINISHED 3

/// `kind`: the whole request failed: `status`, message in text, details as JSON.
#define VRUST_EVENT_ERROR 4

/// `kind`: the engine is loading: `value` is the fraction done; 1: ready. On the default queue.
#define VRUST_EVENT_LOAD 5

/// `kind`: the engine failed: `status`, message in text, details as JSON. On every queue.
#define VRUST_EVENT_ENGINE_FAILED 6

/// `flags`: nothing more comes for this request.
#define VRUST_EVENT_LAST 1

/// `finish_reason`: the end-of-text token.
#define VRUST_FINISH_EOS 1

/// `finish_reason`: a token of `stop_token_ids`, given in `stop_token_id`.
#define VRUST_FINISH_STOP_TOKEN 2

/// `finish_reason`: a stop string, given in detail.
#define VRUST_FINISH_STOP_STRING 3

/// `finish_reason`: `max_tokens` or the model's context.
#define VRUST_FINISH_LENGTH 4

/// `finish_reason`: the host aborted the request, or destroyed its queue or its engine.
#define VRUST_FINISH_ABORT 5

/// `finish_reason`: the request's deadline passed.
#define VRUST_FINISH_DEADLINE 6

/// `input_kind`: text, which the tokenizer encodes.
#define VRUST_INPUT_TEXT 0

/// `input_kind`: token ids, an array of uint32_t; `input_len` counts ids.
#define VRUST_INPUT_TOKENS 1

/// `input_kind`: JSON, an array of OpenAI chat messages, or an object with `messages` and
/// optionally `tools`, `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message`.
#define VRUST_INPUT_CHAT_JSON 2

/// `present`: `temperature` is set.
#define VRUST_REQUEST_HAS_TEMPERATURE 1

/// `present`: `top_p` is set.
#define VRUST_REQUEST_HAS_TOP_P 2

/// `present`: `top_k` is set.
#define VRUST_REQUEST_HAS_TOP_K 4

/// `present`: `min_p` is set.
#define VRUST_REQUEST_HAS_MIN_P 8

/// `present`: `repetition_penalty` is set.
#define VRUST_REQUEST_HAS_REPETITION_PENALTY 16

/// `present`: `frequency_penalty` is set.
#define VRUST_REQUEST_HAS_FREQUENCY_PENALTY 32

/// `present`: `presence_penalty` is set.
#define VRUST_REQUEST_HAS_PRESENCE_PENALTY 64

/// `present`: `n` is set.
#define VRUST_REQUEST_HAS_N 128

/// `present`: `max_tokens` is set.
#define VRUST_REQUEST_HAS_MAX_TOKENS 256

/// `present`: `min_tokens` is set.
#define VRUST_REQUEST_HAS_MIN_TOKENS 512

/// `present`: `seed` is set.
#define VRUST_REQUEST_HAS_SEED 1024

/// `present`: `logprobs` is set.
#define VRUST_REQUEST_HAS_LOGPROBS 2048

/// `present`: `prompt_logprobs` is set.
#define VRUST_REQUEST_HAS_PROMPT_LOGPROBS 4096

/// `flags`: put the prompt's text and token ids before the first choice's output.
#define VRUST_REQUEST_ECHO 1

/// `flags`: go on past end-of-text tokens.
#define VRUST_REQUEST_IGNORE_EOS 2

/// `flags`: keep the stop string in the output.
#define VRUST_REQUEST_INCLUDE_STOP 4

/// `flags`: do not add the model's special tokens (bos) to a text prompt.
#define VRUST_REQUEST_NO_SPECIAL_TOKENS 8

/// `flags`: keep special tokens in the output's text.
#define VRUST_REQUEST_KEEP_SPECIAL_TOKENS 16

/// `flags`: no space between adjacent special tokens that stay in the text.
#define VRUST_REQUEST_NO_SPECIAL_SPACES 32

/// `flags`: token ids only, no text.
#define VRUST_REQUEST_NO_TEXT 64

/// `vrust_tokenizer_encode`: add the model's special tokens (bos).
#define VRUST_ENCODE_SPECIAL_TOKENS 1

/// `vrust_tokenizer_decode`: leave special tokens out.
#define VRUST_DECODE_SKIP_SPECIAL_TOKENS 1

/// `vrust_chat_render`: end with the opening of an assistant turn.
#define VRUST_CHAT_GENERATION_PROMPT 1

/// `vrust_chat_render`: leave the last message open, so that the model goes on with it.
#define VRUST_CHAT_CONTINUE_FINAL 2

/// A block of bytes that the library made: JSON or text, UTF-8 and NUL-terminated.
typedef struct VrustBytes VrustBytes;

/// Splits what a chat model writes into reasoning, content and tool calls, as it streams.
typedef struct VrustChatParser VrustChatParser;

/// A model being served: scheduler, worker thread, weights, KV cache.
typedef struct VrustEngine VrustEngine;

/// What went wrong in one call: a code, a message for people, details for programs.
typedef struct VrustError VrustError;

/// A queue of events on their way to one consumer.
typedef struct VrustQueue VrustQueue;

/// A tokenizer and the chat template beside it.
typedef struct VrustTokenizer VrustTokenizer;

/// How a call ended: `VRUST_OK`, a positive value that is not an error, or a negative one that is.
/// Numbers are permanent. Treat a negative number that you do not know as a plain error.
typedef int32_t VrustStatus;

/// Receives one record: its level, where it comes from and what it says. Neither string is
/// NUL-terminated, and both end with the call. Runs on any thread of the library or of the host's
/// that is inside a call, one or several at a time: it must not block, and it may not
/// call vrust_log_set, vrust_engine_wait_ready, vrust_engine_shutdown or vrust_engine_destroy
/// (VRUST_ERROR_INVALID_ARGUMENT).
typedef void (*VrustLogCallback)(void *user_data,
                                 uint32_t level,
                                 const char *target,
                                 size_t target_len,
                                 const char *message,
                                 size_t message_len);

/// Options of an engine. Fill it with `vrust_engine_options_init`, which sets every field to its
/// default, then set `model` and what else should differ. Truth values are 0 or 1.
typedef struct VrustEngineOptions {
  /// Bytes of this struct as the program knows it. Set by the init function.
  uint32_t struct_size;
  /// VRUST_ABI_VERSION of the program's header. Set by the init function.
  uint32_t abi_version;
  /// Model folder, in Hugging Face's layout. Required.
  const char *model;
  /// Bytes of `model`.
  size_t model_len;
  /// Tokenizer folder; the model folder when absent.
  const char *tokenizer;
  /// Bytes of `tokenizer`.
  size_t tokenizer_len;
  /// Jinja chat template to use instead of the checkpoint's.
  const char *chat_template;
  /// Bytes of `chat_template`.
  size_t chat_template_len;
  /// JSON object of rarer options: device ("auto", the default: the first GPU if it can be used
  /// for this model, else the CPU; "cpu"; "cuda" or "cuda:N": that one of the GPUs which the
  /// driver shows, an error if it cannot be had), gpu_memory_utilization (share of a GPU's
  /// memory, as far as it is free at the start, that may be used: above 0, at most 1; 0.92),
  /// async_scheduling (on a GPU: the host prepares a step while the one before runs; true),
  /// enforce_eager (no CUDA graphs), batch_invariant (on a GPU in bfloat16: a request's tokens do
  /// not depend on what else runs, at the cost of speed; everywhere else they never do),
  /// num_kv_blocks, served_model_name (the metrics' model_name;
  /// `model` when absent), quantization ("int8": weights in 8 bits with one scale an output,
  /// "int4": in 4 bits with one scale for each 32 inputs; rounded when they are loaded; inputs
  /// of layers in 8 bits; "none", the default), kv_cache_dtype ("int8": keys and values in 8 bits
  /// with one scale for each token and KV head, so that the cache holds nearly twice the tokens
  /// of bfloat16; on the CPU; "auto", the default: the model's precision, which may be named as
  /// "bfloat16" or "float32"), cpu_isa ("amx", "avx512_bf16", "avx512", "avx2",
  /// "neon_bf16", "neon", "portable"; the best of the machine when absent), cpu_pin_threads
  /// (binds each compute thread to a core; false),
  /// cpu_spin_us (microseconds that a compute thread which waits for others looks before it
  /// sleeps, letting other threads run between its looks: 10000; 0: it sleeps at once),
  /// cpu_commit_kv (a thread of lowest priority commits the KV cache's pages behind the engine's
  /// start, so that no request waits for the kernel to clear them; false: each is committed when
  /// it is first touched; when absent, whether kv_cache_memory_bytes is given), and `debug`, an
  /// object of aids for tests:
  /// panic_at_step (the engine's thread panics there: see what a bug does), nan_logits_for (the
  /// user_data of requests whose logits become NaN), poison_free_blocks, shuffle_blocks (a seed),
  /// check_integrity.
  /// Options of vLLM that this version lacks, such as swap_space, are
  /// VRUST_ERROR_UNSUPPORTED unless their value asks for nothing; an unknown key is an error.
  const char *extra_json;
  /// Bytes of `extra_json`.
  size_t extra_json_len;
  /// Bytes of the KV cache; 0: on the CPU the smaller of 4 GiB and a quarter of what the process
  /// may use, on a GPU what gpu_memory_utilization leaves.
  uint64_t kv_cache_memory_bytes;
  /// Bytes of undrained events of the default queue past which its requests wait. 64 MiB.
  uint64_t max_undrained_bytes;
  /// Seed of requests that bring none. 0.
  uint64_t seed;
  /// VRUST_LOAD_AUTO or VRUST_LOAD_DUMMY.
  uint32_t load_format;
  /// VRUST_DTYPE_AUTO, VRUST_DTYPE_FLOAT32 or VRUST_DTYPE_BFLOAT16.
  uint32_t dtype;
  /// VRUST_BACKEND_AUTO, VRUST_BACKEND_CPU or VRUST_BACKEND_REFERENCE.
  uint32_t backend;
  /// VRUST_SCHEDULING_FCFS or VRUST_SCHEDULING_PRIORITY.
  uint32_t scheduling_policy;
  /// Most positions of a sequence; 0: the model's own limit.
  uint32_t max_model_len;
  /// Most sequences of a step. 128.
  uint32_t max_num_seqs;
  /// Most tokens of a step. 2048.
  uint32_t max_num_batched_tokens;
  /// Positions of a KV block, a multiple of 8 up to 256. 16.
  uint32_t block_size;
  /// Longest part of a prompt in one step; 0: no such limit.
  uint32_t long_prefill_token_threshold;
  /// Most requests waiting; one more is VRUST_ERROR_QUEUE_FULL. 4096.
  uint32_t max_num_queued_reqs;
  /// Most logprobs a request may ask for. 20.
  uint32_t max_logprobs;
  /// Compute threads; 0: one for each physical core that the process may use.
  uint32_t cpu_threads;
  /// Ranks of tensor parallelism. This version has only 1.
  uint32_t tensor_parallel_size;
  /// Shares the KV blocks of equal prefixes. 1.
  uint32_t enable_prefix_caching;
  /// Cuts long prompts to the step's budget. 1.
  uint32_t enable_chunked_prefill;
  /// Takes sampling defaults from generation_config.json. 1.
  uint32_t use_generation_config;
  /// Runs without a tokenizer: token prompts only, no text. 0.
  uint32_t skip_tokenizer;
  /// 0.
  uint32_t reserved;
} VrustEngineOptions;

/// Options of a queue. Fill it with `vrust_queue_options_init`.
typedef struct VrustQueueOptions {
  /// Bytes of this struct as the program knows it. Set by the init function.
  uint32_t struct_size;
  /// VRUST_ABI_VERSION of the program's header. Set by the init function.
  uint32_t abi_version;
  /// Bytes of undrained events past which the queue's requests wait. 64 MiB.
  uint64_t max_undrained_bytes;
} VrustQueueOptions;

/// One event. It holds no pointers: what varies in size lies in the arena of the same poll, at the
/// offsets given (in bytes from the arena's beginning; tokens and logprobs at multiples of 4).
/// Fields that a kind does not use are 0.
typedef struct VrustEvent {
  /// The request; 0 for events of the engine.
  uint64_t request_id;
  /// The request's own `user_data`.
  uint64_t user_data;
  /// CLOCK_MONOTONIC time, in nanoseconds, of the newest part of the event.
  uint64_t time_ns;
  /// VRUST_EVENT_*. Skip kinds that you do not know.
  uint32_t kind;
  /// The choice, 0 to n - 1.
  uint32_t choice;
  /// VRUST_EVENT_LAST.
  uint32_t flags;
  /// Of ERROR and ENGINE_FAILED: why.
  VrustStatus status;
  /// Where the text begins. Whole UTF-8 scalars, not NUL-terminated.
  uint32_t text_offset;
  /// Bytes of text. May be 0 while a scalar or a possible stop string is incomplete.
  uint32_t text_len;
  /// Where the token ids begin, each a uint32_t. Their text may come with a later event.
  uint32_t tokens_offset;
  /// Number of token ids.
  uint32_t num_tokens;
  /// Where the VrustLogprob records begin.
  uint32_t logprobs_offset;
  /// Number of records.
  uint32_t num_logprobs;
  /// Where the detail begins: the stop string of FINISHED, the JSON object of an error.
  uint32_t detail_offset;
  /// Bytes of detail.
  uint32_t detail_len;
  /// Of FINISHED: VRUST_FINISH_*.
  uint32_t finish_reason;
  /// Of FINISHED by VRUST_FINISH_STOP_TOKEN: the token.
  uint32_t stop_token_id;
  /// Of FINISHED: tokens of the prompt.
  uint32_t prompt_tokens;
  /// Of FINISHED: those of them that were found in the prefix cache.
  uint32_t cached_tokens;
  /// Of FINISHED: tokens generated for this choice.
  uint32_t completion_tokens;
  /// Of LOAD: the fraction done. Of FINISHED: the sum of the chosen tokens' logprobs, if asked
  /// for.
  float value;
  /// Of FINISHED: when the request was submitted, as `time_ns`.
  uint64_t arrival_ns;
  /// Of FINISHED: when the choice was first scheduled; 0: never.
  uint64_t scheduled_ns;
  /// Of FINISHED: when its first token was sampled; 0: never.
  uint64_t first_token_ns;
  /// Of FINISHED: when its last token was sampled; 0: never.
  uint64_t last_token_ns;
} VrustEvent;

/// A request. Fill it with `vrust_request_options_init`, then set `input` and what else should
/// differ. An optional number counts only when its bit of `present` is set; otherwise the model's
/// generation_config.json decides where it can, and the default given here where it does not.
/// Everything is copied before `vrust_submit` returns.
typedef struct VrustRequest {
  /// Bytes of this struct as the program knows it. Set by the init function.
  uint32_t struct_size;
  /// VRUST_ABI_VERSION of the program's header. Set by the init function.
  uint32_t abi_version;
  /// VRUST_REQUEST_HAS_* bits of the optional numbers that are set.
  uint64_t present;
  /// Echoed in every event of the request. May arrive before `vrust_submit` returns its id.
  uint64_t user_data;
  /// Where its events go, a queue of the same engine; NULL: the engine's default queue.
  const struct VrustQueue *queue;
  /// What to continue; `input_kind` says what it is.
  const void *input;
  /// Bytes of `input`, or its number of ids.
  size_t input_len;
  /// VRUST_INPUT_TEXT, VRUST_INPUT_TOKENS or VRUST_INPUT_CHAT_JSON.
  uint32_t input_kind;
  /// VRUST_REQUEST_* flags.
  uint32_t flags;
  /// Stop strings: a JSON string or array of up to 4 strings.
  const char *stop_json;
  /// Bytes of `stop_json`.
  size_t stop_json_len;
  /// Token ids that end a choice.
  const uint32_t *stop_token_ids;
  /// Number of `stop_token_ids`.
  size_t num_stop_token_ids;
  /// Only requests with an equal salt share cached blocks; 1 to 128 bytes, or absent.
  const char *cache_salt;
  /// Bytes of `cache_salt`.
  size_t cache_salt_len;
  /// JSON object of any further field that `vrust_submit_json` knows, such as logit_bias,
  /// allowed_token_ids or bad_words. Applied last.
  const char *extra_json;
  /// Bytes of `extra_json`.
  size_t extra_json_len;
  /// The request ends with VRUST_FINISH_DEADLINE this long after it was submitted; 0: never.
  uint64_t deadline_ms;
  /// Seed of the noise; choice i uses seed + i; -1 is unset. Drawn from the engine's seed.
  int64_t seed;
  /// Lower runs earlier under VRUST_SCHEDULING_PRIORITY; else it must be 0.
  int32_t priority;
  /// Choices to generate, 1 to 16384. 1.
  uint32_t n;
  /// Most tokens to generate. 16 for text and tokens, the rest of the context for chats.
  uint32_t max_tokens;
  /// End-of-text and stop tokens cannot be chosen before this many tokens. 0.
  uint32_t min_tokens;
  /// 0 to 2; below 1e-5 greedy. 1.
  float temperature;
  /// Above 0, up to 1. 1.
  float top_p;
  /// 0 to 1. 0.
  float min_p;
  /// Above 0; divides positive and multiplies negative logits of tokens seen. 1.
  float repetition_penalty;
  /// -2 to 2; subtracted per occurrence among generated tokens. 0.
  float frequency_penalty;
  /// -2 to 2; subtracted once from tokens already generated. 0.
  float presence_penalty;
  /// 0 or -1: off. Off.
  int32_t top_k;
  /// Logprobs of each token and of this many most likely ones; -1: the whole vocabulary. Off.
  int32_t logprobs;
  /// The same for each token of the prompt. Off.
  int32_t prompt_logprobs;
  /// 0.
  uint32_t reserved;
} VrustRequest;

/// A snapshot of an engine's figures. Counters count from the engine's start. Fields are only ever
/// appended.
typedef struct VrustStats {
  /// Sequences that have blocks and are being computed.
  uint64_t num_requests_running;
  /// Sequences waiting for their (next) turn.
  uint64_t num_requests_waiting;
  /// Requests accepted and not ended, in any state.
  uint64_t live_requests;
  /// Rows of tokens that the backend computed, counted inside it.
  uint64_t token_rows;
  /// Rows of logits that the backend computed, counted inside it.
  uint64_t logits_rows;
  /// KV blocks that may hold data; the null block is not one.
  uint64_t kv_blocks_total;
  /// Of those, blocks that a sequence holds.
  uint64_t kv_blocks_used;
  /// Blocks that no sequence holds but the prefix cache may still serve.
  uint64_t kv_blocks_cached;
  /// Blocks that hold nothing of use. Free, used and cached add up to the total.
  uint64_t kv_blocks_free;
  /// `kv_blocks_used / kv_blocks_total`, 0 to 1.
  double kv_cache_usage;
  /// Tokens looked up in the prefix cache.
  uint64_t prefix_cache_queries;
  /// Tokens found there.
  uint64_t prefix_cache_hits;
  /// Sequences that lost their blocks to others.
  uint64_t num_preemptions;
  /// Prompt tokens of the sequences whose prefill is done, cached ones included.
  uint64_t prompt_tokens;
  /// Of those, tokens that came from the prefix cache.
  uint64_t prompt_tokens_cached;
  /// Tokens generated.
  uint64_t generation_tokens;
  /// Choices that ended at end-of-text, a stop token or a stop string.
  uint64_t finished_stop;
  /// Choices that ended at `max_tokens` or the end of the context.
  uint64_t finished_length;
  /// Choices that the host aborted.
  uint64_t finished_abort;
  /// Choices whose deadline passed.
  uint64_t finished_deadline;
  /// Choices of requests that failed.
  uint64_t finished_error;
  /// Requests turned away because the waiting queue was full.
  uint64_t rejected_queue_full;
  /// Bytes of events that the host has not drained.
  uint64_t undrained_bytes;
  /// Steps done.
  uint64_t steps;
  /// Seconds of all steps.
  double step_seconds;
  /// Seconds of the newest step.
  double last_step_seconds;
} VrustStats;

/// The log probability of one token at one place, before penalties, bias and temperature. The
/// records of a place stand together: first the token that was chosen (of a prompt: that is
/// there), then the most likely tokens, best first, which may repeat it. The first token of a
/// prompt has no records.
typedef struct VrustLogprob {
  /// The place: index into the event's tokens, or of VRUST_EVENT_PROMPT into the prompt.
  uint32_t position;
  /// The token.
  uint32_t token_id;
  /// Natural logarithm of its probability.
  float logprob;
  /// 1 for the most likely token.
  uint32_t rank;
} VrustLogprob;

/// Done.
#define VRUST_OK 0

/// The time was up, or `vrust_queue_wake` was called, before anything happened.
#define VRUST_TIMEOUT 1

/// Events were delivered and more are waiting: poll again.
#define VRUST_TRUNCATED 2

/// The queue is finished: no event is left and none will come.
#define VRUST_CLOSED 3

/// A parameter is out of range or malformed, or a handle is NULL, stale or of another kind.
#define VRUST_ERROR_INVALID_ARGUMENT -1

/// The program was compiled against a header that this library cannot serve.
#define VRUST_ERROR_ABI_MISMATCH -2

/// Well-formed, but this build or model cannot do it.
#define VRUST_ERROR_UNSUPPORTED -3

/// No such thing: an id that the engine never issued, a file that does not exist.
#define VRUST_ERROR_NOT_FOUND -4

/// The operating system refused, or cut short, an operation on a file.
#define VRUST_ERROR_IO -5

/// A checkpoint or its configuration is malformed.
#define VRUST_ERROR_MODEL_FORMAT -6

/// The tokenizer is missing, malformed, or failed on this input.
#define VRUST_ERROR_TOKENIZER -7

/// The chat template is missing, malformed, or raised an error on these messages.
#define VRUST_ERROR_TEMPLATE -8

/// A grammar for structured output is malformed.
#define VRUST_ERROR_GRAMMAR -9

/// The prompt does not fit the model's context.
#define VRUST_ERROR_CONTEXT_LENGTH -10

/// The waiting queue is full. The one retryable error.
#define VRUST_ERROR_QUEUE_FULL -11

/// Host memory could not be had.
#define VRUST_ERROR_OUT_OF_MEMORY -12

/// Device memory could not be had.
#define VRUST_ERROR_DEVICE_MEMORY -13

/// The device reported a failure.
#define VRUST_ERROR_DEVICE -14

/// The engine failed earlier and serves no more requests. Destroy it.
#define VRUST_ERROR_ENGINE_FAILED -15

/// The engine is draining or closed.
#define VRUST_ERROR_SHUTTING_DOWN -16

/// The caller's buffer cannot hold the result; the size it needs was written.
#define VRUST_ERROR_BUFFER_TOO_SMALL -17

/// A bug in this library, caught at the boundary. The message says where.
#define VRUST_ERROR_PANIC -18

/// The library was used before `fork` and this is the child.
#define VRUST_ERROR_FORKED -19

/// The operation was cancelled by the host.
#define VRUST_ERROR_CANCELLED -20

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// Version of the ABI of the loaded library: major << 16 | minor. Any thread.
uint32_t vrust_abi_version(void);

/// Version of the loaded library, such as "0.1.0". Static and NUL-terminated. Any thread.
const char *vrust_version_string(void);

/// How the loaded library was built, as a JSON object: version, abi_version, target, profile,
/// git_revision (null when unknown), backends. Static and NUL-terminated. Any thread.
const char *vrust_build_info_json(void);

/// The name of a status without its prefix, such as "TIMEOUT" or "INVALID_ARGUMENT"; "UNKNOWN" for
/// a number this library does not know. Static and NUL-terminated. Any thread.
const char *vrust_status_name(VrustStatus status);

/// The status that made this error. VRUST_ERROR_INVALID_ARGUMENT for NULL and stale handles.
VrustStatus vrust_error_code(const struct VrustError *error);

/// The message, UTF-8 and NUL-terminated; `*len`, unless `len` is NULL, gets its bytes without the
/// NUL. It names the field, its limit and the value given. Valid until the error is destroyed; ""
/// for NULL and stale handles.
const char *vrust_error_message(const struct VrustError *error, size_t *len);

/// Details as a JSON object, such as {"field":"max_tokens","limit":1,"value":0}, UTF-8 and
/// NUL-terminated; `*len`, unless `len` is NULL, gets its bytes without the NUL. Valid until the
/// error is destroyed; "{}" where there are none.
const char *vrust_error_detail_json(const struct VrustError *error, size_t *len);

/// 1 if the same call may succeed later without a change (VRUST_ERROR_QUEUE_FULL), else 0.
int32_t vrust_error_is_retryable(const struct VrustError *error);

/// Frees an error and its strings. NULL is fine.
VrustStatus vrust_error_destroy(struct VrustError *error);

/// The bytes, followed by a NUL. Valid until destroyed. NULL for NULL and stale handles.
const uint8_t *vrust_bytes_data(const struct VrustBytes *bytes);

/// Number of bytes, without the NUL. 0 for NULL and stale handles.
size_t vrust_bytes_len(const struct VrustBytes *bytes);

/// Frees the bytes. NULL is fine.
VrustStatus vrust_bytes_destroy(struct VrustBytes *bytes);

/// Sends the library's log, up to `level` (VRUST_LOG_ERROR .. VRUST_LOG_TRACE), to `callback`,
/// for the whole process. A NULL callback or VRUST_LOG_OFF ends that. Returns only when no thread
/// is inside the previous callback any more, so that its `user_data` may be freed. Without a
/// callback the library is silent.
///
/// Any thread, but not from inside the callback. VRUST_ERROR_UNSUPPORTED in a Rust program that
/// has a `tracing` subscriber of its own.
VrustStatus vrust_log_set(uint32_t level,
                          VrustLogCallback callback,
                          void *user_data,
                          struct VrustError **err);

/// Fills `options`, `size` bytes (sizeof *options), with defaults. NULL is fine.
void vrust_engine_options_init(struct VrustEngineOptions *options, size_t size);

/// Makes an engine. Checks the options, reads the model's configuration, starts a thread that
/// loads the weights, and returns at once. Progress comes as VRUST_EVENT_LOAD on the default
/// queue; requests may be submitted meanwhile. End it with `vrust_engine_destroy`.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT, VRUST_ERROR_UNSUPPORTED or VRUST_ERROR_ABI_MISMATCH
/// for the options; VRUST_ERROR_NOT_FOUND, VRUST_ERROR_IO, VRUST_ERROR_MODEL_FORMAT for the folder.
VrustStatus vrust_engine_create(const struct VrustEngineOptions *options,
                                struct VrustEngine **engine_out,
                                struct VrustError **err);

/// Waits until the engine has loaded; VRUST_TIMEOUT when `timeout_ms` (-1: no limit) passes.
///
/// Any thread. The reason, when loading failed; VRUST_ERROR_SHUTTING_DOWN when it was cancelled.
VrustStatus vrust_engine_wait_ready(const struct VrustEngine *engine,
                                    int32_t timeout_ms,
                                    struct VrustError **err);

/// Writes the engine's state, VRUST_STATE_*. Any thread.
VrustStatus vrust_engine_state(const struct VrustEngine *engine,
                               uint32_t *state_out,
                               struct VrustError **err);

/// Writes facts about the loaded engine, a JSON object: model, max_model_len, vocab_size, eos
/// token ids, dtype, KV blocks, backend .. The caller destroys the bytes.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT before the engine is ready.
VrustStatus vrust_engine_info_json(const struct VrustEngine *engine,
                                   struct VrustBytes **json_out,
                                   struct VrustError **err);

/// Refuses new requests from now on. VRUST_SHUTDOWN_DRAIN waits until the live ones have ended,
/// VRUST_SHUTDOWN_ABORT ends them; then the engine stops and its queues are closed, once drained.
/// VRUST_TIMEOUT when `timeout_ms` (-1: no limit) passes first: the engine goes on ending, and the
/// call may be repeated, in either mode. Requests of a queue past its `max_undrained_bytes` wait to
/// be drained also now: drain without a limit only while another thread polls. Any thread, at any
/// time.
VrustStatus vrust_engine_shutdown(const struct VrustEngine *engine,
                                  uint32_t mode,
                                  int32_t timeout_ms,
                                  struct VrustError **err);

/// Ends the engine at once, cancels its loading, aborts its requests, waits for its threads and
/// gives back its memory, which calls still inside other threads hold until they return. Queues
/// and tokenizers that came from it stay valid: drain the last events, then poll says
/// VRUST_CLOSED. NULL is fine. Any thread, at any time; not from the log callback.
VrustStatus vrust_engine_destroy(struct VrustEngine *engine);

/// Fills `options`, `size` bytes (sizeof *options), with defaults. NULL is fine.
void vrust_queue_options_init(struct VrustQueueOptions *options, size_t size);

/// Writes a handle to the engine's default queue, which takes the events of requests that name no
/// queue, and those of the engine's loading. Each call makes a new handle to the same queue;
/// destroy it with `vrust_queue_destroy`. It outlives the engine. Any thread.
VrustStatus vrust_engine_default_queue(const struct VrustEngine *engine,
                                       struct VrustQueue **queue_out,
                                       struct VrustError **err);

/// Makes another queue, for another consumer. `options` may be NULL. The queue outlives the
/// engine. Any thread.
VrustStatus vrust_queue_create(const struct VrustEngine *engine,
                               const struct VrustQueueOptions *options,
                               struct VrustQueue **queue_out,
                               struct VrustError **err);

/// Drains up to `capacity` events. Waits up to `timeout_ms` for the first one (0: does not wait;
/// -1: no limit). Writes event i at `events` + i * `stride` bytes (`stride`: sizeof(VrustEvent)),
/// what varies in size into `arena`, and how many events and bytes of the arena were written into
/// `n_events` and `n_bytes`. Align `arena` to 4 to read tokens and logprobs in place.
///
/// VRUST_OK: at least one event, and the queue is empty now. VRUST_TRUNCATED: at least one event,
/// and more are waiting. VRUST_TIMEOUT: none in time, or `vrust_queue_wake`. VRUST_CLOSED: none,
/// and none will come: the engine has ended, or this queue was destroyed.
///
/// VRUST_ERROR_BUFFER_TOO_SMALL: the first event alone needs an arena of `*n_bytes` bytes; nothing
/// was taken. Any thread, one at a time: VRUST_ERROR_INVALID_ARGUMENT while another one polls.
VrustStatus vrust_queue_poll(struct VrustQueue *queue,
                             struct VrustEvent *events,
                             size_t stride,
                             size_t capacity,
                             uint8_t *arena,
                             size_t arena_capacity,
                             int32_t timeout_ms,
                             size_t *n_events,
                             size_t *n_bytes,
                             struct VrustError **err);

/// Writes a file descriptor that is readable while events wait, for poll(2), epoll and event
/// loops. It becomes readable once per change from empty to not empty: after it did, poll the
/// queue (timeout 0) until that returns something else than VRUST_TRUNCATED. It belongs to the
/// queue: wait on it, never read or close it; it is gone when the queue is destroyed. Any thread.
VrustStatus vrust_queue_fd(const struct VrustQueue *queue,
                           int32_t *fd_out,
                           struct VrustError **err);

/// Makes the poll that is waiting, or else the next one that would, return VRUST_TIMEOUT at once.
/// Any thread.
VrustStatus vrust_queue_wake(const struct VrustQueue *queue, struct VrustError **err);

/// Destroys a queue: its unfinished requests are aborted, its events are dropped, and a poll that
/// is waiting returns VRUST_CLOSED. Of the default queue it destroys this handle only. NULL is
/// fine. Any thread, at any time.
VrustStatus vrust_queue_destroy(struct VrustQueue *queue);

/// Fills `request`, `size` bytes (sizeof *request), with defaults and no optional number set.
/// NULL is fine.
void vrust_request_options_init(struct VrustRequest *request, size_t size);

/// Submits a request and writes its id, which is never 0 and never used again by this engine.
/// Copies everything, and never waits for the model: text is tokenized on the library's threads,
/// and a failure of that is the request's VRUST_EVENT_ERROR. Works while the engine loads.
/// From now on the request owes exactly one event with VRUST_EVENT_LAST.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT names the field; VRUST_ERROR_UNSUPPORTED,
/// VRUST_ERROR_CONTEXT_LENGTH, VRUST_ERROR_QUEUE_FULL (retryable), VRUST_ERROR_SHUTTING_DOWN,
/// VRUST_ERROR_ENGINE_FAILED.
VrustStatus vrust_submit(const struct VrustEngine *engine,
                         const struct VrustRequest *request,
                         uint64_t *id_out,
                         struct VrustError **err);

/// The same from JSON: the body of an OpenAI /v1/completions (`prompt`: a string or token ids) or
/// /v1/chat/completions (`messages`) request, with vLLM's further fields, `deadline_ms`, and
/// `output_kind` ("delta", the default; "final_only": each choice's output comes in one delta, when
/// it ends; an error leaves none).
/// Fields that concern only a server (model, user, stream, stream_options, metadata, store ..)
/// are passed over; what this version lacks (best_of, beam search, structured output ..) is
/// VRUST_ERROR_UNSUPPORTED unless its value asks for nothing; any other unknown field is
/// VRUST_ERROR_INVALID_ARGUMENT and named. `queue` NULL: the engine's default queue.
///
/// Any thread. Errors as `vrust_submit`.
VrustStatus vrust_submit_json(const struct VrustEngine *engine,
                              const struct VrustQueue *queue,
                              const char *json,
                              size_t json_len,
                              uint64_t user_data,
                              uint64_t *id_out,
                              struct VrustError **err);

/// Ends a request within one step: each unfinished choice gets its VRUST_EVENT_FINISHED with
/// VRUST_FINISH_ABORT. Aborting a request that has ended is VRUST_OK and does nothing.
///
/// Any thread. VRUST_ERROR_NOT_FOUND for an id that this engine never issued.
VrustStatus vrust_abort(const struct VrustEngine *engine, uint64_t id, struct VrustError **err);

/// Aborts every request that has not ended. Any thread.
VrustStatus vrust_abort_all(const struct VrustEngine *engine, struct VrustError **err);

/// Opens the tokenizer and the chat template of a model folder. Needs no engine and no weights.
///
/// Any thread. VRUST_ERROR_NOT_FOUND, VRUST_ERROR_IO or VRUST_ERROR_TOKENIZER for the folder.
VrustStatus vrust_tokenizer_open(const char *path,
                                 size_t path_len,
                                 struct VrustTokenizer **tokenizer_out,
                                 struct VrustError **err);

/// Writes a handle to the engine's tokenizer and chat template. It outlives the engine.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT before the engine is ready; VRUST_ERROR_UNSUPPORTED
/// when it runs without a tokenizer.
VrustStatus vrust_engine_tokenizer(const struct VrustEngine *engine,
                                   struct VrustTokenizer **tokenizer_out,
                                   struct VrustError **err);

/// Writes a handle to the same tokenizer with another chat template, in Jinja, for renderings and
/// parsers of chats that bring their own. It outlives the first one.
///
/// A template reaches no files and runs no code, but a malicious one can burn time: take it only
/// from those whom you trust. Any thread. VRUST_ERROR_TEMPLATE when it cannot be parsed.
VrustStatus vrust_tokenizer_with_template(const struct VrustTokenizer *tokenizer,
                                          const char *chat_template,
                                          size_t chat_template_len,
                                          struct VrustTokenizer **tokenizer_out,
                                          struct VrustError **err);

/// Encodes text. Writes the number of ids to `n_ids` and the ids to `ids`, which has room for
/// `capacity`; VRUST_ERROR_BUFFER_TOO_SMALL when that is too little, with the number it needs.
/// `flags`: VRUST_ENCODE_*. Any thread.
VrustStatus vrust_tokenizer_encode(const struct VrustTokenizer *tokenizer,
                                   const char *text,
                                   size_t text_len,
                                   uint32_t flags,
                                   uint32_t *ids,
                                   size_t capacity,
                                   size_t *n_ids,
                                   struct VrustError **err);

/// Decodes `n_ids` ids. Writes the number of bytes of text to `text_len` and the text, not
/// NUL-terminated, to `text`, which has room for `capacity` bytes; VRUST_ERROR_BUFFER_TOO_SMALL
/// when that is too little, with the number it needs. `flags`: VRUST_DECODE_*. Any thread.
VrustStatus vrust_tokenizer_decode(const struct VrustTokenizer *tokenizer,
                                   const uint32_t *ids,
                                   size_t n_ids,
                                   uint32_t flags,
                                   char *text,
                                   size_t capacity,
                                   size_t *text_len,
                                   struct VrustError **err);

/// The bytes that one token stands for, which need not be whole UTF-8 scalars. Buffer and errors
/// as `vrust_tokenizer_decode`; VRUST_ERROR_NOT_FOUND for an id outside the vocabulary. Any thread.
VrustStatus vrust_tokenizer_token_bytes(const struct VrustTokenizer *tokenizer,
                                        uint32_t id,
                                        uint8_t *bytes,
                                        size_t capacity,
                                        size_t *n_bytes,
                                        struct VrustError **err);

/// Destroys a tokenizer's handle. NULL is fine. Any thread.
VrustStatus vrust_tokenizer_destroy(struct VrustTokenizer *tokenizer);

/// Renders a chat by the checkpoint's template, as a chat request does. `messages_json`: an array
/// of OpenAI messages; `tools_json` (may be absent): an array of tools; `kwargs_json` (may be
/// absent): an object of further variables of the template. `flags`: VRUST_CHAT_*. The caller
/// destroys the bytes.
///
/// Any thread. VRUST_ERROR_TEMPLATE when there is no template or it raises an error.
VrustStatus vrust_chat_render(const struct VrustTokenizer *tokenizer,
                              const char *messages_json,
                              size_t messages_json_len,
                              const char *tools_json,
                              size_t tools_json_len,
                              const char *kwargs_json,
                              size_t kwargs_json_len,
                              uint32_t flags,
                              struct VrustBytes **text_out,
                              struct VrustError **err);

/// Creates a parser for the answers to a chat of this tokenizer's model; one for each choice that
/// streams at the same time. `options_json` (may be absent): an object of
///   "tool_format": "auto" (the default: what the chat template shows, or none), "none", "hermes",
///     "llama3_json", "mistral", "pythonic", "qwen3_xml" (or "qwen3_coder");
///   "reasoning_format": "auto", "none", "think" (or "qwen3", "deepseek_r1"), "mistral";
///   "tools": the request's; absent or empty, no calls are looked for;
///   "chat_template_kwargs": the request's. A minimal chat is rendered with them to see whether
///     the prompt ends inside reasoning.
///
/// Any thread. VRUST_ERROR_INVALID_ARGUMENT for an unknown name or field, and for malformed tools;
/// VRUST_ERROR_TEMPLATE when the template beside the tokenizer cannot be used at all.
VrustStatus vrust_chat_parser_create(const struct VrustTokenizer *tokenizer,
                                     const char *options_json,
                                     size_t options_json_len,
                                     struct VrustChatParser **parser_out,
                                     struct VrustError **err);

/// What was decided, as a JSON object: tool_format and reasoning_format (a format's first name, or
/// null when none is looked for), starts_in_reasoning (the prompt ends inside reasoning),
/// keep_special_tokens (markers are special tokens here: ask for the text with
/// VRUST_REQUEST_KEEP_SPECIAL_TOKENS). The caller destroys the bytes. Any thread.
VrustStatus vrust_chat_parser_info_json(const struct VrustChatParser *parser,
                                        struct VrustBytes **json_out,
                                        struct VrustError **err);

/// Takes text of the answer, in pieces of any size that are whole UTF-8, and writes what it makes
/// certain: a JSON array, often empty, of OpenAI delta objects, each of one kind:
///   {"reasoning":".."}
///   {"content":".."}
///   {"tool_calls":[{"index":0,"id":"..","type":"function","function":{"name":"..",
///     "arguments":""}}]}
///   {"tool_calls":[{"index":0,"function":{"arguments":".."}}]}
/// Held back is only what may still be a marker or the beginning of a call. However the text is
/// cut, the deltas join to the same. A call's arguments join to one JSON object, unless the model
/// left it unfinished. Text that is no well-formed call is content, from where it went wrong.
/// Whitespace next to a marker is part of it. The caller destroys the bytes.
///
/// Any thread; pieces that threads push at the same time are taken one after the other.
VrustStatus vrust_chat_parser_push(struct VrustChatParser *parser,
                                   const char *text,
                                   size_t text_len,
                                   struct VrustBytes **deltas_out,
                                   struct VrustError **err);

/// Ends the answer and writes what was held back, as vrust_chat_parser_push does. The parser is
/// then as new: it takes another answer to the same chat, or to one with the same tools. Any
/// thread.
VrustStatus vrust_chat_parser_finish(struct VrustChatParser *parser,
                                     struct VrustBytes **deltas_out,
                                     struct VrustError **err);

/// Destroys a parser. NULL is fine. Any thread.
VrustStatus vrust_chat_parser_destroy(struct VrustChatParser *parser);

/// Writes the engine's figures to `stats`, as many bytes as `size` (sizeof *stats) says; what this
/// library does not know is zero. Never waits for a step. Any thread.
VrustStatus vrust_stats_get(const struct VrustEngine *engine,
                            struct VrustStats *stats,
                            size_t size,
                            struct VrustError **err);

/// Writes the engine's figures in Prometheus' text format, under vLLM's names. The caller destroys
/// the bytes. Any thread.
VrustStatus vrust_stats_prometheus(const struct VrustEngine *engine,
                                   struct VrustBytes **text_out,
                                   struct VrustError **err);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VRUST_VRUST_H */
