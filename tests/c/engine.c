/* engine: bad options and requests of every kind, and misuse of handles. */

#include "harness.h"

static void bad_options(const char *model) {
  VrustEngine *engine = NULL;
  VrustEngineOptions good = engine_options(model), o;
  char tail[sizeof good + 16];
  const char *extras[][2] = {{"{", "extra_json"},
                             {"[]", "extra_json"},
                             {"{\"nonsense\":1}", "nonsense"},
                             {"{\"num_kv_blocks\":\"many\"}", "num_kv_blocks"},
                             {"{\"cpu_isa\":\"6502\"}", "cpu_isa"}};
  size_t i;

#define BAD(status, word) CHECK_ERROR(status, word, vrust_engine_create(&o, &engine, &err))
#define WITH(field, value) o = good, o.field = value
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "options", vrust_engine_create(NULL, &engine, &err));
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "out", vrust_engine_create(&good, NULL, &err));
  memset(&o, 0, sizeof o);
  BAD(VRUST_ERROR_ABI_MISMATCH, "init");
  WITH(struct_size, 0);
  BAD(VRUST_ERROR_ABI_MISMATCH, "struct_size");
  WITH(struct_size, 0xcccccccc);
  BAD(VRUST_ERROR_ABI_MISMATCH, "struct_size");
  WITH(abi_version, VRUST_ABI_VERSION + 1);
  BAD(VRUST_ERROR_ABI_MISMATCH, "abi_version");
  WITH(model_len, 0);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "model");
  WITH(model, NULL);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "model");
  o = good, o.model = "/nonexistent", o.model_len = 12;
  BAD(VRUST_ERROR_NOT_FOUND, "/nonexistent");
  o = good, o.model = "\xff\xfe", o.model_len = 2;
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "UTF-8");
  WITH(tensor_parallel_size, 2);
  BAD(VRUST_ERROR_UNSUPPORTED, "tensor_parallel_size");
  WITH(load_format, 9);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "load_format");
  WITH(dtype, 9);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "dtype");
  WITH(backend, 9);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "backend");
  WITH(scheduling_policy, 9);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "scheduling_policy");
  WITH(enable_prefix_caching, 2);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "enable_prefix_caching");
  WITH(block_size, 7);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "block_size");
  WITH(max_num_seqs, 0);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "max_num_seqs");
  WITH(max_undrained_bytes, 0);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "max_undrained_bytes");
  WITH(reserved, 1);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "reserved");
  for (i = 0; i < sizeof extras / sizeof extras[0]; i++) {
    o = good, o.extra_json = extras[i][0], o.extra_json_len = strlen(extras[i][0]);
    BAD(VRUST_ERROR_INVALID_ARGUMENT, "");
  }
  o = good, o.extra_json = "{\"swap_space\":4}", o.extra_json_len = 16;
  BAD(VRUST_ERROR_UNSUPPORTED, "swap_space");

  /* A newer program's longer struct is fine while its tail is zero. */
  memset(tail, 0, sizeof tail);
  memcpy(tail, &good, sizeof good);
  ((VrustEngineOptions *)(void *)tail)->struct_size = sizeof tail;
  tail[sizeof tail - 1] = 1;
  CHECK_STATUS(VRUST_ERROR_ABI_MISMATCH,
               vrust_engine_create((VrustEngineOptions *)(void *)tail, &engine, &err));
  CHECK(engine == NULL);
  tail[sizeof tail - 1] = 0;
  CHECK_OK(vrust_engine_create((VrustEngineOptions *)(void *)tail, &engine, &err));
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
#undef BAD
#undef WITH
}

