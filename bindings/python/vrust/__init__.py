"""vrust: an LLM serving engine loaded in-process, by ctypes alone.

    from vrust import LLM, SamplingParams

    llm = LLM(model="examples/demo-model")
    for output in llm.generate(["The capital of France is"], SamplingParams(max_tokens=8)):
        print(output.outputs[0].text)

`Engine` streams: `for delta in engine.generate(...)`, or `async for` under asyncio. A
`ChatParser` tells reasoning and tool calls from content in what streams.
"""

from ._abi import library_version as version
from .chat_parser import ChatParser, ChatParserInfo
from .engine import Delta, Engine, Logprob, Stream
from .errors import VrustError
from .llm import LLM, CompletionOutput, RequestOutput, SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "ChatParser",
    "ChatParserInfo",
    "CompletionOutput",
    "Delta",
    "Engine",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "Stream",
    "VrustError",
    "version",
]
