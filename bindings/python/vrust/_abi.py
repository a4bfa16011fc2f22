"""The C ABI of libvrust, as far as the binding needs it: structs, functions, errors."""

import ctypes as c
import os
import struct
from pathlib import Path

from .errors import VrustError

OK, TIMEOUT, TRUNCATED, CLOSED = 0, 1, 2, 3
BUFFER_TOO_SMALL = -17
DELTA, PROMPT, FINISHED, ERROR, LOAD, ENGINE_FAILED = 1, 2, 3, 4, 5, 6
LAST = 1

_u32, _u64, _text = c.c_uint32, c.c_uint64, c.c_char_p


class EngineOptions(c.Structure):
    """VrustEngineOptions."""

    _fields_ = [
        ("struct_size", _u32), ("abi_version", _u32),
        ("model", _text), ("model_len", c.c_size_t),
        ("tokenizer", _text), ("tokenizer_len", c.c_size_t),
        ("chat_template", _text), ("chat_template_len", c.c_size_t),
        ("extra_json", _text), ("extra_json_len", c.c_size_t),
        ("kv_cache_memory_bytes", _u64), ("max_undrained_bytes", _u64), ("seed", _u64),
        ("load_format", _u32), ("dtype", _u32), ("backend", _u32), ("scheduling_policy", _u32),
        ("max_model_len", _u32), ("max_num_seqs", _u32), ("max_num_batched_tokens", _u32),
        ("block_size", _u32), ("long_prefill_token_threshold", _u32),
        ("max_num_queued_reqs", _u32), ("max_logprobs", _u32), ("cpu_threads", _u32),
        ("tensor_parallel_size", _u32), ("enable_prefix_caching", _u32),
        ("enable_chunked_prefill", _u32), ("use_generation_config", _u32),
        ("skip_tokenizer", _u32), ("reserved", _u32),
    ]


class Event(c.Structure):
    """VrustEvent."""

    _fields_ = [
        ("request_id", _u64), ("user_data", _u64), ("time_ns", _u64),
        ("kind", _u32), ("choice", _u32), ("flags", _u32), ("status", c.c_int32),
        ("text_offset", _u32), ("text_len", _u32), ("tokens_offset", _u32), ("num_tokens", _u32),
        ("logprobs_offset", _u32), ("num_logprobs", _u32),
        ("detail_offset", _u32), ("detail_len", _u32),
        ("finish_reason", _u32), ("stop_token_id", _u32),
        ("prompt_tokens", _u32), ("cached_tokens", _u32), ("completion_tokens", _u32),
        ("value", c.c_float),
        ("arrival_ns", _u64), ("scheduled_ns", _u64), ("first_token_ns", _u64),
        ("last_token_ns", _u64),
    ]


# VrustLogprob: position, token_id, logprob, rank.
LOGPROB = struct.Struct("<IIfI")


def _candidates():
    """Where libvrust may be: named by the host, in the wheel, in a build tree, on the system."""
    if named := os.environ.get("VRUST_LIBRARY"):
        return [named]
    here = Path(__file__).resolve().parent
    places = [here / "lib" / "libvrust.so.0"]
    if len(here.parents) > 2:
        places.append(here.parents[2] / "build" / "lib" / "libvrust.so.0")
    return [str(p) for p in places if p.exists()] + ["libvrust.so.0"]


def _load():
    reasons = []
    for place in _candidates():
        try:
            return c.CDLL(place)
        except OSError as error:
            reasons.append(str(error))
    raise ImportError("vrust: libvrust.so.0 not found: " + "; ".join(reasons)
                      + "; set VRUST_LIBRARY to its path")


lib = _load()


def _declare():
    ptr, err, size = c.c_void_p, c.POINTER(c.c_void_p), c.c_size_t
    out, sizes = c.POINTER(c.c_void_p), c.POINTER(c.c_size_t)
    calls = {
        "engine_create": [c.POINTER(EngineOptions), out, err],
        "engine_wait_ready": [ptr, c.c_int32, err],
        "engine_info_json": [ptr, out, err],
        "engine_shutdown": [ptr, _u32, c.c_int32, err],
        "engine_destroy": [ptr],
        "engine_default_queue": [ptr, out, err],
        "engine_tokenizer": [ptr, out, err],
        "queue_poll": [ptr, ptr, size, size, ptr, size, c.c_int32, sizes, sizes, err],
        "queue_wake": [ptr, err],
        "queue_destroy": [ptr],
        "submit_json": [ptr, ptr, _text, size, _u64, c.POINTER(_u64), err],
        "abort": [ptr, _u64, err],
        "tokenizer_encode": [ptr, _text, size, _u32, ptr, size, sizes, err],
        "tokenizer_decode": [ptr, ptr, size, _u32, ptr, size, sizes, err],
        "tokenizer_destroy": [ptr],
        "chat_parser_create": [ptr, _text, size, out, err],
        "chat_parser_info_json": [ptr, out, err],
        "chat_parser_push": [ptr, _text, size, out, err],
        "chat_parser_finish": [ptr, out, err],
        "chat_parser_destroy": [ptr],
        "stats_prometheus": [ptr, out, err],
        "error_destroy": [ptr],
        "bytes_destroy": [ptr],
    }
    for name, arguments in calls.items():
        function = getattr(lib, "vrust_" + name)
        function.argtypes, function.restype = arguments, c.c_int32
    lib.vrust_engine_options_init.argtypes = [c.POINTER(EngineOptions), size]
    lib.vrust_engine_options_init.restype = None
    lib.vrust_error_is_retryable.argtypes = [ptr]
    for name in ("error_message", "error_detail_json"):
        function = getattr(lib, "vrust_" + name)
        function.argtypes, function.restype = [ptr, sizes], _text
    lib.vrust_status_name.argtypes, lib.vrust_status_name.restype = [c.c_int32], _text
    lib.vrust_version_string.restype = _text
    lib.vrust_bytes_data.argtypes, lib.vrust_bytes_data.restype = [ptr], ptr
    lib.vrust_bytes_len.argtypes, lib.vrust_bytes_len.restype = [ptr], size


_declare()


def library_version():
    """The version of the loaded libvrust, such as "0.1.0"."""
    return lib.vrust_version_string().decode()


def status_name(status):
    """A status as its name, such as "QUEUE_FULL"."""
    return lib.vrust_status_name(status).decode()


def check(function, *arguments):
    """Calls `function` with an error slot appended; raises its error, returns its status."""
    slot = c.c_void_p()
    status = function(*arguments, c.byref(slot))
    if status >= 0:
        return status
    message = lib.vrust_error_message(slot, None).decode()
    detail = lib.vrust_error_detail_json(slot, None).decode()
    retryable = bool(lib.vrust_error_is_retryable(slot))
    lib.vrust_error_destroy(slot)
    raise VrustError(status, status_name(status), message, detail, retryable)


def take_bytes(function, *arguments):
    """Calls a function that hands out VrustBytes; returns them as text."""
    handle = c.c_void_p()
    check(function, *arguments, c.byref(handle))
    try:
        data, length = lib.vrust_bytes_data(handle), lib.vrust_bytes_len(handle)
        return c.string_at(data, length).decode()
    finally:
        lib.vrust_bytes_destroy(handle)
