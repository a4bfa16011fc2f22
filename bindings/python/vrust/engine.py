"""An engine and its streams. One thread an engine drains its queue, whatever the number."""

import asyncio
import ctypes as c
import json
import struct
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from . import _abi
from ._abi import check, lib
from .chat_parser import ChatParser
from .errors import VrustError

_FINISH = {1: "stop", 2: "stop", 3: "stop", 4: "length", 5: "abort", 6: "deadline"}
_DTYPES = {"auto": 0, "float32": 1, "float": 1, "bfloat16": 2}
_BACKENDS = {"cpu": 0, "reference": 1, "auto": 2}
_POLICIES = {"fcfs": 0, "priority": 1}
_LOAD_FORMATS = {"auto": 0, "safetensors": 0, "dummy": 1}
_ENUMS = {
    "dtype": _DTYPES, "backend": _BACKENDS, "scheduling_policy": _POLICIES,
    "load_format": _LOAD_FORMATS,
}
_TEXTS = ("model", "tokenizer", "chat_template")
_NUMBERS = {
    name: kind for name, kind in _abi.EngineOptions._fields_
    if kind in (c.c_uint32, c.c_uint64) and name not in ("struct_size", "abi_version", "reserved")
}


@dataclass
class Logprob:
    """The log probability of one token at one place; `rank` 1 is the most likely one."""

    token_id: int
    logprob: float
    rank: int


@dataclass
class Delta:
    """New output of one choice. Several deltas that wait become one.

    `logprobs` has one list for each place: the chosen token first. The last delta of a choice has
    `finish_reason` ("stop", "length", "abort" or "deadline"), `stop_reason` (the stop string or
    token id, or None) and the token counts.
    """

    choice: int
    text: str = ""
    token_ids: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    is_prompt: bool = False
    finish_reason: Optional[str] = None
    stop_reason: Union[str, int, None] = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cumulative_logprob: Optional[float] = None


class Stream:
    """The deltas of one request: iterate with `for` or `async for`, from one consumer.

    Leaving it early needs `close()` (or `with`); a stream that is dropped aborts its request.
    Thread safe, also `close()`.
    """

    def __init__(self, core, key):
        self._core, self._key = core, key
        self._ready = threading.Condition()
        self._pending: deque = deque()
        self._done = False
        self._waiter: Any = None
        self.request_id = 0

    def __iter__(self):
        return self

    def __next__(self):
        with self._ready:
            while not self._pending and not self._done:
                self._ready.wait()
            found, item = self._take()
        if not found:
            raise StopIteration
        return self._give(item)

    def __aiter__(self):
        return self

    async def __anext__(self):
        while True:
            with self._ready:
                found, item = self._take()
                if found or self._done:
                    break
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                self._waiter = (loop, future)
            try:
                await future
            except asyncio.CancelledError:
                self.close()
                raise
        if not found:
            raise StopAsyncIteration
        return self._give(item)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def close(self):
        """Aborts the request if it has not ended. What came before can still be read."""
        if not self._done and self.request_id:
            self._core.abort(self.request_id)

    def _take(self):
        return (True, self._pending.popleft()) if self._pending else (False, None)

    @staticmethod
    def _give(item):
        if isinstance(item, VrustError):
            raise item
        return item

    def _push(self, item, last):
        with self._ready:
            if item is not None and not self._merge(item):
                self._pending.append(item)
            self._done = self._done or last
            waiter, self._waiter = self._waiter, None
            self._ready.notify_all()
        if waiter:
            loop, future = waiter
            try:
                loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))
            except RuntimeError:
                pass  # The loop is closed: nobody waits any more.

    def _merge(self, item):
        """Adds to the delta that waits, so that a slow consumer costs no queue."""
        tail = self._pending[-1] if self._pending else None
        plain = isinstance(tail, Delta) and isinstance(item, Delta) and not item.is_prompt
        if not plain or tail.is_prompt or tail.finish_reason or tail.choice != item.choice:
            return False
        item.text = tail.text + item.text
        item.token_ids = tail.token_ids + item.token_ids
        item.logprobs = tail.logprobs + item.logprobs
        self._pending[-1] = item
        return True