static void bad_requests(VrustEngine *engine) {
  VrustRequest good = text_request("a", 4), r;
  uint64_t id = 77;
  const uint32_t ids[] = {1, 2, 4000000000u};
  size_t i;
  const struct {
    const char *json, *word;
    VrustStatus status;
  } cases[] = {
      {"", "json", VRUST_ERROR_INVALID_ARGUMENT},
      {"{}", "prompt", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"temperature\":3}", "temperature", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"top_p\":0}", "top_p", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", "stop",
       VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"stop\":\"\"}", "stop", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"logprobs\":21}", "logprobs", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"priority\":1}", "priority", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"temprature\":1}", "temprature", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":[1,2,4000000000]}", "prompt", VRUST_ERROR_INVALID_ARGUMENT},
      {"{\"prompt\":\"a\",\"best_of\":2}", "best_of", VRUST_ERROR_UNSUPPORTED},
      {"{\"prompt\":\"a\",\"use_beam_search\":true}", "beam", VRUST_ERROR_UNSUPPORTED},
      {"{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\"}}", "response_format",
       VRUST_ERROR_UNSUPPORTED},
  };

#define BAD(status, word) CHECK_ERROR(status, word, vrust_submit(engine, &r, &id, &err))
#define WITH(field, value) r = good, r.field = value
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "request", vrust_submit(engine, NULL, &id, &err));
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "id_out", vrust_submit(engine, &good, NULL, &err));
  WITH(struct_size, 8);
  BAD(VRUST_ERROR_ABI_MISMATCH, "struct_size");
  WITH(input, NULL);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "input");
  WITH(input_kind, 3);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "input_kind");
  WITH(flags, 1u << 31);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "flags");
  WITH(present, (uint64_t)1 << 63);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "present");
  WITH(temperature, -1.0f);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "temperature");
  WITH(max_tokens, 1000000);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "max_tokens");
  WITH(priority, 3);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "priority");
  WITH(queue, (VrustQueue *)engine);
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "queue");
  r = good, r.input_kind = VRUST_INPUT_TOKENS, r.input = ids, r.input_len = 3;
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "");
  r.input_len = 0;
  BAD(VRUST_ERROR_INVALID_ARGUMENT, "");
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const char *json = cases[i].json;
    CHECK_ERROR(cases[i].status, "",
                vrust_submit_json(engine, NULL, json, strlen(json), 0, &id, &err));
    if (strcmp(cases[i].word, "json") != 0) {
      VrustError *err = NULL;
      vrust_submit_json(engine, NULL, json, strlen(json), 0, &id, &err);
      CHECK(strstr(vrust_error_message(err, NULL), cases[i].word) != NULL);
      vrust_error_destroy(err);
    }
  }
  CHECK(id == 77); /* Outputs are written on success only. */
  CHECK_ERROR(VRUST_ERROR_NOT_FOUND, "12345", vrust_abort(engine, 12345, &err));
  CHECK_ERROR(VRUST_ERROR_NOT_FOUND, "0", vrust_abort(engine, 0, &err));
#undef BAD
#undef WITH
}

static void bad_handles(VrustEngine *live) {
  VrustQueue *queue = default_queue(live);
  VrustEngine *stale = NULL;
  VrustRequest request = text_request("a", 1);
  VrustBytes *bytes = NULL;
  VrustTokenizer *tokenizer = NULL;
  VrustQueue *made = NULL;
  VrustStats stats;
  uint64_t id = 0;
  uint32_t state = 0;
  int32_t fd = 0;
  size_t i;
  VrustEngine *wrong[4];

  wrong[0] = NULL;
  wrong[1] = (VrustEngine *)queue;
  wrong[2] = (VrustEngine *)&id;
  wrong[3] = (VrustEngine *)(uintptr_t)-1;
  for (i = 0; i < 4; i++) {
    stale = wrong[i];
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_wait_ready(stale, 0, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_state(stale, &state, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_info_json(stale, &bytes, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_shutdown(stale, 0, 0, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_tokenizer(stale, &tokenizer, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_default_queue(stale, &made, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_queue_create(stale, NULL, &made, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_submit(stale, &request, &id, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
                 vrust_submit_json(stale, NULL, NULL, 0, 0, &id, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_abort(stale, 1, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_abort_all(stale, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
                 vrust_stats_get(stale, &stats, sizeof stats, &err));
    CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_stats_prometheus(stale, &bytes, &err));
    CHECK(vrust_engine_destroy(stale) == (i == 0 ? VRUST_OK : VRUST_ERROR_INVALID_ARGUMENT));
  }
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_queue_fd((VrustQueue *)live, &fd, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_queue_wake(NULL, &err));
  CHECK(vrust_queue_destroy((VrustQueue *)live) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(vrust_tokenizer_destroy((VrustTokenizer *)live) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(vrust_bytes_destroy((VrustBytes *)live) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(vrust_error_destroy((VrustError *)live) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_wait_ready(live, -2, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_shutdown(live, 2, 0, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_engine_state(live, NULL, &err));
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  CHECK(vrust_queue_destroy(queue) == VRUST_ERROR_INVALID_ARGUMENT);
}

static void facts(VrustEngine *engine) {
  VrustBytes *info = NULL;
  uint32_t state = 99;
  CHECK_OK(vrust_engine_state(engine, &state, &err));
  CHECK(state == VRUST_STATE_READY);
  CHECK_OK(vrust_engine_info_json(engine, &info, &err));
  CHECK(vrust_bytes_len(info) == strlen((const char *)vrust_bytes_data(info)));
  CHECK(strstr((const char *)vrust_bytes_data(info), "\"max_model_len\"") != NULL);
  CHECK(vrust_bytes_destroy(info) == VRUST_OK);
  CHECK(vrust_bytes_data(info) == NULL && vrust_bytes_len(info) == 0);
  CHECK(vrust_bytes_destroy(info) == VRUST_ERROR_INVALID_ARGUMENT);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  VrustEngine *engine = ready_engine(model);
  uint64_t id = 0;
  VrustRequest request = text_request("a", 1);
  facts(engine);
  bad_options(model);
  bad_requests(engine);
  bad_handles(engine);
  CHECK_OK(vrust_engine_shutdown(engine, VRUST_SHUTDOWN_DRAIN, -1, &err));
  CHECK_STATUS(VRUST_ERROR_SHUTTING_DOWN, vrust_submit(engine, &request, &id, &err));
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  CHECK(vrust_engine_destroy(engine) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "destroyed",
              vrust_submit(engine, &request, &id, &err));
  return 0;
}
