/* demo: several prompts at once, on one engine, with their tokens as they come.
 *   demo [MODEL_FOLDER] [PROMPT...]
 *
 * It shows how a host uses vrust: create an engine, see it load, submit requests, drain all their
 * events through one queue, go on with a chat whose beginning is in the prefix cache, and read the
 * engine's figures. On a terminal each prompt has a line
 * of its own that grows; elsewhere each answer is printed when it is complete. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <vrust/vrust.h>

enum { MAX_PROMPTS = 16, MAX_ANSWER = 2048, MAX_CHAT = 16384, LINE = 100, ARENA = 1 << 18 };

/* What the follow-up says, to an engine that still has the chat's beginning in its cache. */
static const char FOLLOW_UP[] = "Thank you!";

/* One prompt, and what has come of it. */
typedef struct Stream {
  const char *prompt;
  const struct Stream *before; /* The turn that this one follows, or NULL. */
  char answer[MAX_ANSWER];
  size_t len;
  unsigned tokens;
  unsigned cached_tokens;
  unsigned prompt_tokens;
  double first_token_s;
  uint32_t finish_reason;
  int failed;
} Stream;

typedef struct Demo {
  VrustEngine *engine;
  VrustQueue *queue;
  Stream streams[MAX_PROMPTS + 1];
  size_t num_streams;
  size_t num_ended;
  uint64_t begin_ns, end_ns;
  uint64_t peak_blocks;
  size_t num_lines; /* Drawn so far, on a terminal. */
  int is_terminal;
} Demo;

static const char *const DEFAULT_PROMPTS[] = {
    "What is the capital of France?",
    "Tell me a short story about a river.",
    "How many days are in a week?",
    "What color is the sky?",
    "Say hello to a new friend.",
    "What do bees make?",
};

/* Ends the program when a call failed. */
static void check(VrustStatus status, VrustError *err) {
  if (status >= 0) return;
  fprintf(stderr, "demo: %s: %s\n", vrust_status_name(status), vrust_error_message(err, NULL));
  vrust_error_destroy(err);
  exit(1);
}

/* --- Output ------------------------------------------------------------------------------- */

/* One stream as one line: the prompt, then the end of its answer. */
static void print_line(const Stream *stream) {
  char shown[LINE + 1];
  size_t prompt_len = strlen(stream->prompt), room, from = 0, i;
  if (prompt_len > LINE / 2) prompt_len = LINE / 2;
  room = LINE - prompt_len - 2;
  if (stream->len > room) from = stream->len - room;
  /* Do not begin within a UTF-8 sequence. */
  while (from < stream->len && ((unsigned char)stream->answer[from] & 0xc0) == 0x80) from++;
  memcpy(shown, stream->answer + from, stream->len - from);
  shown[stream->len - from] = 0;
  for (i = 0; shown[i] != 0; i++) {
    if (shown[i] == '\n' || shown[i] == '\r' || shown[i] == '\t') shown[i] = ' ';
  }
  printf("\r\033[K\033[1m%.*s\033[0m %s\n", (int)prompt_len, stream->prompt, shown);
}

/* Draws every stream's line again, over the old ones. */
static void redraw(Demo *demo) {
  size_t i;
  if (demo->num_lines > 0) printf("\033[%dA", (int)demo->num_lines);
  for (i = 0; i < demo->num_streams; i++) print_line(&demo->streams[i]);
  demo->num_lines = demo->num_streams;
  fflush(stdout);
}

static const char *reason_name(uint32_t reason) {
  switch (reason) {
    case VRUST_FINISH_EOS:
    case VRUST_FINISH_STOP_TOKEN:
    case VRUST_FINISH_STOP_STRING: return "stop";
    case VRUST_FINISH_LENGTH: return "length";
    case VRUST_FINISH_ABORT: return "abort";
    default: return "error";
  }
}

static void print_whole(const Stream *stream) {
  printf("> %s\n%.*s\n  [%u tokens, %s]\n\n", stream->prompt, (int)stream->len, stream->answer,
         stream->tokens, reason_name(stream->finish_reason));
  fflush(stdout);
}

/* --- Events ------------------------------------------------------------------------------- */

/* Appends text to the answer, without the space that some tokenizers put before its first word. */
static void append(Stream *stream, const uint8_t *text, size_t len) {
  if (stream->len == 0 && len > 0 && text[0] == ' ') {
    text++;
    len--;
  }
  if (len > MAX_ANSWER - stream->len) len = MAX_ANSWER - stream->len;
  memcpy(stream->answer + stream->len, text, len);
  stream->len += len;
}

