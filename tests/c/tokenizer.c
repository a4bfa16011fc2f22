/* tokenizer: encode, decode, token bytes and chat templates, with and without an engine. */

#include "harness.h"

static void round_trip(VrustTokenizer *tokenizer) {
  const char *texts[] = {"Hello, world!", "", "line\nline", "caf\xc3\xa9 \xe2\x9c\x93"};
  size_t t;
  for (t = 0; t < sizeof texts / sizeof texts[0]; t++) {
    const char *text = texts[t];
    uint32_t ids[128];
    char out[256];
    size_t n = 0, len = 0, again = 0;
    CHECK_OK(vrust_tokenizer_encode(tokenizer, text, strlen(text), 0, ids, 128, &n,
                                    &err));
    CHECK_OK(vrust_tokenizer_decode(tokenizer, ids, n, VRUST_DECODE_SKIP_SPECIAL_TOKENS, out,
                                    sizeof out, &len, &err));
    CHECK(len == strlen(text) && memcmp(out, text, len) == 0);
    if (n == 0) continue;
    /* A buffer that is too small is told what it needs, and left alone. */
    ids[0] ^= 1;
    CHECK_STATUS(VRUST_ERROR_BUFFER_TOO_SMALL,
                 vrust_tokenizer_encode(tokenizer, text, strlen(text), 0, ids, n - 1,
                                        &again, &err));
    CHECK(again == n);
    ids[0] ^= 1;
    CHECK_STATUS(VRUST_ERROR_BUFFER_TOO_SMALL,
                 vrust_tokenizer_encode(tokenizer, text, strlen(text), 0, NULL, 0,
                                        &again, &err));
    CHECK_STATUS(VRUST_ERROR_BUFFER_TOO_SMALL,
                 vrust_tokenizer_decode(tokenizer, ids, n, 0, NULL, 0, &again, &err));
    CHECK(again >= strlen(text));
    CHECK_OK(vrust_tokenizer_token_bytes(tokenizer, ids[0], (uint8_t *)out, sizeof out, &len,
                                         &err));
    CHECK(len > 0);
  }
}

static void bad_arguments(VrustTokenizer *tokenizer, const char *model) {
  VrustTokenizer *none = NULL;
  uint32_t ids[8];
  char out[8];
  size_t n = 0;
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_tokenizer_open(NULL, 0, &none, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_tokenizer_open(model, strlen(model), NULL, &err));
  CHECK(vrust_tokenizer_open("/nonexistent", 12, &none, NULL) < 0 && none == NULL);
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "UTF-8",
              vrust_tokenizer_encode(tokenizer, "ab\xff", 3, 0, ids, 8, &n, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_tokenizer_encode(tokenizer, "a", 1, 8, ids, 8, &n, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_tokenizer_encode(NULL, "a", 1, 0, ids, 8, &n, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_tokenizer_decode(tokenizer, NULL, 3, 0, out, 8, &n, &err));
  ids[0] = 4000000000u;
  CHECK(vrust_tokenizer_decode(tokenizer, ids, 1, 0, out, 8, &n, NULL) < 0);
  CHECK_STATUS(VRUST_ERROR_NOT_FOUND,
               vrust_tokenizer_token_bytes(tokenizer, 4000000000u, (uint8_t *)out, 8, &n, &err));
}

static VrustStatus render(VrustTokenizer *tokenizer, const char *messages, const char *tools,
                          uint32_t flags, VrustBytes **out) {
  return vrust_chat_render(tokenizer, messages, strlen(messages), tools,
                           strlen(tools), NULL, 0, flags, out, NULL);
}

static void chat(VrustTokenizer *tokenizer) {
  const char *hello = "[{\"role\":\"user\",\"content\":\"Hello there\"}]";
  VrustBytes *open = NULL, *closed = NULL;
  VrustStatus status = render(tokenizer, hello, "", VRUST_CHAT_GENERATION_PROMPT, &open);
  if (status == VRUST_ERROR_TEMPLATE) return; /* A model without a template. */
  CHECK(status == VRUST_OK);
  CHECK(strstr((const char *)vrust_bytes_data(open), "Hello there") != NULL);
  CHECK(render(tokenizer, hello, "", 0, &closed) == VRUST_OK);
  CHECK(vrust_bytes_len(closed) < vrust_bytes_len(open));
  CHECK(vrust_bytes_destroy(open) == VRUST_OK && vrust_bytes_destroy(closed) == VRUST_OK);
  CHECK(render(tokenizer, "{", "", 0, &open) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(render(tokenizer, "{}", "", 0, &open) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(render(tokenizer, hello, "{}", 0, &open) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(render(tokenizer, hello, "", 64, &open) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(render(NULL, hello, "", 0, &open) == VRUST_ERROR_INVALID_ARGUMENT);
}

/* The same tokenizer with a template of the caller's, which outlives the first one. */
static void other_template(VrustTokenizer *tokenizer) {
  const char *source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
  const char *hello = "[{\"role\":\"user\",\"content\":\"Hello there\"}]";
  VrustTokenizer *other = NULL;
  VrustBytes *text = NULL;
  CHECK_ERROR(VRUST_ERROR_TEMPLATE, "line 1",
              vrust_tokenizer_with_template(tokenizer, "{% if %}", 8, &other, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_tokenizer_with_template(NULL, source, strlen(source), &other, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_tokenizer_with_template(tokenizer, NULL, 3, &other, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_tokenizer_with_template(tokenizer, source, strlen(source), NULL, &err));
  CHECK(other == NULL);
  CHECK_OK(vrust_tokenizer_with_template(tokenizer, source, strlen(source), &other, &err));
  CHECK(vrust_tokenizer_destroy(tokenizer) == VRUST_OK);
  CHECK(render(other, hello, "", 0, &text) == VRUST_OK);
  CHECK(vrust_bytes_len(text) == 17);
  CHECK(memcmp(vrust_bytes_data(text), "<user>Hello there", 17) == 0);
  CHECK(vrust_bytes_destroy(text) == VRUST_OK);
  round_trip(other);
  CHECK(vrust_tokenizer_destroy(other) == VRUST_OK);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  VrustTokenizer *tokenizer = NULL, *from_engine = NULL;
  VrustEngine *engine;
  CHECK_OK(vrust_tokenizer_open(model, strlen(model), &tokenizer, &err));
  round_trip(tokenizer);
  bad_arguments(tokenizer, model);
  chat(tokenizer);
  CHECK(vrust_tokenizer_destroy(tokenizer) == VRUST_OK);
  CHECK(vrust_tokenizer_destroy(tokenizer) == VRUST_ERROR_INVALID_ARGUMENT);

  engine = ready_engine(model);
  CHECK_OK(vrust_engine_tokenizer(engine, &from_engine, &err));
  CHECK(vrust_engine_destroy(engine) == VRUST_OK);
  round_trip(from_engine);
  chat(from_engine);
  other_template(from_engine);
  CHECK(vrust_tokenizer_destroy(NULL) == VRUST_OK);
  return 0;
}
