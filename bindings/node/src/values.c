/* Helpers for JavaScript values and errors. */

#include "vrust_node.h"

#include <stdlib.h>

static void error_class_free(napi_env env, void *data, void *hint) {
  (void)hint;
  napi_delete_reference(env, data);
}

/* setErrorClass(VrustError): the class of what this addon throws, one for each env. */
napi_value error_class_set(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value class;
  napi_ref reference;
  napi_get_cb_info(env, info, &count, &class, NULL, NULL);
  if (napi_create_reference(env, class, 1, &reference) == napi_ok)
    napi_set_instance_data(env, reference, error_class_free, NULL);
  return NULL;
}

/* A VrustError of a status and an error, which is destroyed; `error` may be NULL. */
napi_value error_new(napi_env env, VrustStatus status, VrustError *error) {
  void *reference = NULL;
  napi_value class, result = NULL, arguments[5];
  size_t length;
  const char *message = vrust_error_message(error, &length);
  arguments[0] = text_new(env, message, length);
  arguments[1] = text_new(env, vrust_status_name(status), NAPI_AUTO_LENGTH);
  arguments[2] = number_new(env, status);
  napi_get_boolean(env, error != NULL && vrust_error_is_retryable(error), &arguments[3]);
  const char *detail = vrust_error_detail_json(error, &length);
  arguments[4] = text_new(env, detail, length);
  napi_get_instance_data(env, &reference);
  napi_get_reference_value(env, reference, &class);
  napi_new_instance(env, class, 5, arguments, &result);
  vrust_error_destroy(error);
  return result;
}

/* Throws it. Returns NULL, for callers to return. */
napi_value error_throw(napi_env env, VrustStatus status, VrustError *error) {
  napi_value thrown = error_new(env, status, error);
  if (thrown != NULL) napi_throw(env, thrown);
  return NULL;
}

/* A copy of a string, NUL-terminated, to be freed; NULL after throwing. */
char *text_of(napi_env env, napi_value value, size_t *length) {
  if (napi_get_value_string_utf8(env, value, NULL, 0, length) != napi_ok) {
    napi_throw_type_error(env, NULL, "expected a string");
    return NULL;
  }
  char *text = malloc(*length + 1);
  if (text == NULL) {
    error_throw(env, VRUST_ERROR_OUT_OF_MEMORY, NULL);
    return NULL;
  }
  napi_get_value_string_utf8(env, value, text, *length + 1, length);
  return text;
}

napi_value text_new(napi_env env, const void *text, size_t length) {
  napi_value value = NULL;
  napi_create_string_utf8(env, text, length, &value);
  return value;
}

napi_value number_new(napi_env env, double number) {
  napi_value value = NULL;
  napi_create_double(env, number, &value);
  return value;
}

/* The bytes as a string; they are destroyed. */
napi_value take_bytes(napi_env env, VrustBytes *bytes) {
  napi_value value = text_new(env, vrust_bytes_data(bytes), vrust_bytes_len(bytes));
  vrust_bytes_destroy(bytes);
  return value;
}

void set(napi_env env, napi_value object, const char *name, napi_value value) {
  if (value != NULL) napi_set_named_property(env, object, name, value);
}