class _Core:
    """The handles and the drainer. It does not refer to the Engine, which can be collected."""

    def __init__(self, engine, queue):
        self.engine, self.queue = engine, queue
        self.lock = threading.Lock()
        self.streams: Any = {}
        self.next_key = 1
        self.closed = False
        self.thread = threading.Thread(target=self.drain, name="vrust-drain", daemon=True)
        self.thread.start()

    def submit(self, body):
        text = json.dumps(body).encode()
        with self.lock:
            key, self.next_key = self.next_key, self.next_key + 1
            stream = Stream(self, key)
            self.streams[key] = weakref.ref(stream)
        request_id = c.c_uint64()
        try:
            check(lib.vrust_submit_json, self.engine, self.queue, text, len(text), key,
                  c.byref(request_id))
        except VrustError:
            with self.lock:
                self.streams.pop(key, None)
            raise
        stream.request_id = request_id.value
        return stream

    def abort(self, request_id):
        # A closed engine has ended every request: its handle says so, and that is fine.
        lib.vrust_abort(self.engine, request_id, None)

    def close(self):
        with self.lock:
            if self.closed:
                return
            self.closed = True
        lib.vrust_engine_destroy(self.engine)
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def drain(self):
        events = (_abi.Event * 256)()
        arena = c.create_string_buffer(1 << 20)
        n_events, n_bytes = c.c_size_t(), c.c_size_t()
        while True:
            status = lib.vrust_queue_poll(
                self.queue, events, c.sizeof(_abi.Event), len(events), arena, len(arena), -1,
                c.byref(n_events), c.byref(n_bytes), None)
            if status == _abi.BUFFER_TOO_SMALL:
                arena = c.create_string_buffer(n_bytes.value)
                continue
            if status == _abi.CLOSED or status < 0:
                break
            if status == _abi.TIMEOUT:
                continue
            data = memoryview(arena)[:n_bytes.value]
            for event in events[:n_events.value]:
                self.dispatch(event, data)
        self.fail_rest(status)
        lib.vrust_queue_destroy(self.queue)

    def dispatch(self, event, data):
        if event.request_id == 0:
            return
        last = bool(event.flags & _abi.LAST)
        with self.lock:
            found = self.streams.get(event.user_data)
            if last:
                self.streams.pop(event.user_data, None)
        stream = found and found()
        if stream is not None:
            stream._push(_decode(event, data), last)

    def fail_rest(self, status):
        with self.lock:
            rest, self.streams = list(self.streams.values()), {}
        name = _abi.status_name(status)
        for found in rest:
            stream = found()
            if stream is not None:
                stream._push(VrustError(status, name, "the engine has ended"), True)


def _decode(event, data):
    """An event as a Delta or a VrustError; None for kinds that are not known."""
    text = bytes(data[event.text_offset:event.text_offset + event.text_len]).decode()
    detail = bytes(data[event.detail_offset:event.detail_offset + event.detail_len]).decode()
    if event.kind == _abi.ERROR:
        return VrustError(event.status, _abi.status_name(event.status), text, detail or "{}")
    if event.kind not in (_abi.DELTA, _abi.PROMPT, _abi.FINISHED):
        return None
    tokens = struct.unpack_from(f"<{event.num_tokens}I", data, event.tokens_offset)
    delta = Delta(event.choice, text, list(tokens), _logprobs(event, data),
                  event.kind == _abi.PROMPT)
    if event.kind == _abi.FINISHED:
        delta.finish_reason = _FINISH.get(event.finish_reason, "unknown")
        if event.finish_reason == 2:
            delta.stop_reason = event.stop_token_id
        elif event.finish_reason == 3:
            delta.stop_reason = detail
        delta.prompt_tokens, delta.cached_tokens = event.prompt_tokens, event.cached_tokens
        delta.completion_tokens = event.completion_tokens
        delta.cumulative_logprob = event.value
    return delta


def _logprobs(event, data):
    places: dict = {}
    for i in range(event.num_logprobs):
        at = event.logprobs_offset + i * _abi.LOGPROB.size
        position, token, value, rank = _abi.LOGPROB.unpack_from(data, at)
        places.setdefault(position, []).append(Logprob(token, value, rank))
    return [places[p] for p in sorted(places)]


