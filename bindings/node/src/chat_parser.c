/* A chat parser, as index.js holds it: an external that destroys it when it is collected. */

#include "vrust_node.h"

#include <stdlib.h>

/* What JavaScript's external points to; `handle` is NULL after close. */
typedef struct Parser {
  VrustChatParser *handle;
} Parser;

static void on_parser_dropped(napi_env env, void *data, void *hint) {
  Parser *parser = data;
  (void)env;
  (void)hint;
  vrust_chat_parser_destroy(parser->handle);
  free(parser);
}

static Parser *parser_of(napi_env env, napi_value value) {
  void *parser = NULL;
  if (napi_get_value_external(env, value, &parser) != napi_ok)
    napi_throw_type_error(env, NULL, "expected a chat parser");
  return parser;
}

/* An external for the handle, which it takes over. */
napi_value chat_parser_new(napi_env env, VrustChatParser *handle) {
  napi_value external = NULL;
  Parser *parser = malloc(sizeof *parser);
  if (parser != NULL) {
    parser->handle = handle;
    if (napi_create_external(env, parser, on_parser_dropped, NULL, &external) == napi_ok)
      return external;
    free(parser);
  }
  vrust_chat_parser_destroy(handle);
  return error_throw(env, VRUST_ERROR_OUT_OF_MEMORY, NULL);
}

/* chatParserInfo(parser): what it looks for, as JSON. */
napi_value chat_parser_info(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value value;
  VrustBytes *bytes = NULL;
  VrustError *error = NULL;
  napi_get_cb_info(env, info, &count, &value, NULL, NULL);
  Parser *parser = parser_of(env, value);
  if (parser == NULL) return NULL;
  VrustStatus status = vrust_chat_parser_info_json(parser->handle, &bytes, &error);
  return status < 0 ? error_throw(env, status, error) : take_bytes(env, bytes);
}

/* chatParserPush(parser, text): deltas as JSON. */
napi_value chat_parser_push(napi_env env, napi_callback_info info) {
  size_t count = 2, length;
  napi_value values[2];
  VrustBytes *bytes = NULL;
  VrustError *error = NULL;
  napi_get_cb_info(env, info, &count, values, NULL, NULL);
  Parser *parser = parser_of(env, values[0]);
  if (parser == NULL) return NULL;
  char *text = text_of(env, values[1], &length);
  if (text == NULL) return NULL;
  VrustStatus status = vrust_chat_parser_push(parser->handle, text, length, &bytes, &error);
  free(text);
  return status < 0 ? error_throw(env, status, error) : take_bytes(env, bytes);
}

/* chatParserFinish(parser): the last deltas as JSON. */
napi_value chat_parser_finish(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value value;
  VrustBytes *bytes = NULL;
  VrustError *error = NULL;
  napi_get_cb_info(env, info, &count, &value, NULL, NULL);
  Parser *parser = parser_of(env, value);
  if (parser == NULL) return NULL;
  VrustStatus status = vrust_chat_parser_finish(parser->handle, &bytes, &error);
  return status < 0 ? error_throw(env, status, error) : take_bytes(env, bytes);
}

/* chatParserClose(parser): gives its memory back; again, does nothing. */
napi_value chat_parser_close(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value value;
  napi_get_cb_info(env, info, &count, &value, NULL, NULL);
  Parser *parser = parser_of(env, value);
  if (parser == NULL) return NULL;
  vrust_chat_parser_destroy(parser->handle);
  parser->handle = NULL;
  return NULL;
}
