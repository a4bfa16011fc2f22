/* failure: what a bug, a load that fails and NaN logits do to the host: events and statuses, and
 * nothing on stderr. The engine option `debug` makes them happen. */

#include "harness.h"

#include <unistd.h>

static int real_stderr = -1;
static FILE *captured;

/* From now on stderr is a file. A failed check still shows what went there. */
static void show_captured(void) {
  char line[256];
  if (captured == NULL) return;
  fflush(stderr);
  dup2(real_stderr, 2);
  rewind(captured);
  while (fgets(line, sizeof line, captured) != NULL) fputs(line, stderr);
}

static void capture_stderr(void) {
  captured = tmpfile();
  real_stderr = dup(2);
  CHECK(captured != NULL && real_stderr >= 0 && dup2(fileno(captured), 2) == 2);
  CHECK(atexit(show_captured) == 0);
}

typedef struct Sink {
  pthread_mutex_t lock;
  size_t panics;
} Sink;

static void receive(void *user_data, uint32_t level, const char *target, size_t target_len,
                    const char *message, size_t message_len) {
  static const char expected[] = "panic: asked for by debug.panic_at_step (src/engine/";
  Sink *sink = (Sink *)user_data;
  size_t len = sizeof expected - 1;
  (void)target, (void)target_len;
  pthread_mutex_lock(&sink->lock);
  if (level == VRUST_LOG_ERROR && message_len > len && memcmp(message, expected, len) == 0) {
    sink->panics++;
  }
  pthread_mutex_unlock(&sink->lock);
}

static VrustEngine *engine_with(const char *model, const char *extra) {
  VrustEngine *engine = NULL;
  VrustEngineOptions options = engine_options(model);
  options.max_num_seqs = 8; /* Valgrind takes minutes for larger steps. */
  options.extra_json = extra;
  options.extra_json_len = strlen(extra);
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  return engine;
}

/* What every function says of an engine that has failed. */
static void calls_after_failure(VrustEngine *engine, uint64_t old_id, VrustStatus reason) {
  VrustRequest request = text_request("too late", 4);
  VrustQueue *queue = NULL;
  VrustStats stats;
  const char *json = "{\"prompt\":\"too late\"}";
  uint64_t id = 77;
  uint32_t state = 0;
  size_t n = 9, b = 9;
  VrustEvent event;
  CHECK_OK(vrust_engine_state(engine, &state, &err));
  CHECK(state == VRUST_STATE_FAILED);
  CHECK_STATUS(VRUST_ERROR_ENGINE_FAILED, vrust_submit(engine, &request, &id, &err));
  CHECK_STATUS(VRUST_ERROR_ENGINE_FAILED,
               vrust_submit_json(engine, NULL, json, strlen(json), 0, &id, &err));
  CHECK(id == 77);
  CHECK_STATUS(reason, vrust_engine_wait_ready(engine, -1, &err));
  if (old_id != 0) CHECK_OK(vrust_abort(engine, old_id, &err));
  CHECK_OK(vrust_abort_all(engine, &err));
  CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
  CHECK(stats.live_requests == 0 && stats.num_requests_running == 0);
  CHECK(stats.num_requests_waiting == 0 && stats.kv_blocks_used == 0);
  CHECK_OK(vrust_queue_create(engine, NULL, &queue, &err));
  CHECK_STATUS(VRUST_CLOSED,
               vrust_queue_poll(queue, &event, sizeof event, 1, NULL, 0, -1, &n, &b, &err));
  CHECK(n == 0 && b == 0);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  CHECK_OK(vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, -1, &err));
  CHECK_OK(vrust_engine_state(engine, &state, &err));
  CHECK(state == VRUST_STATE_FAILED);
}

