/* VrustEngineOptions from a JavaScript object. index.js has checked names and ranges. */

#include "vrust_node.h"

#include <stddef.h>

typedef struct {
  const char *name;
  size_t offset;
  size_t size; /* bytes of the number; 0: a text */
} Field;

#define NUMBER(field) \
  { #field, offsetof(VrustEngineOptions, field), sizeof((VrustEngineOptions *)0)->field }
#define TEXT(field) \
  { #field, offsetof(VrustEngineOptions, field), 0 }

static const Field fields[] = {
    TEXT(model),
    TEXT(tokenizer),
    TEXT(chat_template),
    TEXT(extra_json),
    NUMBER(kv_cache_memory_bytes),
    NUMBER(max_undrained_bytes),
    NUMBER(seed),
    NUMBER(load_format),
    NUMBER(dtype),
    NUMBER(backend),
    NUMBER(scheduling_policy),
    NUMBER(max_model_len),
    NUMBER(max_num_seqs),
    NUMBER(max_num_batched_tokens),
    NUMBER(block_size),
    NUMBER(long_prefill_token_threshold),
    NUMBER(max_num_queued_reqs),
    NUMBER(max_logprobs),
    NUMBER(cpu_threads),
    NUMBER(tensor_parallel_size),
    NUMBER(enable_prefix_caching),
    NUMBER(enable_chunked_prefill),
    NUMBER(use_generation_config),
    NUMBER(skip_tokenizer),
};

enum { NUM_FIELDS = sizeof fields / sizeof *fields };

/* The fields' names, each with the bytes of its number, or 0 for a text. */
napi_value options_fields(napi_env env) {
  napi_value object;
  napi_create_object(env, &object);
  for (int i = 0; i < NUM_FIELDS; i++)
    set(env, object, fields[i].name, number_new(env, (double)fields[i].size));
  return object;
}

static bool read_field(napi_env env, napi_value value, const Field *field, Core *core,
                       int *num_texts) {
  char *at = (char *)&core->options + field->offset;
  if (field->size == 0) {
    size_t length;
    char *text = text_of(env, value, &length);
    if (text == NULL) return false;
    core->texts[(*num_texts)++] = text;
    *(const char **)at = text;
    /* In this struct a text's length follows its pointer. */
    *(size_t *)(at + sizeof(char *)) = length;
    return true;
  }
  int64_t number;
  if (napi_get_value_int64(env, value, &number) != napi_ok) {
    napi_throw_type_error(env, NULL, "expected a number");
    return false;
  }
  if (field->size == 8)
    *(uint64_t *)at = (uint64_t)number;
  else
    *(uint32_t *)at = (uint32_t)number;
  return true;
}

/* Fills core->options with defaults and what the object sets; false after throwing. */
bool options_read(napi_env env, napi_value object, Core *core) {
  int num_texts = 0;
  vrust_engine_options_init(&core->options, sizeof core->options);
  for (int i = 0; i < NUM_FIELDS; i++) {
    bool present = false;
    napi_value value;
    napi_has_named_property(env, object, fields[i].name, &present);
    if (!present) continue;
    if (napi_get_named_property(env, object, fields[i].name, &value) != napi_ok) return false;
    if (!read_field(env, value, &fields[i], core, &num_texts)) return false;
  }
  return true;
}
