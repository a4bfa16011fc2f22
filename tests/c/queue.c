/* queue: the poll contract: tiny buffers, strides, a second poller, wake, the descriptor, a slow
 * consumer. */

#include "harness.h"

#include <poll.h>

static void bad_arguments(VrustQueue *queue) {
  VrustEvent event;
  uint8_t arena[16];
  size_t n = 7, b = 7;
#define POLL(q, ev, stride, cap, ar, ar_cap, ms, np, bp) \
  vrust_queue_poll(q, ev, stride, cap, ar, ar_cap, ms, np, bp, &err)
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               POLL(NULL, &event, sizeof event, 1, arena, 16, 0, &n, &b));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               POLL(queue, NULL, sizeof event, 1, arena, 16, 0, &n, &b));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               POLL(queue, &event, sizeof event, 0, arena, 16, 0, &n, &b));
  CHECK_STATUS(VRUST_ERROR_ABI_MISMATCH, POLL(queue, &event, 127, 1, arena, 16, 0, &n, &b));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               POLL(queue, &event, sizeof event, 1, NULL, 16, 0, &n, &b));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               POLL(queue, &event, sizeof event, 1, arena, 16, -2, &n, &b));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               POLL(queue, &event, sizeof event, 1, arena, 16, 0, NULL, &b));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               POLL(queue, &event, sizeof event, 1, arena, 16, 0, &n, NULL));
  CHECK(n == 7 && b == 7);
  CHECK_STATUS(VRUST_TIMEOUT, POLL(queue, &event, sizeof event, 1, arena, 16, 0, &n, &b));
  CHECK(n == 0 && b == 0);
#undef POLL
}

/* One event a poll, an arena that is too small at first, and places larger than an event. */
static void tiny_buffers(VrustEngine *engine, VrustQueue *queue) {
  unsigned char place[sizeof(VrustEvent) + 8];
  uint8_t arena[512];
  size_t arena_size = 0, tokens = 0, n = 0, b = 0, grown = 0;
  int last = 0;
  submit(engine, "tiny", 12, 0);
  while (!last) {
    VrustEvent event;
    VrustStatus status;
    memset(place, 0xaa, sizeof place);
    status = vrust_queue_poll(queue, (VrustEvent *)(void *)place, sizeof place, 1, arena,
                              arena_size, 10000, &n, &b, NULL);
    if (status == VRUST_ERROR_BUFFER_TOO_SMALL) {
      CHECK(n == 0 && b > arena_size && b <= sizeof arena);
      arena_size = b;
      grown++;
      continue;
    }
    CHECK((status == VRUST_OK || status == VRUST_TRUNCATED) && n == 1 && b <= arena_size);
    CHECK(place[sizeof place - 1] == 0 && place[sizeof(VrustEvent)] == 0);
    memcpy(&event, place, sizeof event);
    tokens += event.num_tokens;
    last = (event.flags & VRUST_EVENT_LAST) != 0;
  }
  CHECK(grown >= 1 && tokens == 12);
}

typedef struct Poller {
  VrustQueue *queue;
  VrustStatus status;
} Poller;

static void *poll_for_long(void *argument) {
  Poller *poller = (Poller *)argument;
  VrustEvent event;
  size_t n, b;
  uint8_t arena[256];
  poller->status = vrust_queue_poll(poller->queue, &event, sizeof event, 1, arena, sizeof arena,
                                    60000, &n, &b, NULL);
  return NULL;
}

/* Tries until another thread is inside poll. */
static void wait_for_poller(VrustQueue *queue) {
  VrustEvent event;
  size_t n, b;
  VrustStatus status;
  do {
    sleep_ms(1);
    status = vrust_queue_poll(queue, &event, sizeof event, 1, NULL, 0, 0, &n, &b, NULL);
  } while (status != VRUST_ERROR_INVALID_ARGUMENT);
}

