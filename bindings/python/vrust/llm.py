"""`LLM` and `SamplingParams`, as vLLM's offline interface has them."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from .engine import Engine

# Taken because scripts pass them; they change nothing on the CPU.
_WITHOUT_EFFECT = ("disable_log_stats",)
# Options of vLLM's that are rarer ones of the engine's here.
_OF_EXTRA = ("device", "gpu_memory_utilization", "enforce_eager", "async_scheduling",
             "quantization", "kv_cache_dtype")


@dataclass
class SamplingParams:
    """How tokens are chosen; fields, defaults and ranges are vLLM's. The engine checks them.

    `best_of`, `use_beam_search` and the two fields that go with it may be given with values that
    ask for nothing; others raise VrustError with code UNSUPPORTED.
    """

    n: int = 1
    best_of: Optional[int] = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: Optional[int] = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool = False
    stop: Union[str, list, None] = None
    stop_token_ids: Optional[list] = None
    bad_words: Optional[list] = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: Optional[int] = 16
    min_tokens: int = 0
    logprobs: Optional[int] = None
    prompt_logprobs: Optional[int] = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: Optional[dict] = None
    allowed_token_ids: Optional[list] = None

    def _fields(self, max_model_len, chat):
        body = {k: v for k, v in vars(self).items() if v is not None}
        # No limit means the rest of the context; the engine cuts it to what is left.
        if "max_tokens" not in body:
            body["max_tokens"] = max_model_len
        if "logit_bias" in body:
            body["logit_bias"] = {str(k): v for k, v in body["logit_bias"].items()}
        if chat and "logprobs" in body:
            body["top_logprobs"], body["logprobs"] = body["logprobs"], True
        return body


@dataclass
class CompletionOutput:
    """One choice. `logprobs` has a dict of token id to Logprob for each token, if asked for."""

    index: int
    text: str = ""
    token_ids: list = field(default_factory=list)
    cumulative_logprob: Optional[float] = None
    logprobs: Optional[list] = None
    finish_reason: Optional[str] = None
    stop_reason: Union[str, int, None] = None


@dataclass
class RequestOutput:
    """A finished request: its prompt and its choices in `outputs`."""

    request_id: str
    prompt: Optional[str]
    prompt_token_ids: list
    outputs: list
    prompt_logprobs: Optional[list] = None
    num_cached_tokens: int = 0
    finished: bool = True


class LLM:
    """Offline inference: `generate` and `chat` return when all prompts are done.

    `model` is a folder. Takes vLLM's names of options and those of `Engine`. `close()` gives the
    memory back, as does dropping the object.
    """

    def __init__(self, model, *, trust_remote_code=False, swap_space=0, **options):
        if trust_remote_code:
            warnings.warn("trust_remote_code has no effect: vrust runs no code of a model",
                          stacklevel=2)
        if swap_space:
            warnings.warn("swap_space has no effect: preempted requests are recomputed",
                          stacklevel=2)
        for name in _WITHOUT_EFFECT:
            options.pop(name, None)
        extra = dict(options.pop("extra", None) or {})
        for name in _OF_EXTRA:
            if name in options:
                extra[name] = options.pop(name)
        self.engine = Engine(model, extra=extra, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the engine."""
        self.engine.close()

    def generate(self, prompts, sampling_params=None, use_tqdm=False):
        """Completes a prompt or a list of prompts, in their order.

        A prompt is text, a list of token ids, or a dict with `prompt` or `prompt_token_ids`;
        `sampling_params` is one for all or a list of as many.
        """
        del use_tqdm
        if isinstance(prompts, (str, dict)) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        return self._run([_prompt(p) for p in prompts], sampling_params, chat=False)

    def chat(self, messages, sampling_params=None, **chat_fields):
        """Answers a chat, or a list of chats. `chat_fields`: tools, chat_template_kwargs, .."""
        if messages and isinstance(messages[0], dict):
            messages = [messages]
        return self._run(list(messages), sampling_params, chat=True, **chat_fields)

    def _run(self, inputs, sampling_params, chat, **fields):
        params = sampling_params
        if not isinstance(params, (list, tuple)):
            params = [params] * len(inputs)
        if len(params) != len(inputs):
            raise ValueError(f"{len(inputs)} prompts but {len(params)} sampling_params")
        streams: Any = []
        try:
            for value, one in zip(inputs, params):
                limit = self.engine.info["max_model_len"]
                body = one._fields(limit, chat) if one is not None else {}
                name = "messages" if chat else "prompt"
                streams.append(self.engine.generate(
                    **{name: value}, **body, **fields, output_kind="final_only"))
            return [self._collect(s, v, chat) for s, v in zip(streams, inputs)]
        finally:
            for stream in streams:
                stream.close()

    def _collect(self, stream, value, chat):
        choices: dict = {}
        output = RequestOutput(str(stream.request_id), None, [], [])
        if isinstance(value, str):
            output.prompt, output.prompt_token_ids = value, self.engine.encode(value)
        elif not chat:
            output.prompt_token_ids = list(value)
        for delta in stream:
            if delta.is_prompt:
                output.prompt_logprobs = [None] + [_by_token(p) for p in delta.logprobs]
                continue
            choice = choices.setdefault(delta.choice, CompletionOutput(delta.choice))
            choice.text += delta.text
            choice.token_ids += delta.token_ids
            if delta.logprobs:
                choice.logprobs = (choice.logprobs or []) + [_by_token(p) for p in delta.logprobs]
            if delta.finish_reason:
                choice.finish_reason = delta.finish_reason
                choice.stop_reason = delta.stop_reason
                choice.cumulative_logprob = delta.cumulative_logprob if choice.logprobs else None
                output.num_cached_tokens = delta.cached_tokens
        output.outputs = [choices[i] for i in sorted(choices)]
        return output


def _prompt(prompt):
    if isinstance(prompt, dict):
        return prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt["prompt"]
    return prompt


def _by_token(place):
    return {entry.token_id: entry for entry in reversed(place)}