static void handle_event(Demo *demo, const VrustEvent *event, const uint8_t *arena) {
  Stream *stream;
  if (event->kind == VRUST_EVENT_LOAD) {
    if (demo->is_terminal) printf("\rloading %3.0f %%", 100.0 * (double)event->value);
    if (demo->is_terminal && event->value >= 1.0f) printf("\r\033[K");
    fflush(stdout);
    return;
  }
  if (event->request_id == 0) return;
  stream = &demo->streams[event->user_data];
  switch (event->kind) {
    case VRUST_EVENT_DELTA:
      append(stream, arena + event->text_offset, event->text_len);
      stream->tokens += event->num_tokens;
      break;
    case VRUST_EVENT_FINISHED:
      stream->finish_reason = event->finish_reason;
      stream->prompt_tokens = event->prompt_tokens;
      stream->cached_tokens = event->cached_tokens;
      if (event->first_token_ns != 0) {
        stream->first_token_s = (double)(event->first_token_ns - event->arrival_ns) / 1e9;
      }
      if (demo->begin_ns == 0 || event->arrival_ns < demo->begin_ns) {
        demo->begin_ns = event->arrival_ns;
      }
      if (event->last_token_ns > demo->end_ns) demo->end_ns = event->last_token_ns;
      break;
    case VRUST_EVENT_ERROR:
      append(stream, arena + event->text_offset, event->text_len);
      stream->failed = 1;
      break;
    default: break; /* A kind of a newer library. */
  }
  if (event->flags & VRUST_EVENT_LAST) {
    demo->num_ended++;
    if (!demo->is_terminal) print_whole(stream);
  }
}

static void note_blocks(Demo *demo) {
  VrustStats stats;
  VrustError *err = NULL;
  check(vrust_stats_get(demo->engine, &stats, sizeof stats, &err), err);
  if (stats.kv_blocks_used > demo->peak_blocks) demo->peak_blocks = stats.kv_blocks_used;
}

/* Drains the queue until every stream has ended. */
static void stream_all(Demo *demo) {
  static uint8_t arena[ARENA];
  VrustEvent events[64];
  if (demo->is_terminal) redraw(demo);
  while (demo->num_ended < demo->num_streams) {
    VrustError *err = NULL;
    size_t n = 0, n_bytes = 0, i;
    VrustStatus status = vrust_queue_poll(demo->queue, events, sizeof events[0], 64, arena,
                                          sizeof arena, -1, &n, &n_bytes, &err);
    check(status, err);
    if (status == VRUST_CLOSED) return;
    for (i = 0; i < n; i++) handle_event(demo, &events[i], arena);
    note_blocks(demo);
    if (demo->is_terminal) redraw(demo);
  }
}

/* --- The parts of main -------------------------------------------------------------------- */

static void load(Demo *demo, const char *model) {
  static uint8_t arena[4096];
  VrustEngineOptions options;
  VrustEvent events[8];
  VrustError *err = NULL;
  VrustStatus status;

  vrust_engine_options_init(&options, sizeof options);
  options.model = model;
  options.model_len = strlen(model);
  check(vrust_engine_create(&options, &demo->engine, &err), err);
  check(vrust_engine_default_queue(demo->engine, &demo->queue, &err), err);
  do { /* Show the LOAD events until the engine is ready. */
    size_t n = 0, n_bytes = 0, i;
    VrustStatus polled = vrust_queue_poll(demo->queue, events, sizeof events[0], 8, arena,
                                          sizeof arena, 50, &n, &n_bytes, &err);
    check(polled, err);
    for (i = 0; i < n; i++) handle_event(demo, &events[i], arena);
    status = vrust_engine_wait_ready(demo->engine, 0, &err);
    check(status, err);
  } while (status == VRUST_TIMEOUT);
}

/* A chat under construction, as JSON. */
typedef struct Chat {
  char json[MAX_CHAT];
  size_t len;
} Chat;

static void put(Chat *chat, const char *text) {
  size_t len = strlen(text);
  if (len > MAX_CHAT - chat->len) len = MAX_CHAT - chat->len;
  memcpy(chat->json + chat->len, text, len);
  chat->len += len;
}

/* Appends {"role":..,"content":..}, with the content's bytes escaped where JSON asks for it. */
static void put_message(Chat *chat, const char *role, const char *content, size_t len) {
  size_t i;
  put(chat, chat->len == 0 ? "[{\"role\":\"" : ",{\"role\":\"");
  put(chat, role);
  put(chat, "\",\"content\":\"");
  for (i = 0; i < len; i++) {
    char escaped[8] = {content[i], 0};
    unsigned char byte = (unsigned char)content[i];
    if (byte < 0x20 || byte == '"' || byte == '\\') snprintf(escaped, 8, "\\u%04x", byte);
    put(chat, escaped);
  }
  put(chat, "\"}");
}

/* Submits a stream's prompt: as a turn of a chat if the model has a template, else as text to go
 * on with. */