class Engine:
    """A model being served. Any thread may call; `close()` or `with` gives its memory back.

    `options` are the fields of VrustEngineOptions by name (max_model_len, max_num_seqs,
    dtype="auto", cpu_threads, ..); `extra` is a dict of the rarer ones. Raises VrustError.
    """

    def __init__(self, model, *, extra=None, **options):
        raw = _abi.EngineOptions()
        lib.vrust_engine_options_init(c.byref(raw), c.sizeof(raw))
        options["model"] = str(model)
        if extra:
            options["extra_json"] = json.dumps(extra)
        for name, value in options.items():
            if value is not None:
                _set_option(raw, name, value)
        engine, queue = c.c_void_p(), c.c_void_p()
        check(lib.vrust_engine_create, c.byref(raw), c.byref(engine))
        try:
            check(lib.vrust_engine_wait_ready, engine, -1)
            check(lib.vrust_engine_default_queue, engine, c.byref(queue))
            self.info = json.loads(_abi.take_bytes(lib.vrust_engine_info_json, engine))
        except BaseException:
            lib.vrust_engine_destroy(engine)
            raise
        self._core = _Core(engine, queue)
        self._finalizer = weakref.finalize(self, self._core.close)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def generate(self, prompt=None, *, messages=None, **params):
        """Submits a request and returns its Stream.

        `prompt` is text or token ids, `messages` an OpenAI chat; `params` are the fields of
        vrust_submit_json: max_tokens, temperature, stop, logprobs, deadline_ms, .. Raises
        VrustError at once for bad parameters, and from the stream for what shows up later.
        """
        body = {k: v for k, v in params.items() if v is not None}
        if prompt is not None:
            body["prompt"] = prompt
        if messages is not None:
            body["messages"] = messages
        return self._core.submit(body)

    def encode(self, text, add_special_tokens=True):
        """The token ids of `text`."""
        raw = text.encode()
        ids = (c.c_uint32 * (len(raw) + 16))()
        count = c.c_size_t()
        with _Tokenizer(self._core.engine) as handle:
            check(lib.vrust_tokenizer_encode, handle, raw, len(raw), int(add_special_tokens), ids,
                  len(ids), c.byref(count))
        return list(ids[:count.value])

    def chat_parser(self, *, tools=None, tool_format="auto", reasoning_format="auto",
                    chat_template_kwargs=None):
        """A ChatParser for one choice of a chat's answer.

        `tool_format`: "auto" (what the chat template shows), "none", "hermes", "llama3_json",
        "mistral", "pythonic" or "qwen3_xml"; without `tools` no calls are looked for.
        `reasoning_format`: "auto", "none", "think" or "mistral". Raises VrustError.
        """
        options = {"tool_format": tool_format, "reasoning_format": reasoning_format,
                   "tools": tools or [], "chat_template_kwargs": chat_template_kwargs or {}}
        with _Tokenizer(self._core.engine) as handle:
            return ChatParser(handle, options)

    def metrics(self):
        """The engine's figures in Prometheus' text format, under vLLM's names."""
        return _abi.take_bytes(lib.vrust_stats_prometheus, self._core.engine)

    def close(self):
        """Aborts what runs, ends the engine and gives its memory back. Again: does nothing."""
        self._finalizer()


class _Tokenizer:
    def __init__(self, engine):
        self.engine, self.handle = engine, c.c_void_p()

    def __enter__(self):
        check(lib.vrust_engine_tokenizer, self.engine, c.byref(self.handle))
        return self.handle

    def __exit__(self, *_):
        lib.vrust_tokenizer_destroy(self.handle)


def _set_option(raw, name, value):
    if name in _TEXTS or name == "extra_json":
        data = value.encode()
        setattr(raw, name, data)
        setattr(raw, name + "_len", len(data))
    elif name in _ENUMS:
        if value not in _ENUMS[name]:
            known = ", ".join(_ENUMS[name])
            raise VrustError(-1, "INVALID_ARGUMENT", f"{name}: {value!r} is none of {known}",
                             json.dumps({"field": name}))
        setattr(raw, name, _ENUMS[name][value])
    elif name in _NUMBERS:
        limit = 1 << (8 * c.sizeof(_NUMBERS[name]))
        if not isinstance(value, int) or not 0 <= value < limit:
            message = f"{name}: must be an integer from 0 to {limit - 1}, got {value!r}"
            raise VrustError(-1, "INVALID_ARGUMENT", message, json.dumps({"field": name}))
        setattr(raw, name, int(value))
    else:
        raise TypeError(f"Engine: unknown option {name!r}")
