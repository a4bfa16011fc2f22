/* generate: one request at a time, by struct and by JSON: text, tokens, chat, stops, logprobs. */

#include "harness.h"

static Outcome run(VrustEngine *engine, VrustQueue *queue, const VrustRequest *request) {
  Consumer consumer = new_consumer();
  Outcome outcome;
  uint64_t id = 0;
  CHECK_OK(vrust_submit(engine, request, &id, &err));
  drain_until(&consumer, queue, 1);
  outcome = consumer.outcomes[request->user_data];
  free_consumer(&consumer);
  return outcome;
}

static Outcome run_json(VrustEngine *engine, VrustQueue *queue, const char *json) {
  Consumer consumer = new_consumer();
  Outcome outcome;
  uint64_t id = 0;
  CHECK_OK(vrust_submit_json(engine, NULL, json, strlen(json), 7, &id, &err));
  drain_until(&consumer, queue, 1);
  outcome = consumer.outcomes[7];
  free_consumer(&consumer);
  return outcome;
}

static void text_and_tokens(VrustEngine *engine, VrustQueue *queue) {
  VrustRequest request = text_request("The quick brown fox", 24);
  Outcome first = run(engine, queue, &request), again;
  uint32_t ids[64];
  size_t n_ids = 0;
  VrustTokenizer *tokenizer = NULL;

  CHECK(first.num_tokens == 24 && first.num_finished == 1 && first.text_len > 0);
  CHECK(first.finished.finish_reason == VRUST_FINISH_LENGTH);
  CHECK(first.finished.completion_tokens == 24 && first.finished.prompt_tokens > 0);
  CHECK(first.finished.arrival_ns <= first.finished.scheduled_ns);
  CHECK(first.finished.scheduled_ns <= first.finished.first_token_ns);
  CHECK(first.finished.first_token_ns <= first.finished.last_token_ns);

  again = run(engine, queue, &request); /* Greedy, and from the prefix cache. */
  CHECK(memcmp(first.tokens, again.tokens, 24 * sizeof(uint32_t)) == 0);
  CHECK(strcmp(first.text, again.text) == 0);

  /* The same prompt as ids. */
  CHECK_OK(vrust_engine_tokenizer(engine, &tokenizer, &err));
  CHECK_OK(vrust_tokenizer_encode(tokenizer, "The quick brown fox", 19,
                                  VRUST_ENCODE_SPECIAL_TOKENS, ids, 64, &n_ids, &err));
  CHECK(vrust_tokenizer_destroy(tokenizer) == VRUST_OK);
  CHECK(n_ids == first.finished.prompt_tokens);
  request.input = ids;
  request.input_len = n_ids;
  request.input_kind = VRUST_INPUT_TOKENS;
  again = run(engine, queue, &request);
  CHECK(memcmp(first.tokens, again.tokens, 24 * sizeof(uint32_t)) == 0);

  request.flags |= VRUST_REQUEST_NO_TEXT;
  again = run(engine, queue, &request);
  CHECK(again.text_len == 0 && again.num_tokens == 24);
  CHECK(memcmp(first.tokens, again.tokens, 24 * sizeof(uint32_t)) == 0);
}

static void stops(VrustEngine *engine, VrustQueue *queue) {
  VrustRequest request = text_request("The quick brown fox", 24);
  Outcome plain = run(engine, queue, &request), stopped;
  uint32_t stop_id = plain.tokens[5];
  size_t first_use = 0;
  char json[64];
  size_t at = plain.text_len / 2;

  while (plain.tokens[first_use] != stop_id) first_use++;
  request.stop_token_ids = &stop_id;
  request.num_stop_token_ids = 1;
  stopped = run(engine, queue, &request);
  CHECK(stopped.finished.finish_reason == VRUST_FINISH_STOP_TOKEN);
  CHECK(stopped.finished.stop_token_id == stop_id);
  CHECK(stopped.finished.completion_tokens == first_use + 1);

  /* A letter of the output as a stop string: the text ends before its first use. */
  request = text_request("The quick brown fox", 24);
  while (at < plain.text_len && ((unsigned char)plain.text[at] < 0x61 || plain.text[at] > 0x7a)) {
    at++;
  }
  if (at < plain.text_len) {
    const char *found = strchr(plain.text, plain.text[at]);
    snprintf(json, sizeof json, "\"%c\"", plain.text[at]);
    request.stop_json = json;
    request.stop_json_len = strlen(json);
    stopped = run(engine, queue, &request);
    CHECK(stopped.finished.finish_reason == VRUST_FINISH_STOP_STRING);
    CHECK(stopped.finished.detail_len == 1);
    CHECK(stopped.text_len == (size_t)(found - plain.text));
    CHECK(memcmp(stopped.text, plain.text, stopped.text_len) == 0);
  }
}

