/* stream: many requests at once give what each gives alone; aborts, deadlines, queues that go. */

#include "harness.h"

enum { MANY = 48 };

static const char *const PROMPTS[] = {"The sun rises", "A river", "Numbers: one, two", "x",
                                      "Once upon a time there was"};

static void many_at_once(VrustEngine *engine, VrustQueue *queue) {
  Consumer together = new_consumer(), alone = new_consumer();
  size_t i;
  for (i = 0; i < MANY; i++) submit(engine, PROMPTS[i % 5], 4 + (uint32_t)i % 29, i);
  drain_until(&together, queue, MANY);
  for (i = 0; i < MANY; i++) {
    const Outcome *a = &together.outcomes[i], *b = &alone.outcomes[i];
    submit(engine, PROMPTS[i % 5], 4 + (uint32_t)i % 29, i);
    drain_until(&alone, queue, i + 1);
    CHECK(a->num_last == 1 && a->num_finished == 1 && a->num_tokens == 4 + i % 29);
    CHECK(a->num_tokens == b->num_tokens);
    CHECK(memcmp(a->tokens, b->tokens, a->num_tokens * sizeof(uint32_t)) == 0);
    CHECK(strcmp(a->text, b->text) == 0);
  }
  free_consumer(&together);
  free_consumer(&alone);
}

/* The queue holds less than one request makes, so that all wait for this thread however late it
 * comes: none has all its tokens before it is aborted. */
static void aborts(VrustEngine *engine) {
  Consumer consumer = new_consumer();
  VrustQueue *queue = NULL;
  VrustQueueOptions options;
  uint64_t ids[8];
  size_t i;
  vrust_queue_options_init(&options, sizeof options);
  options.max_undrained_bytes = 512;
  CHECK_OK(vrust_queue_create(engine, &options, &queue, &err));
  for (i = 0; i < 8; i++) ids[i] = submit_to(engine, queue, "abort me", 200, i);
  while (consumer.outcomes[0].num_tokens < 2) drain_once(&consumer, queue, 10000);
  for (i = 0; i < 4; i++) CHECK_OK(vrust_abort(engine, ids[i], &err));
  drain_until(&consumer, queue, 4);
  for (i = 0; i < 4; i++) {
    CHECK(consumer.outcomes[i].finished.finish_reason == VRUST_FINISH_ABORT);
    CHECK(consumer.outcomes[i].finished.completion_tokens < 200);
  }
  CHECK_OK(vrust_abort_all(engine, &err));
  drain_until(&consumer, queue, 8);
  for (i = 0; i < 8; i++) {
    CHECK(consumer.outcomes[i].num_finished == 1);
    CHECK_OK(vrust_abort(engine, ids[i], &err)); /* It has ended: fine. */
  }
  CHECK_STATUS(VRUST_ERROR_NOT_FOUND, vrust_abort(engine, ids[7] + 1, &err));
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
}

static void deadlines(VrustEngine *engine, VrustQueue *queue) {
  Consumer consumer = new_consumer();
  VrustRequest request = text_request("late", 250);
  uint64_t id = 0;
  size_t i;
  request.deadline_ms = 1;
  for (i = 0; i < 4; i++) {
    request.user_data = i;
    CHECK_OK(vrust_submit(engine, &request, &id, &err));
  }
  drain_until(&consumer, queue, 4);
  for (i = 0; i < 4; i++) {
    CHECK(consumer.outcomes[i].finished.finish_reason == VRUST_FINISH_DEADLINE);
  }
  free_consumer(&consumer);
}

static void queues_of_their_own(VrustEngine *engine, VrustQueue *queue) {
  Consumer consumer = new_consumer();
  VrustQueue *own = NULL;
  VrustQueueOptions options;
  VrustStats stats;
  size_t i;
  vrust_queue_options_init(&options, sizeof options);
  options.max_undrained_bytes = 0;
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_queue_create(engine, &options, &own, &err));
  options.max_undrained_bytes = 1 << 20;
  CHECK_OK(vrust_queue_create(engine, &options, &own, &err));
  submit_to(engine, own, "own", 5, 0);
  submit(engine, "default", 5, 1);
  drain_until(&consumer, own, 1);
  CHECK(consumer.outcomes[0].num_last == 1 && consumer.outcomes[1].num_last == 0);
  drain_until(&consumer, queue, 2);

  /* A queue that goes takes its requests with it, and no others. */
  for (i = 2; i < 6; i++) submit_to(engine, own, "gone", 250, i);
  submit(engine, "stays", 30, 6);
  CHECK(vrust_queue_destroy(own) == VRUST_OK);
  CHECK(vrust_queue_destroy(own) == VRUST_ERROR_INVALID_ARGUMENT);
  drain_until(&consumer, queue, 3);
  CHECK(consumer.outcomes[6].num_tokens == 30);
  do {
    sleep_ms(1);
    CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
  } while (stats.live_requests > 0);
  free_consumer(&consumer);
}

int main(int argc, char **argv) {
  VrustEngine *engine = ready_engine(model_folder(argc, argv));
  VrustQueue *queue = default_queue(engine);
  many_at_once(engine, queue);
  aborts(engine);
  deadlines(engine, queue);
  queues_of_their_own(engine, queue);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  return 0;
}
