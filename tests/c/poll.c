/* poll: the finer points of the poll contract: where things lie in the arena, one event that is
 * bigger than it, odd places, wakes and handles, queues that are full, draining while loading. */

#include "harness.h"

#include <limits.h>

#define POLL(queue, ms) \
  vrust_queue_poll(queue, &event, sizeof event, 1, arena, sizeof arena, ms, &n, &b, &err)

static void impossible_rooms(VrustQueue *queue) {
  VrustEvent event;
  uint8_t arena[16];
  size_t n = 7, b = 7;
  CHECK_STATUS(VRUST_ERROR_ABI_MISMATCH,
               vrust_queue_poll(queue, &event, SIZE_MAX, 1, arena, 16, 0, &n, &b, &err));
  CHECK_STATUS(VRUST_ERROR_ABI_MISMATCH,
               vrust_queue_poll(queue, &event, 4097, 1, arena, 16, 0, &n, &b, &err));
  CHECK_STATUS(VRUST_ERROR_ABI_MISMATCH,
               vrust_queue_poll(queue, &event, 0, 1, arena, 16, 0, &n, &b, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_queue_poll(queue, &event, 128, SIZE_MAX, arena, 16, 0, &n, &b, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_queue_poll(queue, &event, 128, 1, arena, SIZE_MAX, 0, &n, &b, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_queue_poll(queue, &event, 128, 1, arena, 16, INT_MIN, &n, &b, &err));
  CHECK(n == 7 && b == 7);
}

/* Places and arena at odd addresses, with a stride that is no multiple of anything; a guard behind
 * each stays as it is. Text, tokens, logprobs and details lie within what was written. */
static void odd_places(VrustEngine *engine, VrustQueue *queue) {
  enum { STRIDE = 133, PLACES = 3, ROOM = 900 };
  unsigned char places[1 + STRIDE * PLACES + 1], arena[1 + ROOM + 1];
  const char *json =
      "{\"prompt\":\"odd\",\"max_tokens\":40,\"ignore_eos\":true,\"n\":3,\"logprobs\":4,"
      "\"prompt_logprobs\":2,\"temperature\":1,\"seed\":1,\"stop\":\"\\u0001\\u0001\"}";
  size_t i, n = 0, b = 0, tokens = 0, records = 0, finished = 0, last = 0, prompts = 0;
  uint64_t id = 0;
  CHECK_OK(vrust_submit_json(engine, NULL, json, strlen(json), UINT64_MAX, &id, &err));
  while (last == 0) {
    VrustStatus status;
    memset(places, 0xaa, sizeof places);
    memset(arena, 0xaa, sizeof arena);
    /* Small pieces: what coalesces while nobody polls would not fit. */
    status = vrust_queue_poll(queue, (VrustEvent *)(void *)(places + 1), STRIDE, PLACES, arena + 1,
                              ROOM, 60000, &n, &b, NULL);
    if (status == VRUST_ERROR_BUFFER_TOO_SMALL) {
      size_t needed = b;
      CHECK(n == 0 && b > ROOM);
      /* One byte less is too little, still; exactly that is enough, unless it has grown again. */
      CHECK(vrust_queue_poll(queue, (VrustEvent *)(void *)(places + 1), STRIDE, PLACES, arena + 1,
                             ROOM, 0, &n, &b, NULL) == VRUST_ERROR_BUFFER_TOO_SMALL);
      while (status == VRUST_ERROR_BUFFER_TOO_SMALL) {
        uint8_t *exact;
        CHECK(b >= needed);
        needed = b;
        exact = (uint8_t *)malloc(needed);
        CHECK(exact != NULL);
        status = vrust_queue_poll(queue, (VrustEvent *)(void *)(places + 1), STRIDE, 1, exact,
                                  needed - 1, 0, &n, &b, NULL);
        CHECK(status == VRUST_ERROR_BUFFER_TOO_SMALL && n == 0 && b >= needed);
        status = vrust_queue_poll(queue, (VrustEvent *)(void *)(places + 1), STRIDE, 1, exact,
                                  needed, 0, &n, &b, NULL);
        free(exact);
      }
      CHECK(n == 1);
    } else {
      CHECK(b <= ROOM);
    }
    CHECK(status == VRUST_OK || status == VRUST_TRUNCATED);
    CHECK(places[0] == 0xaa && places[sizeof places - 1] == 0xaa);
    CHECK(arena[0] == 0xaa && arena[sizeof arena - 1] == 0xaa);
    CHECK(n >= 1 && n <= PLACES);
    for (i = 0; i < n; i++) {
      VrustEvent event;
      memcpy(&event, places + 1 + i * STRIDE, sizeof event);
      check_bounds(&event, b);
      CHECK(event.request_id == id && event.user_data == UINT64_MAX && event.choice < 3);
      CHECK(last == 0);
      tokens += event.kind == VRUST_EVENT_DELTA ? event.num_tokens : 0;
      records += event.kind == VRUST_EVENT_DELTA ? event.num_logprobs : 0;
      prompts += event.kind == VRUST_EVENT_PROMPT;
      finished += event.kind == VRUST_EVENT_FINISHED;
      last += (event.flags & VRUST_EVENT_LAST) != 0;
    }
  }
  CHECK(last == 1 && finished == 3 && tokens == 120 && records == 5 * 120 && prompts >= 1);
}

/* A wake is for a poll that waits: it is kept while polls find events or do not wait. */
static void wakes_are_kept(VrustEngine *engine, VrustQueue *queue) {
  VrustEvent event;
  static uint8_t arena[ARENA];
  size_t n = 0, b = 0;
  VrustQueue *same = default_queue(engine);
  VrustStats stats;
  int same_for;
  CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
  CHECK_OK(vrust_queue_wake(queue, &err));
  CHECK_STATUS(VRUST_TIMEOUT, POLL(queue, 0));
  CHECK_STATUS(VRUST_TIMEOUT, POLL(queue, -1)); /* At once. */
  submit(engine, "wake", 3, 0);
  /* A request is no longer live a moment before its last event is there: until nothing comes. */
  for (same_for = 0; same_for < 20; same_for++) {
    uint64_t before = stats.undrained_bytes;
    sleep_ms(10);
    CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
    if (stats.live_requests > 0 || stats.undrained_bytes != before) same_for = 0;
  }
  CHECK(stats.undrained_bytes > 0);
  CHECK_OK(vrust_queue_wake(queue, &err));
  do {
    CHECK(vrust_queue_poll(queue, &event, sizeof event, 1, arena, sizeof arena, -1, &n, &b,
                           NULL) >= 0);
    CHECK(n == 1);
  } while ((event.flags & VRUST_EVENT_LAST) == 0);
  CHECK_STATUS(VRUST_TIMEOUT, POLL(queue, -1));

  /* A handle of the default queue that goes wakes nobody else. */
  CHECK(vrust_queue_destroy(same) == VRUST_OK);
  submit(engine, "later", 1, 0);
  do {
    CHECK_STATUS(VRUST_CLOSED, POLL(same, -1));
    CHECK(vrust_queue_poll(queue, &event, sizeof event, 1, arena, sizeof arena, -1, &n, &b,
                           NULL) >= 0);
    CHECK(n == 1);
  } while ((event.flags & VRUST_EVENT_LAST) == 0);
}

/* Requests of a full queue wait; they end when aborted, and when the queue or the engine goes. */
static void full_queues(VrustEngine *engine, VrustQueue *queue) {
  VrustQueueOptions options;
  VrustQueue *full = NULL;
  VrustStats stats;
  Consumer consumer = new_consumer();
  uint64_t aborted, id;
  size_t i;
  vrust_queue_options_init(&options, sizeof options);
  options.max_undrained_bytes = 1;
  CHECK_OK(vrust_queue_create(engine, &options, &full, &err));
  aborted = submit_to(engine, full, "full", 200, 0);
  submit_to(engine, full, "full", 60, 1);
  submit(engine, "others go on", 150, 2);
  drain_until(&consumer, queue, 1);
  CHECK(consumer.outcomes[2].num_tokens == 150);
  CHECK_OK(vrust_abort(engine, aborted, &err));
  do { /* Nobody drains: the abort does not wait for that. */
    sleep_ms(1);
    CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
  } while (stats.live_requests > 1);
  drain_until(&consumer, full, 3);
  CHECK(consumer.outcomes[0].finished.finish_reason == VRUST_FINISH_ABORT);
  CHECK(consumer.outcomes[1].num_tokens == 60);
  for (i = 3; i < 6; i++) id = submit_to(engine, full, "goes with its queue", 200, i);
  sleep_ms(20);
  CHECK(vrust_queue_destroy(full) == VRUST_OK);
  do {
    sleep_ms(1);
    CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
  } while (stats.live_requests > 0);
  CHECK_OK(vrust_abort(engine, id, &err));
  free_consumer(&consumer);
}

/* A deadline of 0 is none, in a struct and in JSON. */
static void no_deadline(VrustEngine *engine, VrustQueue *queue) {
  Consumer consumer = new_consumer();
  const char *json = "{\"prompt\":\"a\",\"max_tokens\":5,\"ignore_eos\":true,\"deadline_ms\":0}";
  uint64_t id = 0;
  CHECK_OK(vrust_submit_json(engine, NULL, json, strlen(json), 0, &id, &err));
  drain_until(&consumer, queue, 1);
  CHECK(consumer.outcomes[0].finished.finish_reason == VRUST_FINISH_LENGTH);
  CHECK(consumer.outcomes[0].num_tokens == 5);
  free_consumer(&consumer);
}

/* An engine that drains before it has loaded is ready when it has loaded, not before. */
static void drain_while_loading(const char *model) {
  VrustEngine *engine = NULL;
  VrustEngineOptions options = engine_options(model);
  VrustRequest request = text_request("accepted", 200);
  VrustBytes *info = NULL;
  VrustQueue *queue;
  Consumer consumer = new_consumer();
  VrustStatus ready;
  uint64_t id = 0;
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  CHECK_OK(vrust_submit(engine, &request, &id, &err));
  CHECK_STATUS(VRUST_TIMEOUT, vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, 0, &err));
  CHECK_STATUS(VRUST_ERROR_SHUTTING_DOWN, vrust_submit(engine, &request, &id, &err));
  ready = vrust_engine_wait_ready(engine, -1, NULL);
  CHECK(ready == VRUST_OK || ready == VRUST_ERROR_SHUTTING_DOWN);
  CHECK_OK(vrust_engine_info_json(engine, &info, &err)); /* It has loaded. */
  CHECK(vrust_bytes_destroy(info) == VRUST_OK);
  CHECK_OK(vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, -1, &err));
  queue = default_queue(engine);
  drain_to_the_end(&consumer, queue);
  CHECK(consumer.outcomes[0].num_tokens == 200 && consumer.num_failed == 0);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK && vrust_engine_destroy(engine) == VRUST_OK);
  free_consumer(&consumer);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  VrustEngine *engine = ready_engine(model);
  VrustQueue *queue = default_queue(engine);
  Consumer consumer = new_consumer();
  while (drain_once(&consumer, queue, 0) != VRUST_TIMEOUT) {
  }
  impossible_rooms(queue);
  odd_places(engine, queue);
  wakes_are_kept(engine, queue);
  full_queues(engine, queue);
  no_deadline(engine, queue);
  drain_while_loading(model);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
  return 0;
}
