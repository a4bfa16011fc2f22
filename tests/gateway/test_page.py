"""What people do with a served model, by the official OpenAI package, requests and aiohttp."""

import asyncio
import random
import time
import unittest

import aiohttp
import openai
import requests
from openai import AsyncOpenAI, OpenAI

from harness import MODEL, Server, run, samples

NAME = "demo"


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--served-model-name", NAME)
        cls.addClassCleanup(cls.server.__exit__)
        cls.client = OpenAI(base_url=cls.server.url + "/v1", api_key="dummy", max_retries=0)

    def test_chat(self):
        response = self.client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "Explain machine learning"}],
            temperature=0.7, max_tokens=150)
        self.assertTrue(response.choices[0].message.content)
        self.assertEqual(response.choices[0].message.role, "assistant")
        self.assertIn(response.choices[0].finish_reason, ("stop", "length"))

    def test_batch(self):
        prompts = ["What is Python?", "Explain quantum computing", "Describe machine learning",
                   "What is blockchain?"]
        responses = self.client.completions.create(
            model=NAME, prompt=prompts, temperature=0.7, max_tokens=100, n=1)
        results = [choice.text for choice in responses.choices]
        self.assertEqual(len(results), 4)
        self.assertEqual([c.index for c in responses.choices], [0, 1, 2, 3])

    def test_streaming(self):
        stream = self.client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "Write a story about AI"}],
            stream=True, temperature=0.7)
        text, ends = "", []
        for chunk in stream:
            if chunk.choices[0].delta.content is not None:
                text += chunk.choices[0].delta.content
            ends.append(chunk.choices[0].finish_reason)
        self.assertTrue(text)
        self.assertEqual([e for e in ends if e], [ends[-1]])

    def test_sampling_parameters(self):
        response = self.client.completions.create(
            model=NAME, prompt="Once", n=1, presence_penalty=0.0, frequency_penalty=0.0,
            temperature=0.8, top_p=0.95, stop=["\n"], max_tokens=100, best_of=1,
            extra_body={
                "repetition_penalty": 1.0, "top_k": 50, "min_p": 0.0, "use_beam_search": False,
                "length_penalty": 1.0, "early_stopping": False, "stop_token_ids": [],
                "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0,
                "skip_special_tokens": True, "spaces_between_special_tokens": True,
            })
        self.assertTrue(response.choices[0].text)

    def test_load_balancing(self):
        class LoadBalancer:
            def __init__(self, endpoints):
                self.clients = [OpenAI(base_url=e, api_key="dummy") for e in endpoints]

            def chat(self, message, model):
                response = random.choice(self.clients).chat.completions.create(
                    model=model, messages=[{"role": "user", "content": message}],
                    temperature=0.7)
                return response.choices[0].message.content

        with Server("--served-model-name", NAME) as second:
            balancer = LoadBalancer([self.server.url + "/v1", second.url + "/v1"])
            for _ in range(6):
                self.assertTrue(balancer.chat("What is artificial intelligence?", NAME))

    def test_metrics_collection(self):
        models = requests.get(f"{self.server.url}/v1/models", timeout=10).json()
        health = requests.get(f"{self.server.url}/health", timeout=10)
        self.assertEqual(len(models.get("data", [])), 1)
        self.assertEqual((health.status_code, health.json().get("status")), (200, "ok"))
        self.assertIn("vllm:num_requests_waiting", samples(self.server.url))
        text = requests.get(f"{self.server.url}/metrics", timeout=10).text
        self.assertIn('vllm:num_requests_running{model_name="demo",engine="0"}', text)

    def test_benchmark(self):
        async def benchmark(clients=10, each=5):
            async def single(session, request_id):
                start = time.time()
                async with session.post(
                    self.server.url + "/v1/chat/completions",
                    json={"model": NAME, "max_tokens": 50,
                          "messages": [{"role": "user", "content": f"Hello {request_id}"}]},
                ) as response:
                    self.assertEqual(response.status, 200)
                    await response.json()
                    return time.time() - start

            async with aiohttp.ClientSession() as session:
                return await asyncio.gather(*[
                    single(session, f"client{c}_req{r}")
                    for c in range(clients) for r in range(each)])

        self.assertEqual(len(asyncio.run(benchmark())), 50)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.completions.create(model="nobody", prompt="a")
        self.assertEqual(caught.exception.param, "model")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=NAME, prompt="a", temperature=9)
        self.assertEqual(caught.exception.param, "temperature")
        self.assertEqual(caught.exception.status_code, 400)
        with self.assertRaises(openai.BadRequestError):
            self.client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "a"}],
                response_format={"type": "json_object"})
        with self.assertRaises(openai.InternalServerError) as caught:
            self.client.embeddings.create(model=NAME, input="a")
        self.assertEqual(caught.exception.status_code, 501)

    def test_usage_in_a_stream(self):
        chunks = list(self.client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "Hi"}], stream=True,
            stream_options={"include_usage": True}, max_tokens=5))
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 5)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")

    def test_cancel(self):
        stream = self.client.completions.create(
            model=NAME, prompt="Once", stream=True, max_tokens=2000, n=32,
            extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        deadline = time.time() + 10
        while samples(self.server.url)["vrust:live_requests"]:
            self.assertLess(time.time(), deadline)
            time.sleep(0.01)
        self.assertEqual(samples(self.server.url)["vllm:kv_cache_usage_perc"], 0)

    def test_asynchronous(self):
        async def many():
            client = AsyncOpenAI(base_url=self.server.url + "/v1", api_key="dummy")
            async with client:
                answers = await asyncio.gather(*[
                    client.completions.create(model=NAME, prompt="Once", max_tokens=8,
                                              temperature=0) for _ in range(20)])
            return {a.choices[0].text for a in answers}

        self.assertEqual(len(asyncio.run(many())), 1)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], [NAME])
        self.assertEqual(self.client.models.retrieve(NAME).id, NAME)