static void worker_panic(const char *model) {
  VrustEngine *other = ready_engine(model);
  VrustEngine *broken = engine_with(model, "{\"debug\":{\"panic_at_step\":150}}");
  VrustQueue *queue = default_queue(broken), *own = NULL, *other_queue = default_queue(other);
  Consumer consumer = new_consumer(), own_consumer = new_consumer(), others = new_consumer();
  VrustRequest first = text_request("", 2), three = text_request("three choices", 200);
  uint32_t tokens[] = {1, 2, 3};
  uint64_t id = 0;
  size_t i;
  CHECK_OK(vrust_queue_create(broken, NULL, &own, &err));
  /* All while it loads: a hundred steps are soon done. There is room for eight of these nine at a
   * time: the one that ends needs no tokenizer, behind whose threads the others could pass it. */
  first.input_kind = VRUST_INPUT_TOKENS;
  first.input = tokens, first.input_len = 3;
  CHECK_OK(vrust_submit(broken, &first, &id, &err));
  for (i = 1; i < 5; i++) submit(broken, "lives", 200, i);
  three.present |= VRUST_REQUEST_HAS_N;
  three.n = 3, three.temperature = 1.0f;
  three.user_data = 5;
  CHECK_OK(vrust_submit(broken, &three, &id, &err));
  submit_to(broken, own, "lives elsewhere", 200, 0);
  submit(other, "another engine", 150, 0);

  drain_to_the_end(&consumer, queue);
  drain_to_the_end(&own_consumer, own);
  CHECK(consumer.num_failed == 1 && own_consumer.num_failed == 1);
  CHECK(consumer.failed == VRUST_ERROR_PANIC && own_consumer.failed == VRUST_ERROR_PANIC);
  CHECK(consumer.num_last == 6 && own_consumer.num_last == 1);
  CHECK(consumer.outcomes[0].status == VRUST_OK && consumer.outcomes[0].num_tokens == 2);
  for (i = 1; i < 6; i++) {
    CHECK(consumer.outcomes[i].status == VRUST_ERROR_ENGINE_FAILED);
    CHECK(consumer.outcomes[i].num_finished == 0 && consumer.outcomes[i].num_last == 1);
    CHECK(strstr(consumer.outcomes[i].message, "debug.panic_at_step") != NULL);
  }
  CHECK(own_consumer.outcomes[0].status == VRUST_ERROR_ENGINE_FAILED);
  calls_after_failure(broken, id, VRUST_ERROR_PANIC);

  drain_until(&others, other_queue, 1);
  CHECK(others.outcomes[0].num_tokens == 150 && others.num_failed == 0);
  submit(other, "goes on", 20, 1);
  drain_until(&others, other_queue, 2);
  CHECK(others.outcomes[1].num_tokens == 20);
  CHECK(vrust_engine_destroy(broken) == VRUST_OK && vrust_engine_destroy(other) == VRUST_OK);
  CHECK(vrust_queue_destroy(own) == VRUST_OK && vrust_queue_destroy(queue) == VRUST_OK);
  CHECK(vrust_queue_destroy(other_queue) == VRUST_OK);
  free_consumer(&consumer);
  free_consumer(&own_consumer);
  free_consumer(&others);
}

typedef struct Submitter {
  VrustEngine *engine;
  size_t accepted;
} Submitter;

static void *submit_until_failed(void *argument) {
  Submitter *me = (Submitter *)argument;
  VrustRequest request = text_request("race", 30);
  for (;;) {
    uint64_t id = 0;
    VrustStatus status = vrust_submit(me->engine, &request, &id, NULL);
    if (status == VRUST_ERROR_ENGINE_FAILED || status == VRUST_ERROR_SHUTTING_DOWN) return NULL;
    /* An emulated device is slow enough for a full queue. */
    CHECK(status == VRUST_OK || status == VRUST_ERROR_QUEUE_FULL);
    me->accepted += status == VRUST_OK;
    sleep_ms(1);
  }
}

/* The engine fails while threads submit: what was accepted ends exactly once. */
static void panic_under_load(const char *model) {
  VrustEngine *engine = engine_with(model, "{\"debug\":{\"panic_at_step\":100}}");
  VrustQueue *queue = default_queue(engine);
  Submitter submitters[3];
  pthread_t threads[3];
  VrustEvent events[32];
  static uint8_t arena[ARENA];
  VrustStatus status = VRUST_OK;
  size_t i, n = 0, b = 0, accepted = 0, last = 0, failed = 0;
  for (i = 0; i < 3; i++) {
    submitters[i].engine = engine;
    submitters[i].accepted = 0;
    start_thread(&threads[i], submit_until_failed, &submitters[i]);
  }
  while (status != VRUST_CLOSED) {
    status = vrust_queue_poll(queue, events, sizeof events[0], 32, arena, sizeof arena, 60000, &n,
                              &b, NULL);
    CHECK(status >= 0 && status != VRUST_TIMEOUT);
    for (i = 0; i < n; i++) {
      last += (events[i].flags & VRUST_EVENT_LAST) != 0;
      failed += events[i].kind == VRUST_EVENT_ENGINE_FAILED;
    }
  }
  for (i = 0; i < 3; i++) {
    join_thread(threads[i]);
    accepted += submitters[i].accepted;
  }
  CHECK(accepted > 0 && last == accepted && failed == 1);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
}

