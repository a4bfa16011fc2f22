/* stress: many threads submit, some requests are aborted, queues come and go, engines are
 * destroyed under load. Everything accepted ends exactly once, and the memory comes back.
 *   stress MODEL_FOLDER [REQUESTS [THREADS [ROUNDS]]]      (default 200 requests, 8 threads)
 * `tests/c/run.sh stress` runs it with 1,000 requests from 64 threads. */

#include "harness.h"

#include <unistd.h>

enum { MAX_THREADS = 64 };

typedef struct Stress {
  VrustEngine *engine;
  VrustQueue *queue;
  unsigned num_requests, num_threads;
  pthread_mutex_t lock;
  unsigned next;      /* Request to submit next. */
  unsigned accepted;  /* Of these, requests of the default queue. */
  unsigned elsewhere; /* Requests of queues of their own, which are destroyed early. */
  unsigned aborted, ended, finished;
  double running_sum;
  unsigned running_samples, running_most;
  int all_submitted;
} Stress;

typedef struct Submitter {
  Stress *stress;
  unsigned seed;
} Submitter;

static unsigned next_random(unsigned *seed) {
  *seed = *seed * 1664525u + 1013904223u;
  return *seed >> 8;
}

/* Submits one request, again while the waiting queue is full. */
static uint64_t submit_one(Stress *stress, VrustQueue *queue, unsigned number, unsigned *seed) {
  char prompt[96];
  VrustRequest request;
  uint64_t id = 0;
  snprintf(prompt, sizeof prompt, "Request %u of kind %u: tell me about it.", number % 50,
           next_random(seed) % 7);
  request = text_request(prompt, 8 + next_random(seed) % 56);
  request.queue = queue;
  request.user_data = number;
  request.present |= VRUST_REQUEST_HAS_SEED;
  request.temperature = number % 2 ? 1.0f : 0.0f;
  request.seed = (int64_t)number;
  if (number % 97 == 0) request.deadline_ms = 5;
  for (;;) {
    VrustError *err = NULL;
    VrustStatus status = vrust_submit(stress->engine, &request, &id, &err);
    if (status == VRUST_OK) return id;
    if (vrust_error_code(err) != VRUST_ERROR_QUEUE_FULL) {
      fprintf(stderr, "submit: %s\n", vrust_error_message(err, NULL));
      exit(1);
    }
    CHECK(vrust_error_is_retryable(err) == 1);
    CHECK(vrust_error_destroy(err) == VRUST_OK);
    sleep_ms(2);
  }
}

static void *submit_share(void *argument) {
  Submitter *me = (Submitter *)argument;
  Stress *stress = me->stress;
  for (;;) {
    unsigned number, own_queue = next_random(&me->seed) % 20 == 0;
    uint64_t id;
    VrustQueue *queue = NULL;
    pthread_mutex_lock(&stress->lock);
    number = stress->next++;
    pthread_mutex_unlock(&stress->lock);
    if (number >= stress->num_requests) return NULL;
    if (own_queue) CHECK_OK(vrust_queue_create(stress->engine, NULL, &queue, &err));
    id = submit_one(stress, queue, number, &me->seed);
    if (own_queue) {
      if (next_random(&me->seed) % 2 == 0) sleep_ms(1);
      CHECK(vrust_queue_destroy(queue) == VRUST_OK);
    } else if (next_random(&me->seed) % 8 == 0) {
      if (next_random(&me->seed) % 2 == 0) sleep_ms(3);
      CHECK_OK(vrust_abort(stress->engine, id, &err));
    }
    pthread_mutex_lock(&stress->lock);
    stress->elsewhere += own_queue;
    stress->accepted += !own_queue;
    pthread_mutex_unlock(&stress->lock);
  }
}

static void sample(Stress *stress) {
  VrustStats stats;
  CHECK_OK(vrust_stats_get(stress->engine, &stats, sizeof stats, &err));
  if (stats.num_requests_running == 0) return;
  stress->running_sum += (double)stats.num_requests_running;
  stress->running_samples++;
  if (stats.num_requests_running > stress->running_most) {
    stress->running_most = (unsigned)stats.num_requests_running;
  }
}

