/* abi_layout: where every field of every struct lies, for the whole life of libvrust.so.0. Lines
 * are only ever added. */

#include <vrust/vrust.h>
#include <vrust/vrust.h> /* Including it twice is fine. */

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define STATIC_CHECK(condition) typedef char JOIN(static_check_, __LINE__)[(condition) ? 1 : -1]
#define AT(type, field, offset) STATIC_CHECK(offsetof(type, field) == (offset))
#define SIZE(type, size) STATIC_CHECK(sizeof(type) == (size))

SIZE(VrustEngineOptions, 168);
AT(VrustEngineOptions, struct_size, 0);
AT(VrustEngineOptions, abi_version, 4);
AT(VrustEngineOptions, model, 8);
AT(VrustEngineOptions, model_len, 16);
AT(VrustEngineOptions, tokenizer, 24);
AT(VrustEngineOptions, tokenizer_len, 32);
AT(VrustEngineOptions, chat_template, 40);
AT(VrustEngineOptions, chat_template_len, 48);
AT(VrustEngineOptions, extra_json, 56);
AT(VrustEngineOptions, extra_json_len, 64);
AT(VrustEngineOptions, kv_cache_memory_bytes, 72);
AT(VrustEngineOptions, max_undrained_bytes, 80);
AT(VrustEngineOptions, seed, 88);
AT(VrustEngineOptions, load_format, 96);
AT(VrustEngineOptions, dtype, 100);
AT(VrustEngineOptions, backend, 104);
AT(VrustEngineOptions, scheduling_policy, 108);
AT(VrustEngineOptions, max_model_len, 112);
AT(VrustEngineOptions, max_num_seqs, 116);
AT(VrustEngineOptions, max_num_batched_tokens, 120);
AT(VrustEngineOptions, block_size, 124);
AT(VrustEngineOptions, long_prefill_token_threshold, 128);
AT(VrustEngineOptions, max_num_queued_reqs, 132);
AT(VrustEngineOptions, max_logprobs, 136);
AT(VrustEngineOptions, cpu_threads, 140);
AT(VrustEngineOptions, tensor_parallel_size, 144);
AT(VrustEngineOptions, enable_prefix_caching, 148);
AT(VrustEngineOptions, enable_chunked_prefill, 152);
AT(VrustEngineOptions, use_generation_config, 156);
AT(VrustEngineOptions, skip_tokenizer, 160);
AT(VrustEngineOptions, reserved, 164);

SIZE(VrustQueueOptions, 16);
AT(VrustQueueOptions, struct_size, 0);
AT(VrustQueueOptions, abi_version, 4);
AT(VrustQueueOptions, max_undrained_bytes, 8);

SIZE(VrustEvent, 128);
AT(VrustEvent, request_id, 0);
AT(VrustEvent, user_data, 8);
AT(VrustEvent, time_ns, 16);
AT(VrustEvent, kind, 24);
AT(VrustEvent, choice, 28);
AT(VrustEvent, flags, 32);
AT(VrustEvent, status, 36);
AT(VrustEvent, text_offset, 40);
AT(VrustEvent, text_len, 44);
AT(VrustEvent, tokens_offset, 48);
AT(VrustEvent, num_tokens, 52);
AT(VrustEvent, logprobs_offset, 56);
AT(VrustEvent, num_logprobs, 60);
AT(VrustEvent, detail_offset, 64);
AT(VrustEvent, detail_len, 68);
AT(VrustEvent, finish_reason, 72);
AT(VrustEvent, stop_token_id, 76);
AT(VrustEvent, prompt_tokens, 80);
AT(VrustEvent, cached_tokens, 84);
AT(VrustEvent, completion_tokens, 88);
AT(VrustEvent, value, 92);
AT(VrustEvent, arrival_ns, 96);
AT(VrustEvent, scheduled_ns, 104);
AT(VrustEvent, first_token_ns, 112);
AT(VrustEvent, last_token_ns, 120);

SIZE(VrustRequest, 192);
AT(VrustRequest, struct_size, 0);
AT(VrustRequest, abi_version, 4);
AT(VrustRequest, present, 8);
AT(VrustRequest, user_data, 16);
AT(VrustRequest, input, 32);
AT(VrustRequest, input_len, 40);
AT(VrustRequest, input_kind, 48);
AT(VrustRequest, flags, 52);
AT(VrustRequest, stop_json, 56);
AT(VrustRequest, stop_json_len, 64);
AT(VrustRequest, stop_token_ids, 72);
AT(VrustRequest, num_stop_token_ids, 80);
AT(VrustRequest, cache_salt, 88);
AT(VrustRequest, cache_salt_len, 96);
AT(VrustRequest, extra_json, 104);
AT(VrustRequest, extra_json_len, 112);
AT(VrustRequest, deadline_ms, 120);
AT(VrustRequest, seed, 128);
AT(VrustRequest, priority, 136);
AT(VrustRequest, n, 140);
AT(VrustRequest, max_tokens, 144);
AT(VrustRequest, min_tokens, 148);
AT(VrustRequest, temperature, 152);
AT(VrustRequest, top_p, 156);
AT(VrustRequest, min_p, 160);
AT(VrustRequest, repetition_penalty, 164);
AT(VrustRequest, frequency_penalty, 168);
AT(VrustRequest, presence_penalty, 172);
AT(VrustRequest, top_k, 176);
AT(VrustRequest, logprobs, 180);
AT(VrustRequest, prompt_logprobs, 184);
AT(VrustRequest, reserved, 188);

SIZE(VrustStats, 208);
AT(VrustStats, num_requests_running, 0);
AT(VrustStats, num_requests_waiting, 8);
AT(VrustStats, live_requests, 16);
AT(VrustStats, token_rows, 24);
AT(VrustStats, logits_rows, 32);
AT(VrustStats, kv_blocks_total, 40);
AT(VrustStats, kv_blocks_used, 48);
AT(VrustStats, kv_blocks_cached, 56);
AT(VrustStats, kv_blocks_free, 64);
AT(VrustStats, kv_cache_usage, 72);
AT(VrustStats, prefix_cache_queries, 80);
AT(VrustStats, prefix_cache_hits, 88);
AT(VrustStats, num_preemptions, 96);
AT(VrustStats, prompt_tokens, 104);
AT(VrustStats, prompt_tokens_cached, 112);
AT(VrustStats, generation_tokens, 120);
AT(VrustStats, finished_stop, 128);
AT(VrustStats, finished_length, 136);
AT(VrustStats, finished_abort, 144);
AT(VrustStats, finished_deadline, 152);
AT(VrustStats, finished_error, 160);
AT(VrustStats, rejected_queue_full, 168);
AT(VrustStats, undrained_bytes, 176);
AT(VrustStats, steps, 184);
AT(VrustStats, step_seconds, 192);
AT(VrustStats, last_step_seconds, 200);

SIZE(VrustLogprob, 16);
AT(VrustLogprob, position, 0);
AT(VrustLogprob, token_id, 4);
AT(VrustLogprob, logprob, 8);
AT(VrustLogprob, rank, 12);

int main(void) { return 0; }
