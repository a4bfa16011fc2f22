/* The addon's functions, as index.js calls them. Each takes the engine's external first. */

#include "vrust_node.h"

#include <stdlib.h>

enum { MAX_ARGUMENTS = 5 };

/* The arguments, of which the first is a core. */
static Core *arguments_of(napi_env env, napi_callback_info info, napi_value *values) {
  size_t count = MAX_ARGUMENTS;
  void *core = NULL;
  napi_get_cb_info(env, info, &count, values, NULL, NULL);
  if (napi_get_value_external(env, values[0], &core) != napi_ok)
    napi_throw_type_error(env, NULL, "expected an engine");
  return core;
}

static void on_dropped(napi_env env, void *data, void *hint) {
  (void)env;
  (void)hint;
  core_close(data);
  core_unref(data);
}

/* open(options, report): the engine's external; report(kind, value) is told what happens. */
static napi_value open_engine(napi_env env, napi_callback_info info) {
  size_t count = 2;
  napi_value values[2], external;
  napi_get_cb_info(env, info, &count, values, NULL, NULL);
  Core *core = core_new();
  if (core == NULL) return error_throw(env, VRUST_ERROR_OUT_OF_MEMORY, NULL);
  if (!options_read(env, values[0], core)) {
    core_unref(core);
    return NULL;
  }
  if (napi_create_external(env, core, on_dropped, NULL, &external) != napi_ok) {
    core_unref(core);
    return NULL;
  }
  if (core_start(env, core, values[1]) != napi_ok)
    napi_throw_error(env, NULL, "the engine's thread could not be started");
  return external;
}

/* submit(core, json, key): the request's id. */
static napi_value submit(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS], result;
  size_t length;
  int64_t key = 0;
  uint64_t id = 0;
  VrustError *error = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL) return NULL;
  char *json = text_of(env, values[1], &length);
  if (json == NULL) return NULL;
  napi_get_value_int64(env, values[2], &key);
  VrustStatus status =
      vrust_submit_json(core->engine, core->queue, json, length, (uint64_t)key, &id, &error);
  free(json);
  if (status < 0) return error_throw(env, status, error);
  core_hold(env, core);
  napi_create_bigint_uint64(env, id, &result);
  return result;
}

/* abort(core, id). An engine that has ended has ended its requests, and that is fine. */
static napi_value abort_request(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS];
  uint64_t id = 0;
  bool lossless;
  Core *core = arguments_of(env, info, values);
  if (core == NULL) return NULL;
  napi_get_value_bigint_uint64(env, values[1], &id, &lossless);
  vrust_abort(core->engine, id, NULL);
  return NULL;
}

/* close(core): "closed" is reported when the engine has ended. */
static napi_value close_engine(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS];
  Core *core = arguments_of(env, info, values);
  if (core == NULL || core->joined) return NULL;
  core_hold(env, core); /* for good: the end releases the function */
  core_close(core);
  return NULL;
}

static bool tokenizer_of(napi_env env, Core *core) {
  VrustError *error = NULL;
  if (core->tokenizer != NULL) return true;
  VrustStatus status = vrust_engine_tokenizer(core->engine, &core->tokenizer, &error);
  if (status < 0) error_throw(env, status, error);
  return status >= 0;
}

/* encode(core, text, flags): an Uint32Array of ids. */
static napi_value encode(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS], buffer, result = NULL;
  size_t length, count = 0;
  uint32_t flags = 0;
  VrustError *error = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL || !tokenizer_of(env, core)) return NULL;
  char *text = text_of(env, values[1], &length);
  if (text == NULL) return NULL;
  napi_get_value_uint32(env, values[2], &flags);
  /* A byte is one token at most in nearly all tokenizers; a second call serves the others. */
  size_t capacity = length + 8;
  void *ids = NULL;
  VrustStatus status = VRUST_ERROR_BUFFER_TOO_SMALL;
  while (status == VRUST_ERROR_BUFFER_TOO_SMALL) {
    vrust_error_destroy(error);
    error = NULL;
    if (napi_create_arraybuffer(env, capacity * sizeof(uint32_t), &ids, &buffer) != napi_ok) break;
    status = vrust_tokenizer_encode(core->tokenizer, text, length, flags, ids, capacity, &count,
                                    &error);
    capacity = count;
  }
  free(text);
  if (status < 0) return error_throw(env, status, error);
  napi_create_typedarray(env, napi_uint32_array, count, buffer, 0, &result);
  return result;
}

/* decode(core, Uint32Array, flags): the text. */
static napi_value decode(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS];
  napi_typedarray_type type;
  size_t count = 0, length = 0, capacity = 1 << 12;
  void *ids = NULL;
  uint32_t flags = 0;
  VrustError *error = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL || !tokenizer_of(env, core)) return NULL;
  napi_get_typedarray_info(env, values[1], &type, &count, &ids, NULL, NULL);
  napi_get_value_uint32(env, values[2], &flags);
  char *text = malloc(capacity);
  VrustStatus status = vrust_tokenizer_decode(core->tokenizer, ids, count, flags, text,
                                              text == NULL ? 0 : capacity, &length, &error);
  if (status == VRUST_ERROR_BUFFER_TOO_SMALL) {
    vrust_error_destroy(error);
    error = NULL;
    free(text);
    text = malloc(length);
    status = vrust_tokenizer_decode(core->tokenizer, ids, count, flags, text,
                                    text == NULL ? 0 : length, &length, &error);
  }
  napi_value result =
      status < 0 ? error_throw(env, status, error) : text_new(env, text, length);
  free(text);
  return result;
}

