#!/usr/bin/env python3
"""One engine in one process: worker.py ENGINE MODEL [QUANTIZATION].

Reads JSON lines from standard input and answers each with one. The first answer, which nobody asks
for, comes when the engine is ready. A task is {"prompts": [[token ids], ..], "tokens": n}: greedy,
the end of text ignored, all prompts at once; its answer is {"seconds": s}, from the call to the
last token. Whatever the engine prints goes to standard error.

ENGINE is vrust, vrust-kv8, vrust-http, openvino, llama, vllm or transformers; the last four need
that engine's own Python. vrust runs by its C ABI, vrust-kv8 with an int8 KV cache; vrust-http is
`vrust serve`, asked over HTTP.
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time

THREADS = int(os.environ.get("BENCH_THREADS", "2"))
POOL_GIB = 2
# About as much in f16, for Qwen3-0.6B's shape; 32 requests of 320 tokens need 10,240.
POOL_TOKENS = 16384
CONTEXT = 8448


def vrust(model, quantization, kv_cache_dtype="auto"):
    from vrust import Engine

    extra = {"quantization": quantization or "none", "kv_cache_dtype": kv_cache_dtype}
    if os.environ.get("BENCH_CPU_ISA"):
        extra["cpu_isa"] = os.environ["BENCH_CPU_ISA"]
    engine = Engine(
        model, extra=extra, kv_cache_memory_bytes=POOL_GIB << 30, max_model_len=CONTEXT,
        cpu_threads=THREADS, enable_prefix_caching=False, skip_tokenizer=True,
    )

    def generate(prompts, tokens):
        # All at once in the end, as the others give it.
        streams = [
            engine.generate(prompt, max_tokens=tokens, temperature=0, ignore_eos=True,
                            output_kind="final_only")
            for prompt in prompts
        ]
        for stream in streams:
            for _ in stream:
                pass

    return generate


def vrust_kv8(model, quantization):
    return vrust(model, quantization, "int8")


class Server:
    """A server in a process of its own, asked by a thread a prompt."""

    def __init__(self, command, port):
        self.port = port
        command = [str(c) for c in command]
        self.process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
        while not self.is_up():
            if self.process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended")
            time.sleep(0.01)

    def is_up(self):
        try:
            self.ask("/health")
            return True
        except (OSError, http.client.HTTPException):
            return False

    def ask(self, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1800)
        headers = {"Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status != 200:
            raise OSError(f"{path}: {response.status} {answer[:300]}")
        return answer

    def generator(self, path, body_of):
        def generate(prompts, tokens):
            failed = []

            def one(prompt):
                try:
                    self.ask(path, body_of(prompt, tokens))
                except OSError as error:
                    failed.append(error)

            threads = [threading.Thread(target=one, args=(p,)) for p in prompts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if failed:
                raise failed[0]

        generate.end = self.end
        generate.pid = self.process.pid
        return generate

    def end(self):
        self.process.terminate()
        self.process.wait(60)


def vrust_http(model, quantization):
    port = 19080 + os.getpid() % 1000
    server = Server([
        os.environ["VRUST_COMMAND"], "serve", model, "--host", "127.0.0.1", "--port", port,
        "--served-model-name", "m", "--cpu-threads", THREADS, "--max-model-len", CONTEXT,
        "--kv-cache-memory-bytes", POOL_GIB << 30, "--no-enable-prefix-caching",
        *(["--quantization", quantization] if quantization else []),
    ], port)
    return server.generator("/v1/completions", lambda prompt, tokens: {
        "model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True})


def openvino(model, quantization):
    import numpy
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 64
    scheduler.cache_size = POOL_GIB
    scheduler.enable_prefix_caching = False
    folder = os.path.join(f"{model}-{quantization}" if quantization else model, "ov")
    threads = {"INFERENCE_NUM_THREADS": THREADS}
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", threads, {})

    def generate(prompts, tokens):
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample = True, False
        inputs = [ov.Tensor(numpy.array([p], dtype=numpy.int64)) for p in prompts]
        pipeline.generate(inputs, [config] * len(prompts))

    return generate


def llama(model, quantization):
    """llama.cpp's own server: its library has no C call that batches requests."""
    file = {None: "bf16", "int8": "Q8_0", "int4": "Q4_0"}[quantization]
    port = 18080 + os.getpid() % 1000
    server = Server([
        os.environ["LLAMA_SERVER"], "-m", os.path.join(model, f"model-{file}.gguf"),
        "-t", THREADS, "-tb", THREADS, "--host", "127.0.0.1", "--port", port,
        "-c", POOL_TOKENS, "--parallel", 32, "-fa", "on", "--kv-unified",
        "-b", 2048, "-ub", 512, "--no-webui",
    ], port)
    return server.generator("/completion", lambda prompt, tokens: {
        "prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True,
        "cache_prompt": False})


def vllm(model, quantization):
    assert quantization is None
    from vllm import LLM, SamplingParams

    engine = LLM(model, dtype="bfloat16", max_model_len=4096, enable_prefix_caching=False,
                 max_num_seqs=64, seed=0)

    def generate(prompts, tokens):
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True,
                                detokenize=False)
        inputs = [{"prompt_token_ids": p} for p in prompts]
        engine.generate(inputs, params, use_tqdm=False)

    return generate


def transformers(model, quantization):
    assert quantization is None
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(prompts, tokens):
        ids = torch.tensor(prompts)
        loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                        min_new_tokens=tokens, do_sample=False, eos_token_id=None,
                        pad_token_id=0)

    return generate


def peak_mib(pid):
    """Peak resident memory of a process and its children."""
    total = 0
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM"):
            total += int(line.split()[1]) / 1024
    try:
        children = open(f"/proc/{pid}/task/{pid}/children").read().split()
    except OSError:
        children = []
    return total + sum(peak_mib(child) for child in children)


def main():
    engine, model, quantization = sys.argv[1], sys.argv[2], (sys.argv[3:] or [None])[0]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = globals()[engine.replace("-", "_")](model, quantization)
    pid = getattr(generate, "pid", os.getpid())

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    generate([list(range(300, 308))], 1)
    answer(ready=True)
    for line in sys.stdin:
        task = json.loads(line)
        if "prompts" not in task:
            answer(peak_mib=peak_mib(pid))
            continue
        began = time.perf_counter()
        generate(task["prompts"], task["tokens"])
        answer(seconds=time.perf_counter() - began)
    getattr(generate, "end", lambda: None)()


main()
