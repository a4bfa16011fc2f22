"""Tells reasoning and tool calls from content in a chat model's text as it comes."""

import ctypes as c
import json
import weakref
from dataclasses import dataclass
from typing import Optional

from ._abi import check, lib, take_bytes


@dataclass(frozen=True)
class ChatParserInfo:
    """What a ChatParser has decided. The formats are None where nothing is looked for.

    `starts_in_reasoning`: the prompt has opened the model's thoughts already.
    `keep_special_tokens`: markers are special tokens here, so that the request must say
    `skip_special_tokens=False`.
    """

    tool_format: Optional[str]
    reasoning_format: Optional[str]
    starts_in_reasoning: bool
    keep_special_tokens: bool


class ChatParser:
    """A parser for the text of one choice, from `Engine.chat_parser`.

        parser = engine.chat_parser(tools=tools)
        for delta in engine.generate(messages=messages, tools=tools):
            for part in parser.push(delta.text):
                ...  # {"reasoning": ..}, {"content": ..} or {"tool_calls": [..]}
        rest = parser.finish()

    It may outlive its engine. Any thread; pieces pushed at the same time are taken one after the
    other. `close()`, `with` or dropping it gives its memory back.
    """

    def __init__(self, tokenizer, options):
        text = json.dumps(options).encode()
        handle = c.c_void_p()
        check(lib.vrust_chat_parser_create, tokenizer, text, len(text), c.byref(handle))
        self._handle = handle
        self._finalizer = weakref.finalize(self, lib.vrust_chat_parser_destroy, handle)
        self.info = ChatParserInfo(**self._read(lib.vrust_chat_parser_info_json))

    def push(self, text):
        """Takes the text that came next; returns what it makes certain, a list, often empty.

        Its items are OpenAI's streaming deltas, each with one of `reasoning`, `content` and
        `tool_calls`. However the text is cut, they join to the same.
        """
        raw = text.encode()
        return self._read(lib.vrust_chat_parser_push, raw, len(raw))

    def finish(self):
        """Ends the answer: what `push` held back. The parser is then as new."""
        return self._read(lib.vrust_chat_parser_finish)

    def close(self):
        """Gives the parser's memory back. Again: does nothing."""
        self._finalizer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self, function, *arguments):
        return json.loads(take_bytes(function, self._handle, *arguments))
