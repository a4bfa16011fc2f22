/* stats: the figures add up, in the struct and in Prometheus' format. */

#include "harness.h"

int main(int argc, char **argv) {
  VrustEngine *engine = ready_engine(model_folder(argc, argv));
  VrustQueue *queue = default_queue(engine);
  Consumer consumer = new_consumer();
  VrustBytes *text = NULL;
  VrustStats stats;
  unsigned char larger[sizeof stats + 16];
  size_t i;

  for (i = 0; i < 10; i++) submit(engine, "the same long prompt, again and again", 10, i);
  drain_until(&consumer, queue, 10);
  CHECK_OK(vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, -1, &err));
  CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
  CHECK(stats.generation_tokens == 100 && stats.finished_length == 10);
  CHECK(stats.prompt_tokens >= 10 && stats.prompt_tokens % 10 == 0);
  CHECK(stats.live_requests == 0 && stats.num_requests_running == 0);
  CHECK(stats.kv_blocks_total > 0 && stats.kv_blocks_used == 0);
  CHECK(stats.steps >= 10 && stats.step_seconds > 0.0);
  CHECK(stats.prefix_cache_hits <= stats.prefix_cache_queries);

  CHECK_OK(vrust_stats_prometheus(engine, &text, &err));
  CHECK(strstr((const char *)vrust_bytes_data(text), "vllm:generation_tokens_total") != NULL);
  CHECK(vrust_bytes_destroy(text) == VRUST_OK);

  /* A newer program's larger struct gets zeros; a wrong size is refused. */
  memset(larger, 0xaa, sizeof larger);
  CHECK_OK(vrust_stats_get(engine, (VrustStats *)(void *)larger, sizeof larger, &err));
  for (i = sizeof stats; i < sizeof larger; i++) CHECK(larger[i] == 0);
  CHECK_STATUS(VRUST_ERROR_ABI_MISMATCH, vrust_stats_get(engine, &stats, 8, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_stats_get(engine, NULL, sizeof stats, &err));

  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
  return 0;
}
