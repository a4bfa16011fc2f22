/* cuda: a model on a GPU through the C ABI. run.sh gives it the stand-in driver of tests/cuda by
 * VRUST_CUDA_LIB_DIR; without that only errors are looked at. VRUST_TEST_WIDE_MODEL: a model with
 * heads of 64, of which config.json and the tokenizer are enough. */

#include "harness.h"

static VrustEngine *create(const char *model, const char *extra) {
  VrustEngineOptions options = engine_options(model);
  VrustEngine *engine = NULL;
  options.dtype = VRUST_DTYPE_FLOAT32;
  options.extra_json = extra;
  options.extra_json_len = strlen(extra);
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  return engine;
}

/* Tokens of three requests at once. */
static void generate(VrustEngine *engine, uint32_t tokens[3][24]) {
  Consumer consumer = new_consumer();
  VrustQueue *queue = default_queue(engine);
  size_t i;
  for (i = 0; i < 3; i++) {
    VrustRequest request = text_request(i == 1 ? "The quick brown fox" : "Once upon a time", 24);
    uint64_t id = 0;
    request.user_data = i;
    CHECK_OK(vrust_submit(engine, &request, &id, &err));
  }
  drain_until(&consumer, queue, 3);
  for (i = 0; i < 3; i++) {
    CHECK(consumer.outcomes[i].num_tokens == 24 && consumer.outcomes[i].num_finished == 1);
    memcpy(tokens[i], consumer.outcomes[i].tokens, sizeof tokens[i]);
  }
  free_consumer(&consumer);
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
}

static void check_info(VrustEngine *engine, const char *backend) {
  VrustBytes *info = NULL;
  CHECK_OK(vrust_engine_info_json(engine, &info, &err));
  CHECK(strstr((const char *)vrust_bytes_data(info), backend) != NULL);
  CHECK(vrust_bytes_destroy(info) == VRUST_OK);
}

/* The first tokens of three prompts by seeded weights in bfloat16. */
static void first_tokens(const char *model, const char *extra, const char *backend,
                         uint32_t first[3]) {
  VrustEngineOptions options = engine_options(model);
  uint32_t tokens[3][24];
  VrustEngine *engine = NULL;
  size_t i;
  options.load_format = VRUST_LOAD_DUMMY;
  options.dtype = VRUST_DTYPE_BFLOAT16;
  options.extra_json = extra;
  options.extra_json_len = strlen(extra);
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  CHECK_OK(vrust_engine_wait_ready(engine, -1, &err));
  check_info(engine, backend);
  generate(engine, tokens);
  for (i = 0; i < 3; i++) first[i] = tokens[i][0];
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
}

/* Heads that the tensor cores' kernels exist for: prompts end as on the CPU, whose sums round
 * elsewhere, so that later tokens may differ. run.sh looks at which kernels were launched. */
static void check_bfloat16(const char *model) {
  uint32_t on_cpu[3], on_cuda[3];
  first_tokens(model, "{\"device\":\"cpu\"}", "cpu", on_cpu);
  first_tokens(model, "{\"device\":\"cuda:0\"}", "sm_90, bf16)", on_cuda);
  CHECK(memcmp(on_cpu, on_cuda, sizeof on_cpu) == 0);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  uint32_t on_cpu[3][24], on_cuda[3][24];
  VrustEngine *engine = create(model, "{\"device\":\"cpu\"}");
  CHECK_OK(vrust_engine_wait_ready(engine, -1, &err));
  generate(engine, on_cpu);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);

  engine = create(model, "{\"device\":\"cuda:99\"}");
  CHECK_ERROR(VRUST_ERROR_DEVICE, "cuda:99", vrust_engine_wait_ready(engine, -1, &err));
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);

  if (getenv("VRUST_CUDA_LIB_DIR") != NULL) {
    engine = create(model, "{\"device\":\"cuda:0\",\"gpu_memory_utilization\":0.5}");
    CHECK_OK(vrust_engine_wait_ready(engine, -1, &err));
    check_info(engine, "\"cuda:0 (");
    generate(engine, on_cuda);
    CHECK(memcmp(on_cpu, on_cuda, sizeof on_cpu) == 0);
    CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  }
  if (getenv("VRUST_TEST_WIDE_MODEL") != NULL) check_bfloat16(getenv("VRUST_TEST_WIDE_MODEL"));
  return 0;
}
