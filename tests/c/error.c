/* error: objects, their accessors, and misuse of them. */

#include "harness.h"

int main(void) {
  VrustError *err = NULL;
  VrustError *untouched = (VrustError *)0x1234;
  size_t len = 99;
  int i;

  CHECK(vrust_engine_create(NULL, NULL, &err) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(vrust_error_code(err) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(strcmp(vrust_error_message(err, &len), "engine_out: must not be NULL") == 0);
  CHECK(len == strlen("engine_out: must not be NULL"));
  CHECK(strcmp(vrust_error_detail_json(err, &len), "{\"field\":\"engine_out\"}") == 0);
  CHECK(len == strlen("{\"field\":\"engine_out\"}"));
  CHECK(vrust_error_is_retryable(err) == 0);
  CHECK(vrust_error_destroy(err) == VRUST_OK);

  /* Stale, NULL, foreign and made up. */
  CHECK(vrust_error_destroy(err) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(vrust_error_code(err) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(strcmp(vrust_error_message(err, &len), "") == 0 && len == 0);
  CHECK(strcmp(vrust_error_detail_json(err, NULL), "{}") == 0);
  CHECK(vrust_error_destroy(NULL) == VRUST_OK);
  CHECK(vrust_error_code(NULL) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(strcmp(vrust_error_message(NULL, NULL), "") == 0);
  CHECK(vrust_error_code(untouched) == VRUST_ERROR_INVALID_ARGUMENT);
  CHECK(vrust_error_is_retryable((VrustError *)&len) == 0);

  /* No error is written on success, and none is needed on failure. */
  err = untouched;
  CHECK(vrust_log_set(VRUST_LOG_OFF, NULL, NULL, &err) == VRUST_OK && err == untouched);
  CHECK(vrust_engine_create(NULL, NULL, NULL) == VRUST_ERROR_INVALID_ARGUMENT);

  /* A slot that is used again does not revive an old handle. */
  err = NULL;
  CHECK(vrust_abort(NULL, 1, &err) == VRUST_ERROR_INVALID_ARGUMENT);
  for (i = 0; i < 1000; i++) {
    VrustError *next = NULL;
    CHECK(vrust_error_destroy(err) == VRUST_OK);
    CHECK(vrust_abort(NULL, 1, &next) == VRUST_ERROR_INVALID_ARGUMENT);
    CHECK(next != err && vrust_error_destroy(err) == VRUST_ERROR_INVALID_ARGUMENT);
    err = next;
  }
  CHECK(vrust_error_destroy(err) == VRUST_OK);

  /* Bytes. */
  CHECK(vrust_bytes_data(NULL) == NULL && vrust_bytes_len(NULL) == 0);
  CHECK(vrust_bytes_destroy(NULL) == VRUST_OK);
  CHECK(vrust_bytes_destroy((VrustBytes *)err) == VRUST_ERROR_INVALID_ARGUMENT);
  return 0;
}