static void second_poller_and_wake(VrustEngine *engine, VrustQueue *queue) {
  Poller poller;
  pthread_t thread;
  VrustQueue *own = NULL;
  poller.queue = queue;
  start_thread(&thread, poll_for_long, &poller);
  wait_for_poller(queue);
  CHECK_OK(vrust_queue_wake(queue, &err));
  join_thread(thread);
  CHECK(poller.status == VRUST_TIMEOUT);
  CHECK_OK(vrust_queue_wake(queue, &err)); /* Kept for the next poll. */
  poll_for_long(&poller);
  CHECK(poller.status == VRUST_TIMEOUT);

  /* Destroying a queue ends a poll; of the default queue, through that handle only. */
  CHECK_OK(vrust_queue_create(engine, NULL, &own, &err));
  poller.queue = own;
  start_thread(&thread, poll_for_long, &poller);
  wait_for_poller(own);
  CHECK(vrust_queue_destroy(own) == VRUST_OK);
  join_thread(thread);
  CHECK(poller.status == VRUST_CLOSED);
  poll_for_long(&poller); /* Destroyed before the poll. */
  CHECK(poller.status == VRUST_CLOSED);

  own = default_queue(engine);
  poller.queue = own;
  start_thread(&thread, poll_for_long, &poller);
  wait_for_poller(own);
  CHECK(vrust_queue_destroy(own) == VRUST_OK);
  join_thread(thread);
  CHECK(poller.status == VRUST_CLOSED);
}

static int is_readable(int fd, int timeout_ms) {
  struct pollfd p;
  p.fd = fd;
  p.events = POLLIN;
  p.revents = 0;
  return poll(&p, 1, timeout_ms) == 1;
}

static void descriptor(VrustEngine *engine, VrustQueue *queue) {
  Consumer consumer = new_consumer();
  int32_t fd = -1, same = -1;
  size_t wakes = 0;
  CHECK_OK(vrust_queue_fd(queue, &fd, &err));
  CHECK_OK(vrust_queue_fd(queue, &same, &err));
  CHECK(fd >= 0 && fd == same && !is_readable(fd, 0));
  submit(engine, "descriptor", 40, 0);
  while (consumer.num_last == 0) {
    CHECK(is_readable(fd, 10000));
    wakes++;
    while (drain_once(&consumer, queue, 0) == VRUST_TRUNCATED) {
    }
  }
  CHECK(wakes >= 1 && wakes <= 45 && !is_readable(fd, 0));
  free_consumer(&consumer);
}

/* Undrained deltas become one; past its limit the queue's requests wait and others do not. */
static void slow_consumer(VrustEngine *engine, VrustQueue *queue) {
  Consumer slow = new_consumer(), fast = new_consumer();
  VrustQueueOptions options;
  VrustQueue *own = NULL;
  VrustStats stats;
  size_t i, deltas = 0;
  vrust_queue_options_init(&options, sizeof options);
  options.max_undrained_bytes = 2000;
  CHECK_OK(vrust_queue_create(engine, &options, &own, &err));
  for (i = 0; i < 8; i++) submit_to(engine, own, "slow", 200, i);
  submit(engine, "fast", 150, 0);
  drain_until(&fast, queue, 1);
  CHECK(fast.outcomes[0].num_tokens == 150);
  CHECK_OK(vrust_stats_get(engine, &stats, sizeof stats, &err));
  CHECK(stats.undrained_bytes > 0 && stats.undrained_bytes < 100000);
  drain_until(&slow, own, 8);
  for (i = 0; i < 8; i++) {
    CHECK(slow.outcomes[i].num_tokens == 200);
    deltas += slow.outcomes[i].num_deltas;
  }
  CHECK(deltas <= 8 * 200);
  CHECK(vrust_queue_destroy(own) == VRUST_OK);
  free_consumer(&slow);
  free_consumer(&fast);
}

int main(int argc, char **argv) {
  VrustEngine *engine = ready_engine(model_folder(argc, argv));
  VrustQueue *queue = default_queue(engine);
  Consumer consumer = new_consumer();
  while (drain_once(&consumer, queue, 0) != VRUST_TIMEOUT) {
  }
  CHECK(consumer.num_load >= 1);
  bad_arguments(queue);
  tiny_buffers(engine, queue);
  second_poller_and_wake(engine, queue);
  descriptor(engine, queue);
  slow_consumer(engine, queue);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(drain_once(&consumer, queue, -1) == VRUST_CLOSED); /* It outlives the engine. */
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  CHECK(drain_once(&consumer, queue, -1) == VRUST_CLOSED);
  free_consumer(&consumer);
  return 0;
}
