/* arguments: NULL, lengths that lie, text that is not UTF-8, sizes and bits of other headers,
 * numbers out of range and made-up handles: a status each, and no output is touched. */

#include "harness.h"

#include <limits.h>
#include <math.h>

#define INVALID VRUST_ERROR_INVALID_ARGUMENT
static const char NOT_UTF8[] = "a\xc3(";
static const char EMPTY[1] = {0};

/* A pointer and a length that cannot go together. */
typedef struct BadText {
  const char *data;
  size_t len;
} BadText;

enum { NUM_BAD_TEXTS = 4 };

static BadText bad_text(size_t index) {
  BadText texts[NUM_BAD_TEXTS];
  texts[0].data = NULL, texts[0].len = 1;
  texts[1].data = NULL, texts[1].len = SIZE_MAX;
  texts[2].data = EMPTY, texts[2].len = SIZE_MAX;
  texts[3].data = NOT_UTF8, texts[3].len = 3;
  return texts[index];
}

static void texts_of_options(const char *model) {
  size_t i;
  for (i = 0; i < NUM_BAD_TEXTS; i++) {
    BadText bad = bad_text(i);
    VrustEngineOptions good = engine_options(model), o;
    VrustEngine *engine = (VrustEngine *)0x77;
#define BAD(field)                                                                   \
  o = good, o.field = bad.data, o.field##_len = bad.len;                             \
  CHECK_ERROR(INVALID, #field, vrust_engine_create(&o, &engine, &err))
    BAD(model);
    BAD(tokenizer);
    BAD(chat_template);
    BAD(extra_json);
#undef BAD
    CHECK(engine == (VrustEngine *)0x77);
  }
}

static void texts_of_requests(VrustEngine *engine) {
  size_t i;
  const uint32_t ids[2] = {1, 2};
  uint64_t id = 77;
  VrustRequest good = text_request("a", 2), r;
  for (i = 0; i < NUM_BAD_TEXTS; i++) {
    BadText bad = bad_text(i);
#define BAD(field)                                                                   \
  r = good, r.field = bad.data, r.field##_len = bad.len;                             \
  CHECK_ERROR(INVALID, #field, vrust_submit(engine, &r, &id, &err))
    BAD(input);
    BAD(stop_json);
    BAD(cache_salt);
    BAD(extra_json);
    good.input_kind = VRUST_INPUT_CHAT_JSON;
    BAD(input);
    good.input_kind = VRUST_INPUT_TEXT;
#undef BAD
    CHECK_ERROR(INVALID, "json",
                vrust_submit_json(engine, NULL, bad.data, bad.len, 0, &id, &err));
  }
  r = good, r.stop_token_ids = NULL, r.num_stop_token_ids = 1;
  CHECK_ERROR(INVALID, "stop_token_ids", vrust_submit(engine, &r, &id, &err));
  r.stop_token_ids = ids, r.num_stop_token_ids = SIZE_MAX;
  CHECK_ERROR(INVALID, "stop_token_ids", vrust_submit(engine, &r, &id, &err));
  r = good, r.input_kind = VRUST_INPUT_TOKENS, r.input = ids, r.input_len = SIZE_MAX / 4;
  CHECK_ERROR(INVALID, "input", vrust_submit(engine, &r, &id, &err));
  r.input = (const char *)(const void *)ids + 1, r.input_len = 1;
  CHECK_ERROR(INVALID, "unaligned", vrust_submit(engine, &r, &id, &err));
  CHECK(id == 77);
}

static void texts_of_tokenizers(VrustTokenizer *t) {
  VrustTokenizer *made = (VrustTokenizer *)0x77;
  VrustBytes *bytes = (VrustBytes *)0x77;
  const uint32_t in[4] = {1, 2, 3, 4};
  const char *hello = "[{\"role\":\"user\",\"content\":\"x\"}]";
  size_t i, n = 77, hello_len = strlen((const char *)hello);
  uint32_t ids[8];
  char out[8];
  for (i = 0; i < NUM_BAD_TEXTS; i++) {
    BadText bad = bad_text(i);
    CHECK_ERROR(INVALID, "path", vrust_tokenizer_open(bad.data, bad.len, &made, &err));
    CHECK_ERROR(INVALID, "text",
                vrust_tokenizer_encode(t, bad.data, bad.len, 0, ids, 8, &n, &err));
    CHECK_ERROR(INVALID, "messages_json", vrust_chat_render(t, bad.data, bad.len, NULL, 0, NULL,
                                                            0, 0, &bytes, &err));
    CHECK_ERROR(INVALID, "tools_json", vrust_chat_render(t, hello, hello_len, bad.data, bad.len,
                                                         NULL, 0, 0, &bytes, &err));
    CHECK_ERROR(INVALID, "kwargs_json", vrust_chat_render(t, hello, hello_len, NULL, 0, bad.data,
                                                          bad.len, 0, &bytes, &err));
  }
  /* A path may not hold a NUL: a status, not a folder of another name. */
  CHECK(vrust_tokenizer_open("tests\0x", 7, &made, NULL) < 0);
  CHECK_STATUS(INVALID, vrust_tokenizer_decode(t, in, SIZE_MAX / 4, 0, out, 8, &n, &err));
  CHECK_STATUS(INVALID, vrust_tokenizer_decode(t, NULL, 1, 0, out, 8, &n, &err));
  /* Outputs. */
  CHECK_STATUS(INVALID, vrust_tokenizer_encode(t, hello, 3, 0, ids, 8, NULL, &err));
  CHECK_STATUS(INVALID, vrust_tokenizer_encode(t, hello, 3, 0, NULL, 8, &n, &err));
  CHECK_STATUS(INVALID, vrust_tokenizer_encode(t, hello, 3, 0, NULL, 1, &n, &err));
  CHECK_STATUS(INVALID, vrust_tokenizer_decode(t, in, 2, 0, out, 8, NULL, &err));
  CHECK_STATUS(INVALID, vrust_tokenizer_decode(t, in, 2, 0, NULL, 8, &n, &err));
  CHECK_STATUS(INVALID, vrust_tokenizer_token_bytes(t, 1, (uint8_t *)out, 8, NULL, &err));
  CHECK_STATUS(INVALID, vrust_tokenizer_token_bytes(t, 1, NULL, 8, &n, &err));
  CHECK_STATUS(INVALID,
               vrust_chat_render(t, hello, hello_len, NULL, 0, NULL, 0, 0, NULL, &err));
  CHECK(n == 77 && made == (VrustTokenizer *)0x77 && bytes == (VrustBytes *)0x77);
}

static void null_outputs(VrustEngine *engine) {
  VrustRequest request = text_request("a", 1);
  const char *json = "{\"prompt\":\"a\"}";
  VrustQueue *queue = default_queue(engine);
  CHECK_STATUS(INVALID, vrust_engine_info_json(engine, NULL, &err));
  CHECK_STATUS(INVALID, vrust_engine_default_queue(engine, NULL, &err));
  CHECK_STATUS(INVALID, vrust_queue_create(engine, NULL, NULL, &err));
  CHECK_STATUS(INVALID, vrust_queue_fd(queue, NULL, &err));
  CHECK_STATUS(INVALID, vrust_engine_tokenizer(engine, NULL, &err));
  CHECK_STATUS(INVALID, vrust_stats_prometheus(engine, NULL, &err));
  CHECK_STATUS(INVALID, vrust_submit(engine, &request, NULL, &err));
  CHECK_STATUS(INVALID,
               vrust_submit_json(engine, NULL, json, strlen(json), 0, NULL, &err));
  CHECK(vrust_queue_destroy(queue) == VRUST_OK);
  vrust_engine_options_init(NULL, sizeof(VrustEngineOptions));
  vrust_request_options_init(NULL, 8);
  vrust_queue_options_init(NULL, SIZE_MAX);
}

static void sizes_of_structs(VrustEngine *engine, const char *model) {
  const uint32_t sizes[] = {0, 1, 4, 8, 15, 4097, 0x7fffffff, 0xffffffff};
  VrustEngineOptions o = engine_options(model);
  VrustRequest r = text_request("a", 1);
  VrustQueueOptions q;
  VrustEngine *made = NULL;
  VrustQueue *queue = NULL;
  VrustStats stats;
  uint8_t small[16];
  uint64_t id = 0;
  size_t i;
  vrust_queue_options_init(&q, sizeof q);
  for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    o.struct_size = r.struct_size = q.struct_size = sizes[i];
    CHECK_ERROR(VRUST_ERROR_ABI_MISMATCH, "struct_size", vrust_engine_create(&o, &made, &err));
    CHECK_ERROR(VRUST_ERROR_ABI_MISMATCH, "struct_size", vrust_submit(engine, &r, &id, &err));
    CHECK_ERROR(VRUST_ERROR_ABI_MISMATCH, "struct_size",
                vrust_queue_create(engine, &q, &queue, &err));
    CHECK_ERROR(VRUST_ERROR_ABI_MISMATCH, "size",
                vrust_stats_get(engine, &stats, sizes[i], &err));
  }
  CHECK_STATUS(VRUST_ERROR_ABI_MISMATCH, vrust_stats_get(engine, &stats, SIZE_MAX, &err));
  /* An init function writes no more than it is told to. */
  memset(small, 0xaa, sizeof small);
  vrust_engine_options_init((VrustEngineOptions *)(void *)small, 8);
  CHECK(small[0] == 8 && small[4] == (uint8_t)VRUST_ABI_VERSION && small[8] == 0xaa);
  vrust_engine_options_init((VrustEngineOptions *)(void *)small, 0);
  vrust_engine_options_init((VrustEngineOptions *)(void *)small, SIZE_MAX);
  CHECK(small[0] == 8 && small[8] == 0xaa);
}

static void bits_and_numbers(VrustEngine *engine) {
  VrustRequest good = text_request("a", 1), r;
  const float wrong[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f};
  uint64_t id = 77;
  size_t i;
  int bit;
  for (bit = 13; bit < 64; bit++) {
    r = good, r.present |= (uint64_t)1 << bit;
    CHECK_ERROR(INVALID, "present", vrust_submit(engine, &r, &id, &err));
  }
  for (bit = 7; bit < 32; bit++) {
    r = good, r.flags |= 1u << bit;
    CHECK_ERROR(INVALID, "flags", vrust_submit(engine, &r, &id, &err));
  }
  r = good, r.reserved = 0x80000000u;
  CHECK_ERROR(INVALID, "reserved", vrust_submit(engine, &r, &id, &err));
#define BAD(field, bits, value)                            \
  r = good, r.present |= bits, r.field = value;            \
  CHECK_ERROR(INVALID, #field, vrust_submit(engine, &r, &id, &err))
  for (i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    BAD(temperature, VRUST_REQUEST_HAS_TEMPERATURE, wrong[i]);
    BAD(top_p, VRUST_REQUEST_HAS_TOP_P, wrong[i]);
    BAD(min_p, VRUST_REQUEST_HAS_MIN_P, wrong[i]);
    BAD(frequency_penalty, VRUST_REQUEST_HAS_FREQUENCY_PENALTY, wrong[i]);
    BAD(presence_penalty, VRUST_REQUEST_HAS_PRESENCE_PENALTY, wrong[i]);
  }
  BAD(repetition_penalty, VRUST_REQUEST_HAS_REPETITION_PENALTY, NAN);
  BAD(repetition_penalty, VRUST_REQUEST_HAS_REPETITION_PENALTY, 0.0f);
  BAD(top_k, VRUST_REQUEST_HAS_TOP_K, INT_MIN);
  BAD(logprobs, VRUST_REQUEST_HAS_LOGPROBS, INT_MIN);
  BAD(logprobs, VRUST_REQUEST_HAS_LOGPROBS, INT_MAX);
  r = good, r.present |= VRUST_REQUEST_HAS_PROMPT_LOGPROBS, r.prompt_logprobs = INT_MAX;
  CHECK_ERROR(INVALID, "prompt logprobs", vrust_submit(engine, &r, &id, &err));
  BAD(n, VRUST_REQUEST_HAS_N, 0);
  BAD(n, VRUST_REQUEST_HAS_N, UINT32_MAX);
  BAD(max_tokens, VRUST_REQUEST_HAS_MAX_TOKENS, 0);
  BAD(max_tokens, VRUST_REQUEST_HAS_MAX_TOKENS, UINT32_MAX);
  BAD(min_tokens, VRUST_REQUEST_HAS_MIN_TOKENS, UINT32_MAX);
#undef BAD
  CHECK(id == 77);
  CHECK_STATUS(INVALID, vrust_engine_wait_ready(engine, INT_MIN, &err));
  CHECK_STATUS(INVALID, vrust_engine_wait_ready(engine, -2, &err));
  CHECK_OK(vrust_engine_wait_ready(engine, INT_MAX, &err));
  CHECK_STATUS(INVALID, vrust_engine_shutdown(engine, VRUST_SHUTDOWN_ABORT, -2, &err));
  CHECK_STATUS(INVALID, vrust_engine_shutdown(engine, 0xffffffff, 0, &err));
}

/* Numbers that no call returned, near live handles and anywhere. */
static void made_up_handles(VrustEngine *engine) {
  uint64_t random = 88172645463325252u, live = (uint64_t)(uintptr_t)engine;
  size_t i;
  for (i = 0; i < 20000; i++) {
    uint64_t value;
    VrustEngine *e;
    VrustEvent event;
    size_t n = 7, b = 7;
    uint32_t state = 0;
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    value = i < 56 ? live ^ ((uint64_t)1 << i) : random;
    e = (VrustEngine *)(uintptr_t)value;
    CHECK(vrust_engine_state(e, &state, NULL) == INVALID);
    CHECK(vrust_engine_destroy(e) == INVALID);
    CHECK(vrust_queue_destroy((VrustQueue *)(void *)e) == INVALID);
    CHECK(vrust_queue_poll((VrustQueue *)(void *)e, &event, sizeof event, 1, NULL, 0, -1, &n, &b,
                           NULL) == INVALID);
    CHECK(n == 7 && b == 7);
    CHECK(vrust_tokenizer_destroy((VrustTokenizer *)(void *)e) == INVALID);
    CHECK(vrust_bytes_data((VrustBytes *)(void *)e) == NULL);
    CHECK(vrust_bytes_destroy((VrustBytes *)(void *)e) == INVALID);
    CHECK(vrust_error_code((VrustError *)(void *)e) == INVALID);
  }
}

static void write_file(const char *folder, const char *name, const char *text, size_t len) {
  char path[600];
  FILE *file;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  file = fopen(path, "wb");
  CHECK(file != NULL && fwrite(text, 1, len, file) == len && fclose(file) == 0);
}

static void remove_file(const char *folder, const char *name) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  CHECK(remove(path) == 0);
}

/* The bytes of a file of the model's, at most `room`. */
static size_t read_model_file(const char *model, const char *name, char *text, size_t room) {
  char path[600];
  FILE *file;
  size_t len = 0;
  snprintf(path, sizeof path, "%s/%s", model, name);
  file = fopen(path, "rb");
  if (file == NULL) return 0;
  len = fread(text, 1, room, file);
  fclose(file);
  return len;
}

static VrustStatus open_folder(const char *folder, VrustTokenizer **out) {
  VrustError *err = NULL;
  VrustStatus status = vrust_tokenizer_open(folder, strlen(folder), out, &err);
  size_t len = 0;
  vrust_error_message(err, &len);
  CHECK((status < 0) == (len > 0));
  CHECK(vrust_error_destroy(err) == VRUST_OK);
  return status;
}

/* Standalone tokenizers on folders that are missing or broken. */
static void broken_folders(const char *model) {
  enum { ROOM = 1 << 22 };
  const char *folders[] = {"/nonexistent", "/dev/null", "tests", "tests/c/harness.h"};
  const char *texts[] = {"", "{", "[]", "{}", "\xff\xfe", "{\"model\":{\"type\":\"BPE\"}}",
      "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967295},\"merges\":[]}}"};
  const char *hello = "[{\"role\":\"user\",\"content\":\"x\"}]";
  char folder[] = "/tmp/vrust-broken-XXXXXX", *text = (char *)malloc(ROOM);
  VrustTokenizer *made = (VrustTokenizer *)0x77;
  VrustBytes *bytes = NULL;
  size_t i, len;
  CHECK(mkdtemp(folder) != NULL && text != NULL);
  for (i = 0; i < sizeof folders / sizeof folders[0]; i++) {
    CHECK(open_folder(folders[i], &made) < 0);
  }
  for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    VrustStatus status;
    write_file(folder, "tokenizer.json", texts[i], strlen(texts[i]));
    status = open_folder(folder, &made);
    if (status != VRUST_ERROR_TOKENIZER) fprintf(stderr, "tokenizer.json: %s\n", texts[i]);
    CHECK(status == VRUST_ERROR_TOKENIZER);
  }
  CHECK(made == (VrustTokenizer *)0x77);
  /* Cut short; then whole, with a template that is broken: an error when it is used. */
  len = read_model_file(model, "tokenizer.json", text, ROOM);
  if (len > 0 && len < ROOM) {
    write_file(folder, "tokenizer.json", text, len / 2);
    CHECK(open_folder(folder, &made) == VRUST_ERROR_TOKENIZER);
    write_file(folder, "tokenizer.json", text, len);
    write_file(folder, "chat_template.jinja", "{% for %}", 9);
    CHECK(open_folder(folder, &made) == VRUST_OK);
    CHECK_STATUS(VRUST_ERROR_TEMPLATE,
                 vrust_chat_render(made, hello, strlen(hello), NULL, 0, NULL, 0, 0,
                                   &bytes, &err));
    CHECK(bytes == NULL && vrust_tokenizer_destroy(made) == VRUST_OK);
    remove_file(folder, "chat_template.jinja");
  }
  remove_file(folder, "tokenizer.json");
  CHECK(remove(folder) == 0);
  free(text);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  VrustEngine *engine = ready_engine(model);
  VrustTokenizer *tokenizer = NULL;
  CHECK_OK(vrust_engine_tokenizer(engine, &tokenizer, &err));
  texts_of_options(model);
  texts_of_requests(engine);
  texts_of_tokenizers(tokenizer);
  null_outputs(engine);
  sizes_of_structs(engine, model);
  bits_and_numbers(engine);
  made_up_handles(engine);
  broken_folders(model);
  CHECK(vrust_tokenizer_destroy(tokenizer) == VRUST_OK);
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  return 0;
}
