/* An engine's life: the pump thread creates it, drains its queue and ends it. */

#include "vrust_node.h"

#include <stdlib.h>

enum { NUM_EVENTS = 256, ARENA_SIZE = 1 << 18 };

/* A core with one reference; NULL without memory. */
Core *core_new(void) {
  Core *core = calloc(1, sizeof *core);
  if (core == NULL) return NULL;
  core->events = malloc(NUM_EVENTS * sizeof *core->events);
  core->arena = malloc(ARENA_SIZE);
  core->arena_size = ARENA_SIZE;
  core->references = 1;
  core->joined = true; /* there is no thread yet */
  pthread_mutex_init(&core->lock, NULL);
  pthread_cond_init(&core->taken, NULL);
  if (core->events != NULL && core->arena != NULL) return core;
  core_unref(core);
  return NULL;
}

/* Drops a reference; the last one frees the core, whose thread has been joined by then. */
void core_unref(Core *core) {
  if (--core->references != 0) return;
  vrust_tokenizer_destroy(core->tokenizer);
  vrust_queue_destroy(core->queue);
  vrust_error_destroy(core->error);
  for (int i = 0; i < NUM_TEXTS; i++) free(core->texts[i]);
  free(core->events);
  free(core->arena);
  pthread_cond_destroy(&core->taken);
  pthread_mutex_destroy(&core->lock);
  free(core);
}

/* Counts what the process must not exit before. */
void core_hold(napi_env env, Core *core) {
  if (core->live++ == 0) napi_ref_threadsafe_function(env, core->reports);
}

void core_let_go(napi_env env, Core *core) {
  if (--core->live == 0) napi_unref_threadsafe_function(env, core->reports);
}

/* Hands a report to JavaScript and waits until it is taken, so that there is never a second one
 * and the engine merges what comes meanwhile. False when nobody will take any more. */
static bool post(Core *core, Report report) {
  pthread_mutex_lock(&core->lock);
  core->report = report;
  core->posted = true;
  bool going = !core->ended;
  pthread_mutex_unlock(&core->lock);
  /* The env's end joins this thread before it releases the function: the call is safe. */
  if (!going || napi_call_threadsafe_function(core->reports, NULL, napi_tsfn_nonblocking))
    return false;
  pthread_mutex_lock(&core->lock);
  while (core->posted && !core->ended) pthread_cond_wait(&core->taken, &core->lock);
  going = !core->ended;
  pthread_mutex_unlock(&core->lock);
  return going;
}

/* Creates the engine and waits until it has loaded; false with core->status set. */
static bool start(Core *core) {
  VrustEngine *engine = NULL;
  core->status = vrust_engine_create(&core->options, &engine, &core->error);
  if (core->status < 0) return false;
  pthread_mutex_lock(&core->lock);
  core->engine = engine;
  bool ended = core->ended;
  pthread_mutex_unlock(&core->lock);
  if (ended) return false; /* too early for the env's end to have seen the engine */
  core->status = vrust_engine_wait_ready(engine, -1, &core->error);
  if (core->status < 0) return false;
  core->status = vrust_engine_default_queue(engine, &core->queue, &core->error);
  return core->status >= 0;
}

static bool grow(Core *core, size_t size) {
  uint8_t *arena = realloc(core->arena, size);
  if (arena == NULL) return false;
  core->arena = arena;
  core->arena_size = size;
  return true;
}

/* Waits for events; false when none will come. */
static bool drain(Core *core) {
  for (;;) {
    size_t n_bytes = 0;
    pthread_mutex_lock(&core->lock);
    bool closing = core->closing;
    core->closing = false;
    pthread_mutex_unlock(&core->lock);
    /* Here, not on the env's thread, which must not wait for the end of a step. */
    if (closing) vrust_engine_destroy(core->engine);
    VrustStatus status =
        vrust_queue_poll(core->queue, core->events, sizeof *core->events, NUM_EVENTS, core->arena,
                         core->arena_size, -1, &core->n_events, &n_bytes, NULL);
    if (status == VRUST_OK || status == VRUST_TRUNCATED) return true;
    if (status == VRUST_ERROR_BUFFER_TOO_SMALL && grow(core, n_bytes)) continue;
    if (status != VRUST_TIMEOUT) return false;
  }
}