/* renderChat(core, messages, tools, kwargs, flags): the prompt; the middle three are JSON. */
static napi_value render_chat(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS];
  char *texts[3] = {NULL, NULL, NULL};
  size_t lengths[3] = {0, 0, 0};
  uint32_t flags = 0;
  VrustBytes *bytes = NULL;
  VrustError *error = NULL;
  napi_value result = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL || !tokenizer_of(env, core)) return NULL;
  bool read = true;
  for (int i = 0; i < 3 && read; i++)
    read = (texts[i] = text_of(env, values[1 + i], &lengths[i])) != NULL;
  napi_get_value_uint32(env, values[4], &flags);
  if (read) {
    VrustStatus status =
        vrust_chat_render(core->tokenizer, texts[0], lengths[0], texts[1], lengths[1], texts[2],
                          lengths[2], flags, &bytes, &error);
    result = status < 0 ? error_throw(env, status, error) : take_bytes(env, bytes);
  }
  for (int i = 0; i < 3; i++) free(texts[i]);
  return result;
}

/* chatParser(core, options): a parser's external; the options are JSON. */
static napi_value chat_parser(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS];
  size_t length;
  VrustChatParser *parser = NULL;
  VrustError *error = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL || !tokenizer_of(env, core)) return NULL;
  char *json = text_of(env, values[1], &length);
  if (json == NULL) return NULL;
  VrustStatus status = vrust_chat_parser_create(core->tokenizer, json, length, &parser, &error);
  free(json);
  return status < 0 ? error_throw(env, status, error) : chat_parser_new(env, parser);
}

static napi_value info_json(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS];
  VrustBytes *bytes = NULL;
  VrustError *error = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL) return NULL;
  VrustStatus status = vrust_engine_info_json(core->engine, &bytes, &error);
  return status < 0 ? error_throw(env, status, error) : take_bytes(env, bytes);
}

static napi_value prometheus(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS];
  VrustBytes *bytes = NULL;
  VrustError *error = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL) return NULL;
  VrustStatus status = vrust_stats_prometheus(core->engine, &bytes, &error);
  return status < 0 ? error_throw(env, status, error) : take_bytes(env, bytes);
}

/* stats(core): VrustStats as an object. */
static napi_value stats(napi_env env, napi_callback_info info) {
  napi_value values[MAX_ARGUMENTS], object;
  VrustStats s;
  VrustError *error = NULL;
  Core *core = arguments_of(env, info, values);
  if (core == NULL) return NULL;
  VrustStatus status = vrust_stats_get(core->engine, &s, sizeof s, &error);
  if (status < 0) return error_throw(env, status, error);
  const struct {
    const char *name;
    double value;
  } figures[] = {
      {"numRequestsRunning", (double)s.num_requests_running},
      {"numRequestsWaiting", (double)s.num_requests_waiting},
      {"liveRequests", (double)s.live_requests},
      {"tokenRows", (double)s.token_rows},
      {"logitsRows", (double)s.logits_rows},
      {"kvBlocksTotal", (double)s.kv_blocks_total},
      {"kvBlocksUsed", (double)s.kv_blocks_used},
      {"kvBlocksCached", (double)s.kv_blocks_cached},
      {"kvBlocksFree", (double)s.kv_blocks_free},
      {"kvCacheUsage", s.kv_cache_usage},
      {"prefixCacheQueries", (double)s.prefix_cache_queries},
      {"prefixCacheHits", (double)s.prefix_cache_hits},
      {"numPreemptions", (double)s.num_preemptions},
      {"promptTokens", (double)s.prompt_tokens},
      {"promptTokensCached", (double)s.prompt_tokens_cached},
      {"generationTokens", (double)s.generation_tokens},
      {"finishedStop", (double)s.finished_stop},
      {"finishedLength", (double)s.finished_length},
      {"finishedAbort", (double)s.finished_abort},
      {"finishedDeadline", (double)s.finished_deadline},
      {"finishedError", (double)s.finished_error},
      {"rejectedQueueFull", (double)s.rejected_queue_full},
      {"undrainedBytes", (double)s.undrained_bytes},
      {"steps", (double)s.steps},
      {"stepSeconds", s.step_seconds},
      {"lastStepSeconds", s.last_step_seconds},
  };
  napi_create_object(env, &object);
  for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
    set(env, object, figures[i].name, number_new(env, figures[i].value));
  return object;
}

NAPI_MODULE_INIT() {
  static const struct {
    const char *name;
    napi_callback call;
  } functions[] = {
      {"setErrorClass", error_class_set}, {"open", open_engine},
      {"submit", submit},                 {"abort", abort_request},
      {"close", close_engine},            {"encode", encode},
      {"decode", decode},                 {"renderChat", render_chat},
      {"infoJson", info_json},            {"prometheus", prometheus},
      {"stats", stats},                   {"chatParser", chat_parser},
      {"chatParserInfo", chat_parser_info},
      {"chatParserPush", chat_parser_push},
      {"chatParserFinish", chat_parser_finish},
      {"chatParserClose", chat_parser_close},
  };
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    napi_value function;
    napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].call, NULL,
                         &function);
    set(env, exports, functions[i].name, function);
  }
  set(env, exports, "optionFields", options_fields(env));
  set(env, exports, "version", text_new(env, vrust_version_string(), NAPI_AUTO_LENGTH));
  set(env, exports, "buildInfo", text_new(env, vrust_build_info_json(), NAPI_AUTO_LENGTH));
  return exports;
}