class Responses(unittest.TestCase):
    """The Responses API by the official package."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--served-model-name", NAME)
        cls.addClassCleanup(cls.server.__exit__)
        cls.client = OpenAI(base_url=cls.server.url + "/v1", api_key="dummy", max_retries=0)

    def test_whole(self):
        response = self.client.responses.create(
            model=NAME, input="What is the capital of France?", instructions="Be brief.",
            temperature=0, max_output_tokens=60)
        self.assertIn("Paris", response.output_text)
        self.assertEqual(response.status, "completed")
        self.assertEqual(response.usage.total_tokens,
                         response.usage.input_tokens + response.usage.output_tokens)
        again = self.client.responses.create(
            model=NAME, temperature=0, input=[
                {"role": "user", "content": "What is the capital of France?"},
                *[item.model_dump() for item in response.output],
                {"role": "user", "content": [{"type": "input_text", "text": "And of Italy?"}]}])
        self.assertTrue(again.output_text)
        self.assertGreater(again.usage.input_tokens, response.usage.input_tokens)

    def test_stream(self):
        fields = {"model": NAME, "input": "What is the capital of France?", "temperature": 0}
        whole = self.client.responses.create(**fields).output_text
        text, kinds = "", []
        with self.client.responses.create(**fields, stream=True) as events:
            for event in events:
                kinds.append(event.type)
                if event.type == "response.output_text.delta":
                    text += event.delta
        self.assertEqual(text, whole)
        self.assertEqual((kinds[0], kinds[-1]), ("response.created", "response.completed"))
        self.assertEqual(event.response.output_text, whole)
        # What is ready at once comes at once: only a long answer has many deltas for sure.
        with self.client.responses.create(
                model=NAME, input="Tell me a story.", max_output_tokens=500, stream=True,
                extra_body={"ignore_eos": True}) as events:
            kinds = [event.type for event in events]
        self.assertGreater(kinds.count("response.output_text.delta"), 3)
        self.assertEqual(kinds[-1], "response.incomplete")
        with self.client.responses.stream(**fields) as events:
            self.assertEqual(events.get_final_response().output_text, whole)

    def test_asynchronous(self):
        async def one(client):
            text = ""
            async for event in await client.responses.create(
                    model=NAME, input="Once upon a time", max_output_tokens=8, stream=True):
                text += event.delta if event.type == "response.output_text.delta" else ""
            return text

        async def main():
            async with AsyncOpenAI(base_url=self.server.url + "/v1", api_key="x") as client:
                return await asyncio.gather(*(one(client) for _ in range(8)))

        self.assertTrue(all(asyncio.run(main())))

    def test_errors(self):
        create = self.client.responses.create
        with self.assertRaises(openai.NotFoundError):
            create(model="none", input="a")
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=NAME, input="a", temperature=9)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=NAME, input="a", tools=[{"type": "web_search"}], stream=True)
        self.assertEqual(caught.exception.param, "tools")
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve("resp_1")


class CommandLine(unittest.TestCase):
    def test_the_flags_of_the_page(self):
        with Server("--max-model-len", "1024", "--swap-space", "4", "--disable-log-requests",
                    "--gpu-memory-utilization", "0.95", "--block-size", "16", "--max-num-seqs",
                    "64", "--trust-remote-code", "--kv-cache-dtype", "int8") as server:
            model = requests.get(server.url + "/v1/models", timeout=10).json()["data"][0]
            self.assertEqual((model["id"], model["max_model_len"]), (MODEL, 1024))
            metrics = requests.get(server.url + "/metrics", timeout=10).text
            self.assertIn('cache_dtype="int8"', metrics)
        warned = [line for line in server.log if "level=WARN" in line]
        self.assertEqual(len(warned), 2, warned)
        self.assertEqual(server.process.returncode, 0)

    def test_what_cannot_be_honoured(self):
        for args, word in [
            (["--tensor-parallel-size", "2"], "--tensor-parallel-size 2"),
            (["--quantization", "awq"], "awq"),
            (["--kv-cache-dtype", "fp8"], "--kv-cache-dtype"),
            (["--dtype", "float16"], "dtype"),
            (["--device", "tpu"], "--device"),
            (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization"),
            (["--enable-lora"], "--enable-lora true"),
            (["--max-model-len", "many"], "many"),
            (["--no-such-flag"], "no-such-flag"),
            (["--block-size", "7"], "block_size"),
            (["another"], "one model"),
            (["--body-timeout", "0s"], "--body-timeout"),
            (["--tool-call-parser", "smoke"], "smoke"),
            (["--reasoning-parser", "smoke"], "smoke"),
        ]:
            done = run("serve", MODEL, *args)
            self.assertEqual(done.returncode, 2, (args, done.stderr))
            self.assertIn(word, done.stderr)
            self.assertNotIn("panic", done.stderr)
        done = run("serve")
        self.assertEqual(done.returncode, 2)
        done = run("serve", "no/such/../model")
        self.assertEqual(done.returncode, 2, done.stderr)

    def test_limits_and_trust(self):
        with Server("--trust-request-chat-template", "--body-timeout", "1s",
                    "--max-body-bytes", "1k") as server:
            chat = OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0).chat
            answer = chat.completions.create(
                model=MODEL, max_tokens=2,
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                extra_body={"chat_template": "{{ messages[0].content }}",
                            "return_token_ids": True, "truncate_prompt_tokens": 4})
            self.assertEqual(answer.usage.prompt_tokens, 4)
            with self.assertRaises(openai.APIStatusError) as caught:
                chat.completions.create(model=MODEL, messages=[
                    {"role": "user", "content": "long " * 1000}])
            self.assertEqual(caught.exception.status_code, 413)

    def test_the_model_as_a_flag(self):
        done = run("serve", "--model", MODEL, "--tensor-parallel-size", "2")
        self.assertEqual(done.returncode, 2)
        self.assertIn("tensor-parallel-size", done.stderr)

    def test_api_key(self):
        with Server("--api-key", "secret") as server:
            wrong = OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0)
            with self.assertRaises(openai.AuthenticationError):
                wrong.models.list()
            right = OpenAI(base_url=server.url + "/v1", api_key="secret")
            self.assertEqual(len(list(right.models.list())), 1)
            self.assertNotIn("secret", "".join(server.log))


if __name__ == "__main__":
    unittest.main()
