/* quickstart: loads a model folder and streams the answer to one prompt.
 *   quickstart MODEL_FOLDER ["PROMPT"] */

#include <stdio.h>
#include <string.h>
#include <vrust/vrust.h>

static int check(VrustStatus status, VrustError *err) {
  if (status < 0) fprintf(stderr, "%s\n", vrust_error_message(err, NULL));
  return status >= 0;
}

int main(int argc, char **argv) {
  const char *model = argc > 1 ? argv[1] : "examples/demo-model";
  const char *prompt = argc > 2 ? argv[2] : "Once upon a time";
  VrustError *err = NULL;
  VrustEngine *engine = NULL;
  VrustQueue *queue = NULL;
  VrustEngineOptions options;
  VrustRequest request;
  uint64_t id = 0;
  int done = 0;

  vrust_engine_options_init(&options, sizeof options);
  options.model = model;
  options.model_len = strlen(model);
  if (!check(vrust_engine_create(&options, &engine, &err), err)) return 1;
  if (!check(vrust_engine_default_queue(engine, &queue, &err), err)) return 1;

  vrust_request_options_init(&request, sizeof request);
  request.input = prompt;
  request.input_len = strlen(prompt);
  request.max_tokens = 64;
  request.present = VRUST_REQUEST_HAS_MAX_TOKENS;
  if (!check(vrust_submit(engine, &request, &id, &err), err)) return 1;

  printf("%s", prompt);
  while (!done) {
    static uint8_t arena[65536];
    VrustEvent events[16];
    size_t n = 0, n_bytes = 0, i;
    VrustStatus status = vrust_queue_poll(queue, events, sizeof events[0], 16, arena,
                                          sizeof arena, -1, &n, &n_bytes, &err);
    if (!check(status, err)) return 1;
    for (i = 0; i < n; i++) { /* Text of DELTA events; the message of ERROR events. */
      fwrite(arena + events[i].text_offset, 1, events[i].text_len, stdout);
      if (events[i].flags & VRUST_EVENT_LAST) done = 1;
    }
    if (status == VRUST_CLOSED) done = 1;
    fflush(stdout);
  }
  printf("\n");
  vrust_queue_destroy(queue);
  vrust_engine_destroy(engine);
  return 0;
}