static void submit(Demo *demo, size_t index, int is_chat) {
  const Stream *stream = &demo->streams[index], *before = stream->before;
  VrustRequest request;
  VrustError *err = NULL;
  uint64_t id = 0;
  Chat chat;

  vrust_request_options_init(&request, sizeof request);
  request.input = stream->prompt;
  request.input_len = strlen(stream->prompt);
  if (is_chat) {
    chat.len = 0;
    if (before != NULL) {
      put_message(&chat, "user", before->prompt, strlen(before->prompt));
      put_message(&chat, "assistant", before->answer, before->len);
    }
    put_message(&chat, "user", stream->prompt, strlen(stream->prompt));
    put(&chat, "]");
    request.input = chat.json;
    request.input_len = chat.len;
    request.input_kind = VRUST_INPUT_CHAT_JSON;
  }
  request.user_data = index;
  request.max_tokens = 96;
  request.temperature = 0.0f;
  request.present = VRUST_REQUEST_HAS_MAX_TOKENS | VRUST_REQUEST_HAS_TEMPERATURE;
  check(vrust_submit(demo->engine, &request, &id, &err), err);
}

/* Goes on with the chat of the longest answer. */
static void follow_up(Demo *demo) {
  Stream *stream = &demo->streams[demo->num_streams];
  size_t i;
  stream->prompt = FOLLOW_UP;
  for (i = 0; i < demo->num_streams; i++) {
    const Stream *other = &demo->streams[i];
    if (stream->before == NULL || other->len > stream->before->len) stream->before = other;
  }
  submit(demo, demo->num_streams, 1);
  demo->num_streams++;
}

static int has_chat_template(const Demo *demo) {
  static const char HELLO[] = "[{\"role\":\"user\",\"content\":\"Hello\"}]";
  VrustTokenizer *tokenizer = NULL;
  VrustBytes *text = NULL;
  VrustError *err = NULL;
  VrustStatus status;
  check(vrust_engine_tokenizer(demo->engine, &tokenizer, &err), err);
  status = vrust_chat_render(tokenizer, HELLO, sizeof HELLO - 1, NULL, 0, NULL, 0,
                             VRUST_CHAT_GENERATION_PROMPT, &text, NULL);
  vrust_bytes_destroy(text);
  vrust_tokenizer_destroy(tokenizer);
  return status == VRUST_OK;
}

static int print_figures(const Demo *demo) {
  VrustStats stats;
  VrustError *err = NULL;
  double seconds = (double)(demo->end_ns - demo->begin_ns) / 1e9, first_token = 0.0;
  unsigned tokens = 0, cached = 0, prompt = 0;
  size_t i, failed = 0;
  for (i = 0; i < demo->num_streams; i++) {
    tokens += demo->streams[i].tokens;
    cached += demo->streams[i].cached_tokens;
    prompt += demo->streams[i].prompt_tokens;
    first_token += demo->streams[i].first_token_s / (double)demo->num_streams;
    failed += demo->streams[i].failed != 0;
  }
  check(vrust_stats_get(demo->engine, &stats, sizeof stats, &err), err);
  printf("%u tokens in %.2f s: %.0f tokens/s, first token after %.0f ms; KV blocks %u of %u used "
         "at most; prefix cache served %u of %u prompt tokens\n",
         tokens, seconds, seconds > 0.0 ? tokens / seconds : 0.0, 1e3 * first_token,
         (unsigned)demo->peak_blocks, (unsigned)stats.kv_blocks_total, cached, prompt);
  return failed == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
  static Demo demo;
  const char *model = argc > 1 ? argv[1] : "examples/demo-model";
  size_t num_default = sizeof DEFAULT_PROMPTS / sizeof DEFAULT_PROMPTS[0], i;
  int is_chat, result;

  demo.is_terminal = isatty(STDOUT_FILENO);
  demo.num_streams = argc > 2 ? (size_t)argc - 2 : num_default;
  if (demo.num_streams > MAX_PROMPTS) demo.num_streams = MAX_PROMPTS;
  for (i = 0; i < demo.num_streams; i++) {
    demo.streams[i].prompt = argc > 2 ? argv[i + 2] : DEFAULT_PROMPTS[i];
  }
  printf("vrust %s, %s, %d prompts at once\n", vrust_version_string(), model,
         (int)demo.num_streams);
  load(&demo, model);
  is_chat = has_chat_template(&demo);
  for (i = 0; i < demo.num_streams; i++) submit(&demo, i, is_chat);
  stream_all(&demo);
  if (is_chat) {
    follow_up(&demo);
    stream_all(&demo);
  }
  result = print_figures(&demo);
  vrust_queue_destroy(demo.queue);
  vrust_engine_destroy(demo.engine);
  return result;
}
