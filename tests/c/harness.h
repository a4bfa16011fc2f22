/* What the C tests share: checks, a model, requests, and a consumer that keeps what it drains.
 * The sources compile as C99 and as C++17. */

#ifndef VRUST_TESTS_HARNESS_H
#define VRUST_TESTS_HARNESS_H

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <vrust/vrust.h>

/* Ends the test unless `condition` holds. */
#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) fail(__FILE__, __LINE__, #condition);                         \
  } while (0)

/* Ends the test unless the call returns `expected`; shows the error's message. */
#define CHECK_STATUS(expected, call)                                                \
  do {                                                                              \
    VrustError *err = NULL;                                                         \
    VrustStatus status_ = (call);                                                   \
    check_status(__FILE__, __LINE__, #call, (expected), status_, err);              \
  } while (0)

#define CHECK_OK(call) CHECK_STATUS(VRUST_OK, call)

/* The same, and the error's message must contain `word`. */
#define CHECK_ERROR(expected, word, call)                                           \
  do {                                                                              \
    VrustError *err = NULL;                                                         \
    VrustStatus status_ = (call);                                                   \
    if (err == NULL || strstr(vrust_error_message(err, NULL), (word)) == NULL) {    \
      fprintf(stderr, "message: %s\n", vrust_error_message(err, NULL));             \
      fail(__FILE__, __LINE__, "the message contains " word);                       \
    }                                                                               \
    check_status(__FILE__, __LINE__, #call, (expected), status_, err);              \
  } while (0)

enum { MAX_OUTCOMES = 1024, MAX_TEXT = 4096, MAX_TOKENS = 512, ARENA = 1 << 18 };

/* What became of a request whose user_data is its index. */
typedef struct Outcome {
  char text[MAX_TEXT];
  size_t text_len;
  uint32_t tokens[MAX_TOKENS];
  size_t num_tokens;
  size_t num_logprobs;
  size_t num_deltas;
  size_t num_finished;
  size_t num_last;
  VrustEvent finished; /* The newest FINISHED. */
  VrustStatus status;  /* Of its ERROR event. */
  char message[256];
} Outcome;

/* A consumer, and all that it learnt. */
typedef struct Consumer {
  Outcome *outcomes;
  size_t num_last;
  size_t num_load;
  size_t num_failed;  /* ENGINE_FAILED events. */
  VrustStatus failed; /* Of the newest of them. */
  uint8_t *arena;
} Consumer;

static inline void fail(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: %s\n", file, line, what);
  exit(1);
}

static inline void check_status(const char *file, int line, const char *call,
                                VrustStatus expected, VrustStatus status, VrustError *err) {
  if (status != expected || (err != NULL) != (status < 0)) {
    fprintf(stderr, "%s:%d: %s: %s (%s), expected %s\n", file, line, call,
            vrust_status_name(status), vrust_error_message(err, NULL),
            vrust_status_name(expected));
    exit(1);
  }
  if (err != NULL) {
    CHECK(vrust_error_code(err) == status);
    CHECK(vrust_error_destroy(err) == VRUST_OK);
  }
}

/* The model folder: the first argument, or VRUST_TEST_MODEL, or a fixture. */
static inline const char *model_folder(int argc, char **argv) {
  const char *from_environment = getenv("VRUST_TEST_MODEL");
  if (argc > 1) return argv[1];
  return from_environment != NULL ? from_environment : "tests/golden/llama3";
}

/* What lies in the arena lies within what the poll says it wrote. */
static inline void check_bounds(const VrustEvent *event, size_t n_bytes) {
  CHECK((uint64_t)event->text_offset + event->text_len <= n_bytes);
  CHECK((uint64_t)event->detail_offset + event->detail_len <= n_bytes);
  CHECK(event->tokens_offset + (uint64_t)event->num_tokens * 4 <= n_bytes);
  CHECK(event->logprobs_offset + (uint64_t)event->num_logprobs * sizeof(VrustLogprob) <= n_bytes);
  CHECK(event->tokens_offset % 4 == 0 && event->logprobs_offset % 4 == 0);
}

static inline VrustEngineOptions engine_options(const char *model) {
  VrustEngineOptions options;
  vrust_engine_options_init(&options, sizeof options);
  options.model = model;
  options.model_len = strlen(model);
  options.cpu_threads = 1;
  options.kv_cache_memory_bytes = 8u << 20;
  return options;
}

/* An engine that has loaded. */
static inline VrustEngine *ready_engine(const char *model) {
  VrustEngine *engine = NULL;
  VrustEngineOptions options = engine_options(model);
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  CHECK_OK(vrust_engine_wait_ready(engine, -1, &err));
  return engine;
}

static inline VrustQueue *default_queue(const VrustEngine *engine) {
  VrustQueue *queue = NULL;
  CHECK_OK(vrust_engine_default_queue(engine, &queue, &err));
  return queue;
}

/* A greedy request for exactly `max_tokens` tokens after `text`. */
static inline VrustRequest text_request(const char *text, uint32_t max_tokens) {
  VrustRequest request;
  vrust_request_options_init(&request, sizeof request);
  request.input = text;
  request.input_len = strlen(text);
  request.present = VRUST_REQUEST_HAS_TEMPERATURE | VRUST_REQUEST_HAS_MAX_TOKENS;
  request.temperature = 0.0f;
  request.max_tokens = max_tokens;
  request.flags = VRUST_REQUEST_IGNORE_EOS;
  return request;
}

static inline uint64_t submit_to(const VrustEngine *engine, VrustQueue *queue, const char *text,
                                 uint32_t max_tokens, uint64_t user_data) {
  uint64_t id = 0;
  VrustRequest request = text_request(text, max_tokens);
  request.queue = queue;
  request.user_data = user_data;
  CHECK_OK(vrust_submit(engine, &request, &id, &err));
  CHECK(id != 0);
  return id;
}

static inline uint64_t submit(const VrustEngine *engine, const char *text, uint32_t max_tokens,
                              uint64_t user_data) {
  return submit_to(engine, NULL, text, max_tokens, user_data);
}

static inline Consumer new_consumer(void) {
  Consumer consumer;
  memset(&consumer, 0, sizeof consumer);
  consumer.outcomes = (Outcome *)calloc(MAX_OUTCOMES, sizeof *consumer.outcomes);
  consumer.arena = (uint8_t *)malloc(ARENA);
  CHECK(consumer.outcomes != NULL && consumer.arena != NULL);
  return consumer;
}

static inline void free_consumer(Consumer *consumer) {
  free(consumer->outcomes);
  free(consumer->arena);
}

/* Keeps one event. Checks what holds for every event. */
static inline void keep(Consumer *consumer, const VrustEvent *event) {
  Outcome *outcome;
  const uint8_t *arena = consumer->arena;
  if (event->request_id == 0) {
    consumer->num_load += event->kind == VRUST_EVENT_LOAD;
    if (event->kind == VRUST_EVENT_ENGINE_FAILED) {
      CHECK(event->status < 0 && event->text_len > 0 && event->flags == 0);
      consumer->failed = event->status;
      consumer->num_failed++;
    }
    return;
  }
  CHECK(event->user_data < MAX_OUTCOMES && event->time_ns != 0);
  outcome = &consumer->outcomes[event->user_data];
  CHECK(outcome->num_last == 0); /* Nothing follows the last event. */
  if (event->kind == VRUST_EVENT_DELTA) {
    size_t room = MAX_TEXT - 1 - outcome->text_len;
    size_t len = event->text_len < room ? event->text_len : room;
    size_t slots = MAX_TOKENS - outcome->num_tokens;
    size_t tokens = event->num_tokens < slots ? event->num_tokens : slots;
    memcpy(outcome->text + outcome->text_len, arena + event->text_offset, len);
    memcpy(outcome->tokens + outcome->num_tokens, arena + event->tokens_offset, 4 * tokens);
    outcome->text_len += len;
    outcome->num_tokens += tokens;
    outcome->num_logprobs += event->num_logprobs;
    outcome->num_deltas++;
  } else if (event->kind == VRUST_EVENT_FINISHED) {
    CHECK(event->finish_reason >= VRUST_FINISH_EOS &&
          event->finish_reason <= VRUST_FINISH_DEADLINE);
    outcome->finished = *event;
    outcome->num_finished++;
  } else if (event->kind == VRUST_EVENT_ERROR) {
    size_t room = sizeof outcome->message - 1;
    size_t len = event->text_len < room ? event->text_len : room;
    CHECK(event->status < 0 && (event->flags & VRUST_EVENT_LAST) != 0);
    outcome->status = event->status;
    memcpy(outcome->message, arena + event->text_offset, len);
  }
  if (event->flags & VRUST_EVENT_LAST) {
    outcome->num_last++;
    consumer->num_last++;
  }
}

/* One poll; keeps what it brings. */
static inline VrustStatus drain_once(Consumer *consumer, VrustQueue *queue, int32_t timeout_ms) {
  VrustEvent events[64];
  size_t n_events = 0, n_bytes = 0, i;
  VrustError *err = NULL;
  VrustStatus status = vrust_queue_poll(queue, events, sizeof events[0], 64, consumer->arena,
                                        ARENA, timeout_ms, &n_events, &n_bytes, &err);
  if (status < 0) {
    fprintf(stderr, "poll: %s\n", vrust_error_message(err, NULL));
    exit(1);
  }
  CHECK(n_events <= 64 && n_bytes <= ARENA);
  CHECK((n_events > 0) == (status == VRUST_OK || status == VRUST_TRUNCATED));
  for (i = 0; i < n_events; i++) {
    check_bounds(&events[i], n_bytes);
    keep(consumer, &events[i]);
  }
  return status;
}

/* Polls until `num_last` requests have ended. */
static inline void drain_until(Consumer *consumer, VrustQueue *queue, size_t num_last) {
  while (consumer->num_last < num_last) {
    VrustStatus status = drain_once(consumer, queue, 120000);
    if (status == VRUST_TIMEOUT || status == VRUST_CLOSED) {
      fprintf(stderr, "%d of %d requests ended, then %s\n", (int)consumer->num_last,
              (int)num_last, vrust_status_name(status));
      exit(1);
    }
  }
}

/* Polls until the queue is closed. */
static inline void drain_to_the_end(Consumer *consumer, VrustQueue *queue) {
  VrustStatus status = VRUST_OK;
  while (status != VRUST_CLOSED) {
    status = drain_once(consumer, queue, 120000);
    CHECK(status != VRUST_TIMEOUT);
  }
}

static inline void start_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
  CHECK(pthread_create(thread, NULL, run, argument) == 0);
}

static inline void join_thread(pthread_t thread) { CHECK(pthread_join(thread, NULL) == 0); }

static inline void sleep_ms(long ms) {
  struct timespec time;
  time.tv_sec = ms / 1000;
  time.tv_nsec = ms % 1000 * 1000000;
  nanosleep(&time, NULL);
}

#endif