/* No memory for one block: known only once the model is there. */
static void load_failure(const char *model) {
  VrustEngine *engine = NULL;
  VrustEngineOptions options = engine_options(model);
  VrustQueue *queue;
  VrustRequest request = text_request("never", 4);
  Consumer consumer = new_consumer();
  VrustBytes *info = NULL;
  uint64_t id = 0;
  size_t accepted = 0;
  options.kv_cache_memory_bytes = 100;
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  queue = default_queue(engine);
  for (; accepted < 3; accepted++) {
    request.user_data = accepted;
    if (vrust_submit(engine, &request, &id, NULL) == VRUST_ERROR_ENGINE_FAILED) break;
  }
  CHECK_ERROR(VRUST_ERROR_OUT_OF_MEMORY, "kv_cache_memory_bytes: 100",
              vrust_engine_wait_ready(engine, -1, &err));
  drain_to_the_end(&consumer, queue);
  CHECK(consumer.num_failed == 1 && consumer.failed == VRUST_ERROR_OUT_OF_MEMORY);
  CHECK(consumer.num_last == accepted);
  CHECK_STATUS(VRUST_ERROR_OUT_OF_MEMORY, vrust_engine_info_json(engine, &info, &err));
  CHECK(info == NULL);
  calls_after_failure(engine, 0, VRUST_ERROR_OUT_OF_MEMORY);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
}

static void nan_logits(const char *model) {
  VrustEngine *engine = engine_with(model, "{\"debug\":{\"nan_logits_for\":13}}");
  VrustQueue *queue = default_queue(engine);
  Consumer alone = new_consumer(), together = new_consumer();
  VrustRequest cursed = text_request("not a number", 20);
  uint64_t id = 0;
  uint32_t state = 0;
  size_t i;
  submit(engine, "healthy", 20, 0);
  drain_until(&alone, queue, 1);
  cursed.user_data = 13;
  cursed.present |= VRUST_REQUEST_HAS_N;
  cursed.n = 2, cursed.temperature = 1.0f;
  for (i = 0; i < 3; i++) submit(engine, "healthy", 20, i);
  CHECK_OK(vrust_submit(engine, &cursed, &id, &err));
  drain_until(&together, queue, 4);
  CHECK(together.outcomes[13].status < 0 && together.outcomes[13].num_last == 1);
  CHECK(strstr(together.outcomes[13].message, "NaN") != NULL);
  for (i = 0; i < 3; i++) {
    CHECK(together.outcomes[i].status == VRUST_OK && together.outcomes[i].num_tokens == 20);
    CHECK(memcmp(together.outcomes[i].tokens, alone.outcomes[0].tokens, 80) == 0);
  }
  CHECK(together.num_failed == 0);
  CHECK_OK(vrust_engine_state(engine, &state, &err));
  CHECK(state == VRUST_STATE_READY);
  CHECK_OK(vrust_abort(engine, id, &err));
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&alone);
  free_consumer(&together);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  Sink sink;
  memset(&sink, 0, sizeof sink);
  CHECK(pthread_mutex_init(&sink.lock, NULL) == 0);
  capture_stderr();
  worker_panic(model); /* Silent without a log, too. */
  CHECK_OK(vrust_log_set(VRUST_LOG_ERROR, receive, &sink, &err));
  worker_panic(model);
  panic_under_load(model);
  load_failure(model);
  nan_logits(model);
  CHECK_OK(vrust_log_set(VRUST_LOG_OFF, NULL, NULL, &err));
  CHECK(sink.panics == 2);
  fflush(stderr);
  CHECK(fseek(captured, 0, SEEK_END) == 0 && ftell(captured) == 0); /* Nothing was printed. */
  return 0;
}
