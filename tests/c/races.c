/* races: engines and queues are destroyed while other threads submit, abort and poll. */

#include "harness.h"

#include <semaphore.h>

enum { ROUNDS = 6, SUBMITTERS = 3 };

typedef struct Shared {
  VrustEngine *engine;
  VrustQueue *queue;
  size_t accepted[SUBMITTERS];
  size_t last;
  sem_t begun; /* a submitter had its first request accepted, or will have none */
} Shared;

typedef struct Submitter {
  Shared *shared;
  size_t index;
} Submitter;

static void *submit_until_refused(void *argument) {
  Submitter *me = (Submitter *)argument;
  Shared *shared = me->shared;
  VrustRequest request = text_request("race", 20);
  for (;;) {
    uint64_t id = 0;
    VrustStatus status = vrust_submit(shared->engine, &request, &id, NULL);
    if (status == VRUST_ERROR_QUEUE_FULL) {
      sleep_ms(1);
      continue;
    }
    if (status < 0) {
      CHECK(status == VRUST_ERROR_SHUTTING_DOWN || status == VRUST_ERROR_INVALID_ARGUMENT);
      if (shared->accepted[me->index] == 0) sem_post(&shared->begun);
      return NULL;
    }
    if (shared->accepted[me->index]++ == 0) sem_post(&shared->begun);
    if (id % 3 == 0) vrust_abort(shared->engine, id, NULL);
    if (id % 16 == 0) sleep_ms(1);
  }
}

static void *poll_until_closed(void *argument) {
  Shared *shared = (Shared *)argument;
  VrustEvent events[16];
  static uint8_t arena[ARENA];
  size_t n = 0, b = 0, i;
  for (;;) {
    VrustStatus status = vrust_queue_poll(shared->queue, events, sizeof events[0], 16, arena,
                                          sizeof arena, 1000, &n, &b, NULL);
    if (status == VRUST_CLOSED) return NULL;
    CHECK(status >= 0);
    for (i = 0; i < n; i++) {
      shared->last += events[i].request_id != 0 && (events[i].flags & VRUST_EVENT_LAST) != 0;
    }
  }
}

/* `queue_first`: destroys the queue's handle while it is polled, then the engine. */
static void round_of(const char *model, int wait_ready, int queue_first) {
  Shared shared;
  Submitter submitters[SUBMITTERS];
  pthread_t threads[SUBMITTERS], poller;
  VrustEngineOptions options = engine_options(model);
  size_t i, accepted = 0;
  memset(&shared, 0, sizeof shared);
  CHECK(sem_init(&shared.begun, 0, 0) == 0);
  options.max_num_queued_reqs = 64;
  CHECK_OK(vrust_engine_create(&options, &shared.engine, &err));
  if (wait_ready) CHECK_OK(vrust_engine_wait_ready(shared.engine, -1, &err));
  shared.queue = default_queue(shared.engine);
  start_thread(&poller, poll_until_closed, &shared);
  for (i = 0; i < SUBMITTERS; i++) {
    submitters[i].shared = &shared;
    submitters[i].index = i;
    start_thread(&threads[i], submit_until_refused, &submitters[i]);
  }
  /* A busy machine may start no submitter for longer than any time one would sleep here. */
  CHECK(sem_wait(&shared.begun) == 0);
  sleep_ms(20);
  if (queue_first) CHECK(vrust_queue_destroy(shared.queue) == VRUST_OK);
  sleep_ms(5);
  CHECK(vrust_engine_destroy(shared.engine) == VRUST_OK);
  for (i = 0; i < SUBMITTERS; i++) join_thread(threads[i]);
  join_thread(poller);
  for (i = 0; i < SUBMITTERS; i++) accepted += shared.accepted[i];
  CHECK(accepted > 0);
  /* Whatever was accepted had its one last event. */
  if (!queue_first) CHECK(shared.last == accepted);
  CHECK(vrust_queue_destroy(shared.queue) ==
        (queue_first ? VRUST_ERROR_INVALID_ARGUMENT : VRUST_OK));
  CHECK(sem_destroy(&shared.begun) == 0);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  int round;
  for (round = 0; round < ROUNDS; round++) round_of(model, round % 2, round % 3 == 2);
  return 0;
}