/* Drains the default queue until everything of it has ended. */
static void *drain_all(void *argument) {
  Stress *stress = (Stress *)argument;
  static uint8_t arena[ARENA];
  unsigned char *seen = (unsigned char *)calloc(stress->num_requests, 1);
  VrustEvent events[256];
  CHECK(seen != NULL);
  for (;;) {
    size_t n = 0, b = 0, i;
    int done;
    VrustStatus status = vrust_queue_poll(stress->queue, events, sizeof events[0], 256, arena,
                                          sizeof arena, 100, &n, &b, NULL);
    CHECK(status >= 0 && status != VRUST_CLOSED);
    for (i = 0; i < n; i++) {
      const VrustEvent *event = &events[i];
      if (event->request_id == 0) continue;
      CHECK(event->kind != VRUST_EVENT_ERROR && !seen[event->user_data]);
      if (event->kind == VRUST_EVENT_FINISHED) {
        stress->finished++;
        stress->aborted += event->finish_reason >= VRUST_FINISH_ABORT;
      }
      if (event->flags & VRUST_EVENT_LAST) {
        seen[event->user_data] = 1;
        stress->ended++;
      }
    }
    sample(stress);
    pthread_mutex_lock(&stress->lock);
    done = stress->all_submitted && stress->ended == stress->accepted;
    pthread_mutex_unlock(&stress->lock);
    if (done) break;
  }
  free(seen);
  return NULL;
}

/* Resident memory of this process, in MiB. */
static double resident_mib(void) {
  long pages = 0, ignored = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL && fscanf(file, "%ld %ld", &ignored, &pages) == 2);
  fclose(file);
  return (double)pages * (double)sysconf(_SC_PAGESIZE) / (1024.0 * 1024.0);
}

static VrustEngine *stress_engine(const char *model) {
  VrustEngineOptions options = engine_options(model);
  VrustEngine *engine = NULL;
  options.cpu_threads = 0;
  options.kv_cache_memory_bytes = 64u << 20;
  CHECK_OK(vrust_engine_create(&options, &engine, &err));
  CHECK_OK(vrust_engine_wait_ready(engine, -1, &err));
  return engine;
}

static double run_round(const char *model, Stress *stress) {
  pthread_t threads[MAX_THREADS], drainer;
  Submitter submitters[MAX_THREADS];
  VrustStats stats;
  double peak;
  unsigned i;
  stress->engine = stress_engine(model);
  stress->queue = default_queue(stress->engine);
  CHECK(pthread_mutex_init(&stress->lock, NULL) == 0);
  start_thread(&drainer, drain_all, stress);
  for (i = 0; i < stress->num_threads; i++) {
    submitters[i].stress = stress;
    submitters[i].seed = 12345 + i;
    start_thread(&threads[i], submit_share, &submitters[i]);
  }
  for (i = 0; i < stress->num_threads; i++) join_thread(threads[i]);
  pthread_mutex_lock(&stress->lock);
  stress->all_submitted = 1;
  pthread_mutex_unlock(&stress->lock);
  join_thread(drainer);
  peak = resident_mib();
  CHECK(stress->accepted + stress->elsewhere == stress->num_requests);
  CHECK(stress->ended == stress->accepted && stress->finished == stress->accepted);
  CHECK_OK(vrust_engine_shutdown(stress->engine, VRUST_SHUTDOWN_DRAIN, -1, &err));
  CHECK_OK(vrust_stats_get(stress->engine, &stats, sizeof stats, &err));
  CHECK(stats.live_requests == 0 && stats.kv_blocks_used == 0 && stats.undrained_bytes == 0);
  CHECK(vrust_engine_destroy(stress->engine) == VRUST_OK);
  CHECK(vrust_queue_destroy(stress->queue) == VRUST_OK);
  pthread_mutex_destroy(&stress->lock);
  return peak;
}

int main(int argc, char **argv) {
  const char *model = model_folder(argc, argv);
  unsigned rounds = argc > 4 ? (unsigned)atoi(argv[4]) : 2, round;
  double before = resident_mib(), after_first = 0.0;
  for (round = 0; round < rounds; round++) {
    Stress stress;
    double peak, after;
    memset(&stress, 0, sizeof stress);
    stress.num_requests = argc > 2 ? (unsigned)atoi(argv[2]) : 200;
    stress.num_threads = argc > 3 ? (unsigned)atoi(argv[3]) : 8;
    CHECK(stress.num_requests > 0 && stress.num_threads > 0 && stress.num_threads <= MAX_THREADS);
    peak = run_round(model, &stress);
    after = resident_mib();
    if (round == 0) after_first = after;
    printf("%u requests from %u threads: %u ended (%u aborted), %u left with their queue; "
           "running together: %.1f on average, %u at most; RSS %.0f MiB before, %.0f with the "
           "engine, %.0f after it\n",
           stress.num_requests, stress.num_threads, stress.ended, stress.aborted,
           stress.elsewhere, stress.running_sum / (stress.running_samples + 1e-9),
           stress.running_most, before, peak, after);
    /* A later round may not leave more than the first; checkers keep freed memory for a while. */
    if (getenv("VRUST_TEST_UNDER_CHECKER") == NULL) CHECK(after < after_first + 16.0);
  }
  return 0;
}
