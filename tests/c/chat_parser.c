/* chat_parser: deltas of reasoning, content and tool calls, whole and in pieces; bad arguments. */

#include "harness.h"

#define TOOLS "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]"

/* Joined deltas, but for the made-up ids. */
typedef struct Joined {
  char json[MAX_TEXT];
  size_t len;
} Joined;

static VrustChatParser *create(VrustTokenizer *tokenizer, const char *options) {
  VrustChatParser *parser = NULL;
  CHECK_OK(vrust_chat_parser_create(tokenizer, options, strlen(options), &parser, &err));
  CHECK(parser != NULL);
  return parser;
}

static void keep_deltas(Joined *joined, VrustBytes *deltas) {
  const char *json = (const char *)vrust_bytes_data(deltas);
  size_t len = vrust_bytes_len(deltas);
  CHECK(json != NULL && len >= 2 && json[0] == '[' && json[len - 1] == ']');
  CHECK(joined->len + len < MAX_TEXT);
  memcpy(joined->json + joined->len, json + 1, len - 2);
  joined->len += len - 2;
  if (len > 2) joined->json[joined->len++] = '\n';
  CHECK(vrust_bytes_destroy(deltas) == VRUST_OK);
}

static void push(VrustChatParser *parser, const char *text, size_t len, Joined *joined) {
  VrustBytes *deltas = NULL;
  CHECK_OK(vrust_chat_parser_push(parser, text, len, &deltas, &err));
  keep_deltas(joined, deltas);
}

static void finish(VrustChatParser *parser, Joined *joined) {
  VrustBytes *deltas = NULL;
  CHECK_OK(vrust_chat_parser_finish(parser, &deltas, &err));
  keep_deltas(joined, deltas);
}

static int info_has(VrustChatParser *parser, const char *part) {
  VrustBytes *json = NULL;
  int found;
  CHECK_OK(vrust_chat_parser_info_json(parser, &json, &err));
  found = strstr((const char *)vrust_bytes_data(json), part) != NULL;
  CHECK(vrust_bytes_destroy(json) == VRUST_OK);
  return found;
}

static void streams(VrustTokenizer *tokenizer) {
  const char *text =
      "<think>\nHm.\n</think>\n\nHi "
      "<tool_call>{\"name\":\"now\",\"arguments\":{\"a\":1}}</tool_call>";
  VrustChatParser *parser = create(
      tokenizer, "{\"tool_format\":\"hermes\",\"reasoning_format\":\"qwen3\"," TOOLS "}");
  Joined whole, pieces;
  const char *at;
  size_t i;
  memset(&whole, 0, sizeof whole);
  memset(&pieces, 0, sizeof pieces);
  CHECK(info_has(parser, "\"tool_format\":\"hermes\",\"reasoning_format\":\"think\""));
  CHECK(info_has(parser, "\"starts_in_reasoning\":false"));
  push(parser, text, strlen(text), &whole);
  CHECK(strstr(whole.json, "{\"reasoning\":\"Hm.\"},{\"content\":\"Hi\"},{\"tool_calls\":[{"
                           "\"index\":0,\"id\":\"call_") == whole.json);
  at = strstr(whole.json, "\",\"type\":\"function\",");
  CHECK(at != NULL);
  CHECK(strcmp(at, "\",\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":\"\"}}]},"
                   "{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"a\\\":1}\"}}]"
                   "}\n") == 0);
  finish(parser, &whole);

  /* The parser is as new: the same text again, a byte at a time. */
  for (i = 0; i < strlen(text); i++) push(parser, text + i, 1, &pieces);
  finish(parser, &pieces);
  CHECK(strstr(pieces.json, "{\"reasoning\":\"H\"}\n{\"reasoning\":\"m\"}\n") == pieces.json);
  CHECK(strstr(pieces.json, "\"name\":\"now\"") != NULL);
  CHECK(strstr(pieces.json, "{\"arguments\":\"1\"}") != NULL);

  /* What is cut short comes out at the end. */
  memset(&whole, 0, sizeof whole);
  push(parser, "a <tool_ca", 10, &whole);
  push(parser, "", 0, &whole);
  push(parser, NULL, 0, &whole);
  CHECK(strcmp(whole.json, "{\"content\":\"a\"}\n") == 0);
  finish(parser, &whole);
  CHECK(strcmp(whole.json, "{\"content\":\"a\"}\n{\"content\":\" <tool_ca\"}\n") == 0);
  CHECK(vrust_chat_parser_destroy(parser) == VRUST_OK);
  CHECK(vrust_chat_parser_destroy(parser) == VRUST_ERROR_INVALID_ARGUMENT);
}