static void logprobs_and_choices(VrustEngine *engine, VrustQueue *queue) {
  VrustRequest request = text_request("Once upon a time", 8);
  Outcome outcome;
  request.present |= VRUST_REQUEST_HAS_LOGPROBS;
  request.logprobs = 2;
  outcome = run(engine, queue, &request);
  CHECK(outcome.num_logprobs == 8 * 3); /* The chosen one and two more. */
  CHECK(outcome.finished.value < 0.0f);

  request = text_request("Once upon a time", 8);
  request.present |= VRUST_REQUEST_HAS_N | VRUST_REQUEST_HAS_SEED;
  request.temperature = 1.0f;
  request.n = 3;
  request.seed = 5;
  outcome = run(engine, queue, &request);
  CHECK(outcome.num_finished == 3 && outcome.num_last == 1 && outcome.num_tokens == 24);
}

static void json(VrustEngine *engine, VrustQueue *queue) {
  VrustRequest request = text_request("The quick brown fox", 8);
  Outcome by_struct = run(engine, queue, &request);
  Outcome by_json = run_json(engine, queue,
                             "{\"model\":\"m\",\"prompt\":\"The quick brown fox\",\"max_tokens\":8,"
                             "\"temperature\":0,\"ignore_eos\":true,\"stream\":true}");
  CHECK(by_json.num_tokens == 8);
  CHECK(memcmp(by_struct.tokens, by_json.tokens, 8 * sizeof(uint32_t)) == 0);
  CHECK(strcmp(by_struct.text, by_json.text) == 0);

  request.extra_json = "{\"allowed_token_ids\":[5]}";
  request.extra_json_len = strlen("{\"allowed_token_ids\":[5]}");
  by_struct = run(engine, queue, &request);
  CHECK(by_struct.tokens[0] == 5 && by_struct.tokens[7] == 5);
}

static void chat(VrustEngine *engine, VrustQueue *queue) {
  const char *messages = "[{\"role\":\"user\",\"content\":\"Hello\"}]";
  const char *body =
      "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"max_completion_tokens\":6,"
      "\"temperature\":0,\"ignore_eos\":true,\"logprobs\":true,\"top_logprobs\":1}";
  VrustRequest request = text_request(messages, 6);
  Outcome by_struct, by_json;
  request.input_kind = VRUST_INPUT_CHAT_JSON;
  by_struct = run(engine, queue, &request);
  by_json = run_json(engine, queue, body);
  if (by_struct.status == VRUST_ERROR_TEMPLATE) return; /* A model without a template. */
  CHECK(by_struct.num_tokens == 6 && by_json.num_tokens == 6 && by_json.num_logprobs == 12);
  CHECK(memcmp(by_struct.tokens, by_json.tokens, 6 * sizeof(uint32_t)) == 0);

  /* A failure after submit is an event. */
  request.input = "[{\"role\":\"user\"},5]";
  request.input_len = strlen((const char *)request.input);
  by_struct = run(engine, queue, &request);
  CHECK(by_struct.status < 0 && by_struct.message[0] != 0 && by_struct.num_finished == 0);
}

int main(int argc, char **argv) {
  VrustEngine *engine = ready_engine(model_folder(argc, argv));
  VrustQueue *queue = default_queue(engine);
  text_and_tokens(engine, queue);
  stops(engine, queue);
  logprobs_and_choices(engine, queue);
  json(engine, queue);
  chat(engine, queue);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  return 0;
}
