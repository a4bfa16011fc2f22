// Streams, events, captures and graphs.
#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "driver.h"

using namespace standin;

namespace {

double seconds() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// Captures that this thread began and did not end.
thread_local std::vector<std::shared_ptr<Capture>> open_captures;

constexpr int kRelaxed = 2;

}  // namespace

bool standin::spoils_capture() {
  bool any = false;
  for (auto& capture : open_captures) {
    if (capture->mode == kRelaxed) continue;
    capture->invalid = true;
    any = true;
  }
  return any;
}

void standin::drain() {
  State& s = state();
  while (!s.queue.empty()) {
    Operation next = std::move(s.queue.front());
    s.queue.pop_front();
    if (!s.lost) next();
  }
}

Stream* standin::stream_of(void* handle) {
  State& s = state();
  // 0, 1 and 2 are the default streams.
  if (reinterpret_cast<uintptr_t>(handle) <= 2) return &s.null_stream;
  Stream* stream = static_cast<Stream*>(handle);
  return s.streams.count(stream) ? stream : nullptr;
}

Result standin::enqueue(void* handle, Operation operation) {
  State& s = state();
  Stream* stream = stream_of(handle);
  if (!stream) return kInvalidHandle;
  s.counts.threads.insert(std::this_thread::get_id());
  if (stream->capture) {
    stream->capture->operations.push_back(std::move(operation));
    return kSuccess;
  }
  s.queue.push_back(std::move(operation));
  if (!s.options.lazy) drain();
  return kSuccess;
}

// For the other stand-ins: work as a function and its data, which `drop` frees when nobody needs
// it.
EXPORT Result vrust_emu_enqueue(void* stream, void (*run)(void*), void (*drop)(void*),
                                void* data) {
  ENTER_CONTEXT();
  if (strikes(Fault::kLaunch)) return kOutOfResources;
  std::shared_ptr<void> owned(data, drop);
  return enqueue(stream, [=] { run(owned.get()); });
}
EXPORT int vrust_emu_is_device(const void* p, size_t bytes) {
  ENTER_ANY();
  return in_device(reinterpret_cast<Pointer>(p), bytes);
}

