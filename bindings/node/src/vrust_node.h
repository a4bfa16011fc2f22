/* What the addon's files share: an engine as JavaScript holds it, and its pump thread.
 *
 *   index.js --open/submit/abort/close--> Core --C ABI--> engine
 *   index.js <--report(kind, value)-- on_report <--TSFN-- pump <--vrust_queue_poll-- queue
 */

#ifndef VRUST_NODE_H
#define VRUST_NODE_H

#include <node_api.h>
#include <pthread.h>
#include <stdbool.h>
#include <vrust/vrust.h>

#define NUM_TEXTS 4

/* What the pump has to tell JavaScript. */
typedef enum { REPORT_READY, REPORT_FAILED, REPORT_EVENTS, REPORT_CLOSED } Report;

/* One engine and its pump thread. Belongs to one napi_env. The external that JavaScript holds and
 * the threadsafe function own one reference each; both are dropped on the env's thread. */
typedef struct Core {
  VrustEngineOptions options; /* points into texts */
  char *texts[NUM_TEXTS];

  /* Written by the pump before its first report, constant afterwards. */
  VrustEngine *engine;
  VrustQueue *queue;

  /* The report that waits for JavaScript. The pump does not touch these while posted is set. */
  Report report;
  VrustEvent *events;
  uint8_t *arena;
  size_t arena_size, n_events;
  VrustStatus status; /* of REPORT_FAILED */
  VrustError *error;

  pthread_mutex_t lock; /* of the following three, and of engine while it is being created */
  bool posted;          /* a report waits */
  bool closing;         /* the pump shall end the engine */
  bool ended;           /* the env goes away: nobody takes reports any more */
  pthread_cond_t taken; /* posted or ended changed */

  /* Of the env's thread alone. */
  pthread_t thread;
  bool joined;
  VrustTokenizer *tokenizer; /* fetched at its first use */
  napi_threadsafe_function reports;
  unsigned live; /* requests, and a creation or an end under way: what keeps the process */
  unsigned references;
} Core;

/* core.c: life and thread. Env's thread only. */
Core *core_new(void);
void core_unref(Core *core);
napi_status core_start(napi_env env, Core *core, napi_value report);
void core_close(Core *core);
void core_hold(napi_env env, Core *core);
void core_let_go(napi_env env, Core *core);

/* options.c */
napi_value options_fields(napi_env env);
bool options_read(napi_env env, napi_value object, Core *core);

/* events.c: the events of a report as an array of objects. */
napi_value events_decode(napi_env env, Core *core);

/* chat_parser.c: functions for index.js; chat_parser_new is for addon.c. */
napi_value chat_parser_new(napi_env env, VrustChatParser *handle);
napi_value chat_parser_info(napi_env env, napi_callback_info info);
napi_value chat_parser_push(napi_env env, napi_callback_info info);
napi_value chat_parser_finish(napi_env env, napi_callback_info info);
napi_value chat_parser_close(napi_env env, napi_callback_info info);

/* values.c: helpers for values and errors. Those that return NULL or false have thrown. */
napi_value error_class_set(napi_env env, napi_callback_info info);
napi_value error_new(napi_env env, VrustStatus status, VrustError *error);
napi_value error_throw(napi_env env, VrustStatus status, VrustError *error);
char *text_of(napi_env env, napi_value value, size_t *length);
napi_value text_new(napi_env env, const void *text, size_t length);
napi_value number_new(napi_env env, double number);
napi_value take_bytes(napi_env env, VrustBytes *bytes);
void set(napi_env env, napi_value object, const char *name, napi_value value);

#endif