/* Without tools, or without a format in the template, the text stays as it is. */
static void plain(VrustTokenizer *tokenizer) {
  const char *options[] = {"{}", "{\"tool_format\":\"hermes\",\"tools\":[]}",
                           "{\"tool_format\":null,\"tools\":null,\"reasoning_format\":\"none\"}"};
  VrustChatParser *parser = NULL;
  size_t i;
  for (i = 0; i < 3; i++) {
    Joined joined;
    memset(&joined, 0, sizeof joined);
    parser = create(tokenizer, options[i]);
    CHECK(info_has(parser, "{\"tool_format\":null,\"reasoning_format\":null,"
                           "\"starts_in_reasoning\":false,\"keep_special_tokens\":false}"));
    push(parser, "<tool_call> \xc3\xa9\n", 15, &joined);
    CHECK(strcmp(joined.json, "{\"content\":\"<tool_call> \xc3\xa9\\n\"}\n") == 0);
    CHECK(vrust_chat_parser_destroy(parser) == VRUST_OK);
  }
  CHECK_OK(vrust_chat_parser_create(tokenizer, NULL, 0, &parser, &err));
  CHECK(vrust_chat_parser_destroy(parser) == VRUST_OK);
}

static void bad_arguments(VrustTokenizer *tokenizer) {
  static const struct {
    const char *options, *word;
  } bad[] = {
      {"{\"tool_format\":\"x\"}", "tool_format: must be one of auto, none, hermes"},
      {"{\"reasoning_format\":\"x\"}", "reasoning_format: must be one of auto, none, think"},
      {"{\"tool_format\":5}", "tool_format"},
      {"{\"tools\":{}}", "tools"},
      {"{\"tools\":[{}]}", "tools[0]"},
      {"{\"chat_template_kwargs\":[]}", "chat_template_kwargs"},
      {"{\"other\":1}", "other"},
      {"[]", "options_json"},
      {"{", "options_json"},
  };
  VrustChatParser *parser = NULL;
  VrustBytes *out = NULL;
  size_t i;
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    VrustError *err = NULL;
    const char *options = bad[i].options;
    CHECK(vrust_chat_parser_create(tokenizer, options, strlen(options), &parser, &err) ==
          VRUST_ERROR_INVALID_ARGUMENT);
    if (strstr(vrust_error_message(err, NULL), bad[i].word) == NULL) {
      fail(__FILE__, __LINE__, vrust_error_message(err, NULL));
    }
    CHECK(vrust_error_destroy(err) == VRUST_OK && parser == NULL);
  }
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_chat_parser_create(NULL, NULL, 0, &parser, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT,
               vrust_chat_parser_create(tokenizer, NULL, 0, NULL, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_chat_parser_push(NULL, "a", 1, &out, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_chat_parser_finish(NULL, &out, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_chat_parser_info_json(NULL, &out, &err));
  parser = create(tokenizer, "{}");
  CHECK_ERROR(VRUST_ERROR_INVALID_ARGUMENT, "UTF-8",
              vrust_chat_parser_push(parser, "a\xff", 2, &out, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_chat_parser_push(parser, NULL, 1, &out, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_chat_parser_push(parser, "a", 1, NULL, &err));
  CHECK_STATUS(VRUST_ERROR_INVALID_ARGUMENT, vrust_chat_parser_finish(parser, NULL, &err));
  CHECK(out == NULL && vrust_chat_parser_destroy(parser) == VRUST_OK);
  CHECK(vrust_chat_parser_destroy(NULL) == VRUST_OK);
}

static void *push_often(void *argument) {
  int i;
  for (i = 0; i < 500; i++) {
    VrustBytes *deltas = NULL;
    CHECK_OK(vrust_chat_parser_push((VrustChatParser *)argument, "ab <", 4, &deltas, &err));
    CHECK(vrust_bytes_destroy(deltas) == VRUST_OK);
  }
  return NULL;
}

/* Threads may push at the same time, and outlive the tokenizer. */
static void at_once(VrustTokenizer *tokenizer) {
  VrustChatParser *parser = create(tokenizer, "{\"tool_format\":\"hermes\"," TOOLS "}");
  pthread_t threads[4];
  int i;
  CHECK(vrust_tokenizer_destroy(tokenizer) == VRUST_OK);
  for (i = 0; i < 4; i++) start_thread(&threads[i], push_often, parser);
  for (i = 0; i < 4; i++) join_thread(threads[i]);
  CHECK(vrust_chat_parser_destroy(parser) == VRUST_OK);
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  VrustTokenizer *tokenizer = NULL;
  CHECK_OK(vrust_tokenizer_open(model, strlen(model), &tokenizer, &err));
  streams(tokenizer);
  plain(tokenizer);
  bad_arguments(tokenizer);
  at_once(tokenizer);
  return 0;
}