static void *pump(void *data) {
  Core *core = data;
  bool started = start(core);
  bool going = started && post(core, REPORT_READY);
  while (going && drain(core)) going = post(core, REPORT_EVENTS);
  vrust_engine_destroy(core->engine);
  post(core, started ? REPORT_CLOSED : REPORT_FAILED);
  return NULL;
}

static void join(Core *core) {
  if (!core->joined) pthread_join(core->thread, NULL);
  core->joined = true;
}

/* The env goes away, with the process or a worker: end the engine and the thread first. */
static void on_env_end(void *data) {
  Core *core = data;
  pthread_mutex_lock(&core->lock);
  core->ended = true;
  VrustEngine *engine = core->engine;
  pthread_cond_signal(&core->taken);
  pthread_mutex_unlock(&core->lock);
  vrust_engine_destroy(engine); /* ends a load, and closes the queue that the pump waits for */
  join(core);
  napi_release_threadsafe_function(core->reports, napi_tsfn_abort);
}

/* Runs on the env's thread for each report: makes its value, frees the pump, calls index.js. */
static void on_report(napi_env env, napi_value callback, void *context, void *data) {
  static const char *const names[] = {"ready", "failed", "events", "closed"};
  Core *core = context;
  napi_value arguments[2], undefined;
  (void)data;
  if (env == NULL) return; /* the env's end frees the pump */
  Report report = core->report;
  bool final = report == REPORT_FAILED || report == REPORT_CLOSED;
  napi_get_undefined(env, &undefined);
  arguments[0] = text_new(env, names[report], NAPI_AUTO_LENGTH);
  arguments[1] = undefined;
  if (report == REPORT_READY) core_let_go(env, core);
  if (report == REPORT_EVENTS) arguments[1] = events_decode(env, core);
  if (report == REPORT_FAILED) {
    arguments[1] = error_new(env, core->status, core->error);
    core->error = NULL;
  }
  pthread_mutex_lock(&core->lock);
  core->posted = false;
  pthread_cond_signal(&core->taken);
  pthread_mutex_unlock(&core->lock);
  if (final) {
    join(core);
    napi_remove_env_cleanup_hook(env, on_env_end, core);
    napi_release_threadsafe_function(core->reports, napi_tsfn_release);
  }
  napi_call_function(env, undefined, callback, 2, arguments, NULL);
}

static void on_released(napi_env env, void *data, void *hint) {
  (void)env;
  (void)hint;
  core_unref(data);
}

/* Starts the pump, which tells `report` what happens. Takes a reference until it has ended. */
napi_status core_start(napi_env env, Core *core, napi_value report) {
  napi_value name = text_new(env, "vrust", NAPI_AUTO_LENGTH);
  napi_status status =
      napi_create_threadsafe_function(env, report, NULL, name, 0, 1, core, on_released, core,
                                      on_report, &core->reports);
  if (status != napi_ok) return status;
  core->references++;
  core->live = 1; /* the creation */
  if (pthread_create(&core->thread, NULL, pump, core) != 0) {
    napi_release_threadsafe_function(core->reports, napi_tsfn_abort);
    return napi_generic_failure;
  }
  core->joined = false;
  /* After the function's own hook, hence before it at the env's end. */
  napi_add_env_cleanup_hook(env, on_env_end, core);
  return napi_ok;
}

/* Makes the pump end the engine. Returns at once; nothing when it has ended. */
void core_close(Core *core) {
  if (core->joined) return;
  pthread_mutex_lock(&core->lock);
  core->closing = true;
  pthread_mutex_unlock(&core->lock);
  vrust_queue_wake(core->queue, NULL);
}
