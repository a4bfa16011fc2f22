/* lifecycle: two engines in one process, submitting while loading, ending while loading, any
 * order of destroying, draining, and a live engine at exit. */

#include "harness.h"

static void submit_while_loading(const char *model) {
  VrustEngine *engine = NULL;
  VrustEngineOptions options = engine_options(model);
  VrustQueue *queue;
  Consumer consumer = new_consumer();
  size_t i;
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  for (i = 0; i < 5; i++) submit(engine, "early", 6, i);
  queue = default_queue(engine);
  drain_until(&consumer, queue, 5);
  for (i = 0; i < 5; i++) CHECK(consumer.outcomes[i].num_tokens == 6);
  CHECK(consumer.num_load >= 1);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  free_consumer(&consumer);
}

static void end_while_loading(const char *model) {
  VrustEngine *engine = NULL;
  VrustEngineOptions options = engine_options(model);
  VrustQueue *queue;
  Consumer consumer = new_consumer();
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  queue = default_queue(engine);
  submit(engine, "never", 6, 0);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  drain_to_the_end(&consumer, queue);
  CHECK(consumer.outcomes[0].num_last == 1);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
}

static void two_engines(const char *model) {
  VrustEngine *a = ready_engine(model), *b = ready_engine(model);
  VrustQueue *queue_a = default_queue(a), *queue_b = default_queue(b);
  Consumer consumer_a = new_consumer(), consumer_b = new_consumer();
  VrustRequest request = text_request("wrong queue", 4);
  uint64_t id = 0;
  size_t i;
  request.queue = queue_b;
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "queue", vrust_submit(a, &request, &id, &err));
  for (i = 0; i < 4; i++) {
    submit(a, "both", 10, i);
    submit(b, "both", 10, i);
  }
  drain_until(&consumer_a, queue_a, 4);
  CHECK(vrust_engine_destroy(a) == VRUST_OK); /* The other goes on. */
  drain_until(&consumer_b, queue_b, 4);
  for (i = 0; i < 4; i++) {
    CHECK(memcmp(consumer_a.outcomes[i].tokens, consumer_b.outcomes[i].tokens, 40) == 0);
  }
  CHECK(vrust_queue_destroy(queue_b) == VRUST_OK);
  CHECK(vrust_engine_destroy(b) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue_a) == VRUST_OK);
  free_consumer(&consumer_a);
  free_consumer(&consumer_b);
}

static void children_outlive_the_engine(const char *model) {
  VrustEngine *engine = ready_engine(model);
  VrustQueue *queue = default_queue(engine), *own = NULL;
  VrustTokenizer *tokenizer = NULL;
  Consumer consumer = new_consumer();
  uint32_t ids[16];
  size_t n = 0;
  CHECK_OK(vrust_queue_create(engine, NULL, &own, &err));
  CHECK_OK(vrust_engine_tokenizer(engine, &tokenizer, &err));
  submit(engine, "unfinished", 250, 0);
  submit_to(engine, own, "unfinished", 250, 1);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  drain_to_the_end(&consumer, queue);
  drain_to_the_end(&consumer, own);
  CHECK(consumer.outcomes[0].num_last == 1 && consumer.outcomes[1].num_last == 1);
  CHECK_OK(vrust_tokenizer_encode(tokenizer, "abc", 3, 0, ids, 16, &n, &err));
  CHECK(n > 0);
  CHECK(vrust_tokenizer_destroy(tokenizer) == VRUST_OK);
  CHECK(vrust_queue_destroy(own) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
}

static void drain_and_close(const char *model) {
  VrustEngine *engine = ready_engine(model);
  VrustQueue *queue = default_queue(engine);
  Consumer consumer = new_consumer();
  uint32_t state = 0;
  size_t i;
  for (i = 0; i < 6; i++) submit(engine, "drain", 20, i);
  CHECK_STATUS(VRUST_TIMEOUT, vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, 0, &err));
  CHECK_OK(vrust_engine_state(engine, &state, &err));
  CHECK(state == VRUST_STATE_DRAINING || state == VRUST_STATE_CLOSED);
  CHECK_OK(vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, -1, &err));
  CHECK_OK(vrust_engine_state(engine, &state, &err));
  CHECK(state == VRUST_STATE_CLOSED);
  drain_to_the_end(&consumer, queue);
  for (i = 0; i < 6; i++) CHECK(consumer.outcomes[i].num_tokens == 20);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  free_consumer(&consumer);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  VrustEngine *engine;
  submit_while_loading(model);
  end_while_loading(model);
  two_engines(model);
  children_outlive_the_engine(model);
  drain_and_close(model);
  engine = ready_engine(model);
  submit(engine, "still running when the process exits", 250, 0);
  return 0;
}
