/* fork: every call of the child says FORKED, and the parent's engine does not notice. */

#include "harness.h"

#include <sys/wait.h>
#include <unistd.h>

static void child(VrustEngine *engine, VrustQueue *queue, VrustError *old) {
  VrustRequest request = text_request("child", 4);
  VrustEngineOptions options = engine_options("unused");
  VrustEngine *other = NULL;
  VrustEvent event;
  VrustStats stats;
  size_t n = 0, b = 0;
  uint64_t id = 0;
  VrustError *own = NULL;
  CHECK_ERROR(VRUST_ERROR_FORKED, "fork", vrust_submit(engine, &request, &id, &err));
  CHECK_STATUS(VRUST_ERROR_FORKED, vrust_engine_create(&options, &other, &err));
  CHECK_STATUS(VRUST_ERROR_FORKED, vrust_engine_wait_ready(engine, -1, &err));
  CHECK_STATUS(VRUST_ERROR_FORKED, vrust_queue_poll(queue, &event, sizeof event, 1, NULL, 0, -1,
                                                    &n, &b, &err));
  CHECK_STATUS(VRUST_ERROR_FORKED, vrust_stats_get(engine, &stats, sizeof stats, &err));
  CHECK_STATUS(VRUST_ERROR_FORKED, vrust_log_set(VRUST_LOG_OFF, NULL, NULL, &err));
  CHECK(vrust_abort_all(engine, &own) == VRUST_ERROR_FORKED);
  CHECK(vrust_error_code(own) == VRUST_ERROR_FORKED && vrust_error_is_retryable(own) == 0);
  CHECK(strcmp(vrust_error_detail_json(own, &n), "{}") == 0 && n == 2);
  CHECK(vrust_error_destroy(own) == VRUST_OK);
  CHECK(strcmp(vrust_error_message(old, NULL), "") == 0);
  CHECK(vrust_error_destroy(old) == VRUST_ERROR_FORKED);
  CHECK(vrust_queue_destroy(queue) == VRUST_ERROR_FORKED);
  CHECK(vrust_engine_destroy(engine) == VRUST_ERROR_FORKED);
  CHECK(vrust_abi_version() == VRUST_ABI_VERSION);
}

int main(int argc, char **argv) {
  VrustEngine *engine = ready_engine(model_folder(argc, argv));
  VrustQueue *queue = default_queue(engine);
  Consumer consumer = new_consumer();
  VrustError *old = NULL;
  int round, status = 0;
  size_t i;
  CHECK(vrust_abort(engine, 0, &old) == VRUST_ERROR_NOT_FOUND);
  for (i = 0; i < 8; i++) submit(engine, "parent", 60, i);
  for (round = 0; round < 5; round++) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      child(engine, queue, old);
      exit(0); /* Also runs what the process does at exit. */
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  drain_until(&consumer, queue, 8);
  for (i = 0; i < 8; i++) CHECK(consumer.outcomes[i].num_tokens == 60);
  CHECK(vrust_error_destroy(old) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  free_consumer(&consumer);
  return 0;
}