EXPORT Result cuStreamCreateWithPriority(void** stream, unsigned, int) {
  ENTER_CONTEXT();
  Stream* s = new Stream;
  state().streams.insert(s);
  *stream = s;
  return kSuccess;
}
EXPORT Result cuStreamCreate(void** stream, unsigned flags) {
  return cuStreamCreateWithPriority(stream, flags, 0);
}
EXPORT Result cuStreamDestroy_v2(void* stream) {
  ENTER_ANY();
  Stream* s = static_cast<Stream*>(stream);
  if (state().streams.erase(s) == 0) return kInvalidHandle;
  drain();
  delete s;
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuStreamSynchronize(void* stream) {
  ENTER_CONTEXT();
  Stream* s = stream_of(stream);
  if (!s) return kInvalidHandle;
  if (s->capture) {
    s->capture->invalid = true;
    return kCaptureUnsupported;
  }
  state().counts.waits++;
  if (strikes(Fault::kSync)) return kUnknown;
  drain();
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuStreamQuery(void* stream) {
  ENTER_CONTEXT();
  if (!stream_of(stream)) return kInvalidHandle;
  if (state().queue.empty()) return kSuccess;
  drain();
  return kNotReady;
}
EXPORT Result cuStreamWaitEvent(void* stream, void* event, unsigned) {
  ENTER_CONTEXT();
  Stream* s = stream_of(stream);
  Event* e = static_cast<Event*>(event);
  if (!s || !state().events.count(e)) return kInvalidHandle;
  // A stream that waits for an event of a capture joins that capture.
  if (e->capture && !s->capture) s->capture = e->capture;
  return kSuccess;
}
EXPORT Result cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  ENTER_CONTEXT();
  return enqueue(stream, [=] { function(data); });
}

EXPORT Result cuEventCreate(void** event, unsigned) {
  ENTER_CONTEXT();
  Event* e = new Event;
  state().events.insert(e);
  *event = e;
  return kSuccess;
}
EXPORT Result cuEventDestroy_v2(void* event) {
  ENTER_ANY();
  Event* e = static_cast<Event*>(event);
  if (!state().events.count(e)) return kInvalidHandle;
  drain();
  state().events.erase(e);
  delete e;
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuEventRecord(void* event, void* stream) {
  ENTER_CONTEXT();
  Event* e = static_cast<Event*>(event);
  Stream* s = stream_of(stream);
  if (!s || !state().events.count(e)) return kInvalidHandle;
  e->capture = s->capture;
  if (s->capture) return kSuccess;
  e->pending = true;
  return enqueue(stream, [e] {
    e->time = seconds();
    e->pending = false;
  });
}
EXPORT Result cuEventSynchronize(void* event) {
  ENTER_CONTEXT();
  Event* e = static_cast<Event*>(event);
  if (!state().events.count(e)) return kInvalidHandle;
  state().counts.waits++;
  if (strikes(Fault::kSync)) return kUnknown;
  // What was added after the event stays: nobody has waited for it.
  State& s = state();
  while (e->pending && !s.queue.empty()) {
    Operation next = std::move(s.queue.front());
    s.queue.pop_front();
    if (!s.lost) next();
  }
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuEventQuery(void* event) {
  ENTER_CONTEXT();
  Event* e = static_cast<Event*>(event);
  if (!state().events.count(e)) return kInvalidHandle;
  if (!e->pending) return kSuccess;
  drain();
  return state().lost ? kLaunchFailed : kNotReady;
}
EXPORT Result cuEventElapsedTime_v2(float* ms, void* start, void* end) {
  ENTER_CONTEXT();
  Event *a = static_cast<Event*>(start), *b = static_cast<Event*>(end);
  if (!state().events.count(a) || !state().events.count(b)) return kInvalidHandle;
  if (a->pending || b->pending) return kNotReady;
  *ms = static_cast<float>((b->time - a->time) * 1e3);
  return kSuccess;
}
EXPORT Result cuEventElapsedTime(float* ms, void* start, void* end) {
  return cuEventElapsedTime_v2(ms, start, end);
}

EXPORT Result cuStreamBeginCapture_v2(void* stream, int mode) {
  ENTER_CONTEXT();
  Stream* s = stream_of(stream);
  if (!s) return kInvalidHandle;
  if (s == &state().null_stream || s->capture) return kIllegalState;
  s->capture = std::make_shared<Capture>();
  s->capture->mode = mode;
  s->began = true;
  open_captures.push_back(s->capture);
  return kSuccess;
}
EXPORT Result cuStreamIsCapturing(void* stream, int* status) {
  ENTER_CONTEXT();
  Stream* s = stream_of(stream);
  if (!s) return kInvalidHandle;
  *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1;
  return kSuccess;
}
EXPORT Result cuStreamEndCapture(void* stream, void** graph) {
  ENTER_ANY();
  Stream* s = stream_of(stream);
  *graph = nullptr;
  if (!s || !s->capture || !s->began) return kIllegalState;
  std::shared_ptr<Capture> capture = s->capture;
  for (Stream* other : state().streams) {
    if (other->capture == capture) other->capture = nullptr;
  }
  s->began = false;
  auto& open = open_captures;
  open.erase(std::remove(open.begin(), open.end(), capture), open.end());
  if (capture->invalid) return kCaptureInvalidated;
  if (state().lost) return kLaunchFailed;
  Graph* g = new Graph{std::move(capture->operations)};
  state().graphs.insert(g);
  *graph = g;
  return kSuccess;
}
EXPORT Result cuThreadExchangeStreamCaptureMode(int* mode) {
  *mode = 0;
  return kSuccess;
}
EXPORT Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  ENTER_CONTEXT();
  Graph* g = static_cast<Graph*>(graph);
  if (!state().graphs.count(g)) return kInvalidHandle;
  if (strikes(Fault::kAlloc)) return kOutOfMemory;
  Graph* copy = new Graph(*g);
  state().graphs.insert(copy);
  *executable = copy;
  return kSuccess;
}
EXPORT Result cuGraphGetNodes(void* graph, void**, size_t* count) {
  ENTER_CONTEXT();
  Graph* g = static_cast<Graph*>(graph);
  if (!state().graphs.count(g)) return kInvalidHandle;
  *count = g->operations.size();
  return kSuccess;
}
EXPORT Result cuGraphDestroy(void* graph) {
  ENTER_ANY();
  Graph* g = static_cast<Graph*>(graph);
  if (state().graphs.erase(g) == 0) return kInvalidHandle;
  delete g;
  return state().lost ? kLaunchFailed : kSuccess;
}
EXPORT Result cuGraphExecDestroy(void* graph) { return cuGraphDestroy(graph); }
EXPORT Result cuGraphUpload(void* graph, void*) {
  ENTER_CONTEXT();
  return state().graphs.count(static_cast<Graph*>(graph)) ? kSuccess : kInvalidHandle;
}
EXPORT Result cuGraphLaunch(void* graph, void* stream) {
  ENTER_CONTEXT();
  Graph* g = static_cast<Graph*>(graph);
  if (!state().graphs.count(g) || !stream_of(stream)) return kInvalidHandle;
  if (strikes(Fault::kLaunch)) return kOutOfResources;
  if (strikes(Fault::kLost)) {
    state().lost = true;
    return kLaunchFailed;
  }
  state().counts.replays++;
  for (Operation& operation : g->operations) {
    Result result = enqueue(stream, operation);
    if (result != kSuccess) return result;
  }
  return kSuccess;
}
