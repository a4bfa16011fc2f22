/* Events as JavaScript objects. */

#include "vrust_node.h"

static napi_value tokens_new(napi_env env, const VrustEvent *event, const uint8_t *arena) {
  const uint32_t *tokens = (const uint32_t *)(arena + event->tokens_offset);
  napi_value array;
  napi_create_array_with_length(env, event->num_tokens, &array);
  for (uint32_t i = 0; i < event->num_tokens; i++)
    napi_set_element(env, array, i, number_new(env, tokens[i]));
  return array;
}

/* One list for each place, empty where there are no records. */
static napi_value logprobs_new(napi_env env, const VrustEvent *event, const uint8_t *arena) {
  const VrustLogprob *records = (const VrustLogprob *)(arena + event->logprobs_offset);
  napi_value places, place = NULL;
  uint32_t num_places = 0, in_place = 0;
  napi_create_array(env, &places);
  for (uint32_t i = 0; i < event->num_logprobs; i++) {
    napi_value record;
    while (num_places <= records[i].position) {
      napi_create_array(env, &place);
      napi_set_element(env, places, num_places++, place);
      in_place = 0;
    }
    napi_create_object(env, &record);
    set(env, record, "tokenId", number_new(env, records[i].token_id));
    set(env, record, "logprob", number_new(env, (double)records[i].logprob));
    set(env, record, "rank", number_new(env, records[i].rank));
    napi_set_element(env, place, in_place++, record);
  }
  return places;
}

static const char *finish_name(uint32_t reason) {
  switch (reason) {
    case VRUST_FINISH_EOS:
    case VRUST_FINISH_STOP_TOKEN:
    case VRUST_FINISH_STOP_STRING:
      return "stop";
    case VRUST_FINISH_LENGTH:
      return "length";
    case VRUST_FINISH_ABORT:
      return "abort";
    case VRUST_FINISH_DEADLINE:
      return "deadline";
    default:
      return "unknown";
  }
}

static void set_finish(napi_env env, napi_value delta, const VrustEvent *event,
                       const uint8_t *arena) {
  napi_value stop;
  napi_get_null(env, &stop);
  if (event->finish_reason == VRUST_FINISH_STOP_TOKEN)
    stop = number_new(env, event->stop_token_id);
  if (event->finish_reason == VRUST_FINISH_STOP_STRING)
    stop = text_new(env, arena + event->detail_offset, event->detail_len);
  set(env, delta, "finishReason",
      text_new(env, finish_name(event->finish_reason), NAPI_AUTO_LENGTH));
  set(env, delta, "stopReason", stop);
  set(env, delta, "promptTokens", number_new(env, event->prompt_tokens));
  set(env, delta, "cachedTokens", number_new(env, event->cached_tokens));
  set(env, delta, "completionTokens", number_new(env, event->completion_tokens));
  set(env, delta, "cumulativeLogprob", number_new(env, (double)event->value));
}

static napi_value delta_new(napi_env env, const VrustEvent *event, const uint8_t *arena) {
  napi_value delta, is_prompt;
  napi_create_object(env, &delta);
  set(env, delta, "choice", number_new(env, event->choice));
  set(env, delta, "text", text_new(env, arena + event->text_offset, event->text_len));
  set(env, delta, "tokenIds", tokens_new(env, event, arena));
  set(env, delta, "logprobs", logprobs_new(env, event, arena));
  napi_get_boolean(env, event->kind == VRUST_EVENT_PROMPT, &is_prompt);
  set(env, delta, "isPrompt", is_prompt);
  if (event->kind == VRUST_EVENT_FINISHED) set_finish(env, delta, event, arena);
  return delta;
}

/* { status, code, message, detail } of a request that failed; index.js makes the error. */
static napi_value failure_new(napi_env env, const VrustEvent *event, const uint8_t *arena) {
  napi_value failure;
  napi_create_object(env, &failure);
  set(env, failure, "status", number_new(env, event->status));
  set(env, failure, "code", text_new(env, vrust_status_name(event->status), NAPI_AUTO_LENGTH));
  set(env, failure, "message", text_new(env, arena + event->text_offset, event->text_len));
  set(env, failure, "detail", text_new(env, arena + event->detail_offset, event->detail_len));
  return failure;
}

/* [{ key, last, delta?, failure? }, ..]: the requests' events, in order. */
napi_value events_decode(napi_env env, Core *core) {
  napi_value array;
  uint32_t count = 0;
  napi_create_array(env, &array);
  for (size_t i = 0; i < core->n_events; i++) {
    const VrustEvent *event = &core->events[i];
    napi_handle_scope scope;
    napi_value object, last;
    if (event->request_id == 0) continue;
    napi_open_handle_scope(env, &scope);
    napi_create_object(env, &object);
    set(env, object, "key", number_new(env, (double)event->user_data));
    napi_get_boolean(env, (event->flags & VRUST_EVENT_LAST) != 0, &last);
    set(env, object, "last", last);
    if (event->kind == VRUST_EVENT_ERROR)
      set(env, object, "failure", failure_new(env, event, core->arena));
    else if (event->kind <= VRUST_EVENT_FINISHED)
      set(env, object, "delta", delta_new(env, event, core->arena));
    napi_set_element(env, array, count++, object);
    napi_close_handle_scope(env, scope);
    if (event->flags & VRUST_EVENT_LAST) core_let_go(env, core);
  }
  return array;
}
