/* log: the sink, its level, and that clearing it waits for the calls in flight. */

#include "harness.h"

typedef struct Sink {
  pthread_mutex_t lock;
  size_t records;
  size_t too_detailed;
  uint32_t level;
  VrustStatus nested;
  VrustEngine *engine;
} Sink;

static void receive(void *user_data, uint32_t level, const char *target, size_t target_len,
                    const char *message, size_t message_len) {
  Sink *sink = (Sink *)user_data;
  VrustStatus nested = vrust_log_set(VRUST_LOG_OFF, NULL, NULL, NULL);
  CHECK(target != NULL && target_len > 0 && (message != NULL || message_len == 0));
  pthread_mutex_lock(&sink->lock);
  sink->records++;
  sink->too_detailed += level > sink->level;
  sink->nested = nested;
  /* It would wait for the very thread that is in here. */
  if (sink->engine != NULL) {
    CHECK(vrust_engine_destroy(sink->engine) == VRUST_ERROR_INVALID_ARGUMENT);
  }
  pthread_mutex_unlock(&sink->lock);
}

static void set_engine(Sink *sink, VrustEngine *engine) {
  pthread_mutex_lock(&sink->lock);
  sink->engine = engine;
  pthread_mutex_unlock(&sink->lock);
}

static void run(const char *model, Sink *sink) {
  VrustEngine *engine = ready_engine(model);
  VrustQueue *queue = default_queue(engine);
  Consumer consumer = new_consumer();
  if (sink != NULL) set_engine(sink, engine);
  submit(engine, "log", 4, 0);
  drain_until(&consumer, queue, 1);
  CHECK_OK(vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, -1, &err));
  if (sink != NULL) set_engine(sink, NULL);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  Sink *sink = (Sink *)calloc(1, sizeof *sink);
  CHECK(sink != NULL && pthread_mutex_init(&sink->lock, NULL) == 0);
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_log_set(6, receive, sink, &err));
  sink->level = VRUST_LOG_TRACE;
  CHECK_OK(vrust_log_set(VRUST_LOG_TRACE, receive, sink, &err));
  run(model, sink);
  CHECK(sink->records >= 2 && sink->nested == VRUST_ERROR_INVALID_ARGUMENT);
  sink->level = VRUST_LOG_ERROR;
  CHECK_OK(vrust_log_set(VRUST_LOG_ERROR, receive, sink, &err));
  run(model, sink);
  CHECK(sink->too_detailed == 0);
  CHECK_OK(vrust_log_set(VRUST_LOG_OFF, receive, sink, &err));
  CHECK_OK(vrust_log_set(VRUST_LOG_TRACE, NULL, NULL, &err));
  free(sink); /* No call is in flight, none will come. */
  run(model, NULL);
  return 0;
}
