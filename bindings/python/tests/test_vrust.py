"""The tests that every binding passes, and the asyncio stream, on the demo model."""

import asyncio
import gc
import threading
import time
import unittest
from pathlib import Path

import vrust
from vrust import LLM, Engine, SamplingParams, VrustError

MODEL = Path(__file__).resolve().parents[3] / "examples" / "demo-model"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def memory():
    """Resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


class Bindings(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.llm = LLM(model=str(MODEL), max_num_seqs=64)
        cls.engine = cls.llm.engine

    @classmethod
    def tearDownClass(cls):
        cls.llm.close()

    def failure(self, code, call, *arguments, **fields):
        with self.assertRaises(VrustError) as caught:
            call(*arguments, **fields)
        self.assertEqual(caught.exception.code, code)
        return caught.exception

    def assert_idle(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            lines = [line for line in self.engine.metrics().splitlines()
                     if line.startswith(("vllm:num_requests_running", "vllm:kv_cache_usage_perc",
                                         "vllm:num_requests_waiting{"))]
            if lines and all(float(line.rsplit(" ", 1)[1]) == 0 for line in lines):
                return
            time.sleep(0.01)
        self.fail(f"not idle: {lines}")

    def test_version(self):
        self.assertEqual(vrust.version(), vrust.__version__)

    def test_bad_parameters(self):
        error = self.failure("INVALID_ARGUMENT", self.engine.generate, "Hello", top_p=1.5)
        self.assertEqual(error.detail["field"], "top_p")
        self.assertIn("1.5", error.message)
        self.failure("INVALID_ARGUMENT", self.engine.generate, "Hello", no_such_field=1)
        self.failure("UNSUPPORTED", self.engine.generate, "Hello", use_beam_search=True)
        self.failure("NOT_FOUND", Engine, "no/such/folder")
        self.failure("INVALID_ARGUMENT", Engine, MODEL, dtype="int3")
        self.failure("INVALID_ARGUMENT", Engine, MODEL, max_model_len=-1)
        self.failure("CONTEXT_LENGTH", list, self.engine.generate("long " * 20000))

    def test_generate(self):
        params = SamplingParams(temperature=0.0, max_tokens=8)
        first, again = self.llm.generate(["The capital of France is"] * 2, params)
        self.assertIn("Paris", first.outputs[0].text)
        self.assertEqual(first.outputs[0].token_ids, again.outputs[0].token_ids)
        self.assertEqual(first.prompt, "The capital of France is")
        self.assertEqual(first.prompt_token_ids, self.engine.encode(first.prompt))
        by_ids = self.llm.generate({"prompt_token_ids": first.prompt_token_ids}, params)
        self.assertEqual(by_ids[0].outputs[0].text, first.outputs[0].text)

    def test_stream(self):
        whole = self.llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=24))
        text, count, reason = "", 0, None
        for delta in self.engine.generate("Once upon a time", temperature=0, max_tokens=24):
            text, count = text + delta.text, count + len(delta.token_ids)
            reason = delta.finish_reason or reason
        self.assertEqual(text, whole[0].outputs[0].text)
        self.assertEqual(reason, whole[0].outputs[0].finish_reason)
        self.assertEqual(count, len(whole[0].outputs[0].token_ids))

    def test_chat(self):
        output = self.llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=40))[0]
        self.assertIn("Paris", output.outputs[0].text)
        self.assertEqual(output.outputs[0].finish_reason, "stop")

    def test_logprobs(self):
        params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=1)
        output = self.llm.generate("The capital of France is", params)[0]
        choice = output.outputs[0]
        self.assertEqual(len(choice.logprobs), len(choice.token_ids))
        chosen = [place[token] for place, token in zip(choice.logprobs, choice.token_ids)]
        self.assertTrue(all(entry.rank == 1 and entry.logprob <= 0 for entry in chosen))
        self.assertAlmostEqual(sum(e.logprob for e in chosen), choice.cumulative_logprob, places=4)
        self.assertEqual(len(output.prompt_logprobs), len(output.prompt_token_ids))
        self.assertIsNone(output.prompt_logprobs[0])

    def test_cancel(self):
        stream = self.engine.generate("Once", max_tokens=900, ignore_eos=True)
        next(stream)
        stream.close()
        self.assertEqual(list(stream)[-1].finish_reason, "abort")
        dropped = self.engine.generate("Once", max_tokens=900, ignore_eos=True)
        del dropped
        self.assert_idle()

    def test_deadline(self):
        fields = {"max_tokens": 900, "ignore_eos": True, "deadline_ms": 20}
        last = list(self.engine.generate("Once upon", **fields))[-1]
        self.assertEqual(last.finish_reason, "deadline")

    def test_many_at_once(self):
        params = SamplingParams(temperature=0, max_tokens=12)
        prompts = [f"The number {i} is" for i in range(100)]
        alone = [self.llm.generate(p, params)[0].outputs[0].text for p in prompts[:5]]
        together = self.llm.generate(prompts, params)
        self.assertEqual([o.outputs[0].text for o in together[:5]], alone)
        self.assertTrue(all(o.outputs[0].finish_reason for o in together))

    def test_slow_consumer(self):
        fields = {"temperature": 0, "max_tokens": 64, "ignore_eos": True}
        stream = self.engine.generate("Once upon a time", **fields)
        fast = "".join(d.text for d in self.engine.generate("Once upon a time", **fields))
        self.assert_idle()
        deltas = list(stream)
        self.assertEqual("".join(d.text for d in deltas), fast)
        self.assertLessEqual(len(deltas), 3)

    def test_close_while_running(self):
        engine = Engine(MODEL)
        streams = [engine.generate("Once", max_tokens=900, ignore_eos=True) for _ in range(8)]
        next(streams[0])
        reader = threading.Thread(target=lambda: list(streams[1]))
        reader.start()
        engine.close()
        engine.close()
        reader.join(timeout=20)
        self.assertFalse(reader.is_alive())
        self.assertEqual([list(s)[-1].finish_reason for s in streams[2:]], ["abort"] * 6)
        self.failure("INVALID_ARGUMENT", engine.generate, "Hello")

    def parse(self, parser, text, size):
        """The answer in pieces of `size` characters, put together from its deltas."""
        joined = {"reasoning": "", "content": "", "name": "", "arguments": ""}
        deltas = [d for i in range(0, len(text), size) for d in parser.push(text[i:i + size])]
        for delta in deltas + parser.finish():
            for key in ("reasoning", "content"):
                joined[key] += delta.get(key, "")
            for call in delta.get("tool_calls", []):
                self.assertEqual(call["index"], 0)
                for key, value in call["function"].items():
                    joined[key] += value
        return joined

    def test_chat_parser(self):
        tools = [{"type": "function", "function": {"name": "now"}}]
        options = {"tool_format": "hermes", "reasoning_format": "think", "tools": tools}
        text = ("<think>\nHm.\n</think>\n\nHi <tool_call>{\"name\": \"now\", \"arguments\": "
                "{\"a\": \"\u00e9t\u00e9\"}}</tool_call>")
        parser = self.engine.chat_parser(**options)
        self.assertEqual(parser.info, vrust.ChatParserInfo("hermes", "think", False, False))
        for size in (len(text), 1, 2, 3, 7):  # As new after each end.
            answer = self.parse(parser, text, size)
            self.assertEqual([answer[k] for k in ("reasoning", "content", "name", "arguments")],
                             ["Hm.", "Hi", "now", "{\"a\": \"\u00e9t\u00e9\"}"])
        self.assertEqual(parser.push("a <tool_ca"), [{"content": "a"}])
        self.assertEqual(parser.push(""), [])
        self.assertEqual(parser.finish(), [{"content": " <tool_ca"}])

        # Without tools, or a format in the template, the text stays as it is.
        with self.engine.chat_parser() as plain:
            self.assertEqual(plain.info, vrust.ChatParserInfo(None, None, False, False))
            self.assertEqual(self.parse(plain, "<tool_call> x", 4)["content"], "<tool_call> x")

        create = self.engine.chat_parser
        error = self.failure("INVALID_ARGUMENT", create, tool_format='smoke "signals"')
        self.assertIn("tool_format: must be one of auto, none", error.message)
        self.failure("INVALID_ARGUMENT", create, **{**options, "tools": [{}]})
        self.failure("INVALID_ARGUMENT", create, chat_template_kwargs=[1])

        # A parser that is gone, and one that outlives its engine.
        parser.close()
        parser.close()
        for call in (lambda: parser.push("a"), parser.finish, lambda: plain.push("a")):
            self.failure("INVALID_ARGUMENT", call)
        with Engine(MODEL) as closed:
            kept = closed.chat_parser(**options)
        self.assertEqual(self.parse(kept, text, 5)["name"], "now")
        self.failure("INVALID_ARGUMENT", closed.chat_parser)

    def test_leak_check(self):
        def once():
            with Engine(MODEL) as engine:
                list(engine.generate("Hello", max_tokens=4))
                engine.chat_parser().push("Hello")
                engine.generate("Hello", max_tokens=900)
            gc.collect()

        for _ in range(4):
            once()
        threads, before = threading.active_count(), memory()
        for _ in range(12):
            once()
        self.assertEqual(threading.active_count(), threads)
        # Each engine holds over 20 MiB: one that is kept shows twelve times.
        self.assertLess(memory() - before, 60 << 20)

    def test_asyncio(self):
        async def one(i):
            parts = []
            async for delta in self.engine.generate(f"Story {i}", max_tokens=16, temperature=0):
                parts.append(delta.text)
            return "".join(parts)

        async def main():
            return await asyncio.gather(*(one(i) for i in range(16)))

        texts = asyncio.run(main())
        params = SamplingParams(max_tokens=16, temperature=0)
        self.assertEqual(texts[3], self.llm.generate("Story 3", params)[0].outputs[0].text)

    def test_asyncio_cancel(self):
        async def main():
            async with self.engine.generate("Once", max_tokens=900, ignore_eos=True) as stream:
                await stream.__anext__()
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(self.read(), 0.05)

        asyncio.run(main())
        self.assert_idle()

    async def read(self):
        async for _ in self.engine.generate("Once", max_tokens=990, ignore_eos=True):
            pass

    def test_the_page(self):
        params = SamplingParams(
            n=1, best_of=1, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0,
            temperature=0.8, top_p=0.95, top_k=50, min_p=0.0, use_beam_search=False,
            length_penalty=1.0, early_stopping=False, stop=["\n"], stop_token_ids=[],
            include_stop_str_in_output=False, ignore_eos=False, max_tokens=100, min_tokens=0,
            skip_special_tokens=True, spaces_between_special_tokens=True)
        outputs = self.llm.generate(["Hello, my name is", "The future of AI is"], params)
        self.assertTrue(all("\n" not in o.outputs[0].text for o in outputs))
        with LLM(model=str(MODEL), tensor_parallel_size=1, gpu_memory_utilization=0.8,
                 kv_cache_dtype="int8") as llm:
            self.assertEqual(len(llm.generate(["Hello"])), 1)
            self.assertEqual(llm.engine.info["kv_cache_dtype"], "int8")
        self.failure("UNSUPPORTED", LLM, model=str(MODEL), kv_cache_dtype="fp8")
        self.failure("UNSUPPORTED", LLM, model=str(MODEL), tensor_parallel_size=4)


if __name__ == "__main__":
    unittest.main()
