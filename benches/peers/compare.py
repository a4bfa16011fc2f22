#!/usr/bin/env python3
"""vrust against its peers on a CPU: the same checkpoint, token ids, threads and work.

compare.py --peers FOLDER [--shapes qwen3-0.6b,llama-3.2-1b] [--quantization none,int8,int4]
           [--engines openvino,llama,vllm,transformers] [--rounds 5] [--json FILE]

FOLDER is what setup.sh filled. Each peer runs beside a vrust engine, each in a process of its own;
they take turns, one task at a time, and a ratio is taken of each pair of turns, because memory speed
drifts within the hour. Figures are medians with smallest and largest.

  start        seconds from the start of the process to the first token, files in the page cache
  decode       tokens/s of one stream: 64 / (time for 65 tokens - time for 1), prompt of 32
  prefill N    prompt tokens/s to the first token of a prompt never seen before
  concurrent   output tokens/s of 32 requests, 256 tokens in, 64 out
  peak         resident memory at its highest, MiB
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHONS = {"openvino": "ov", "llama": "vllm", "vllm": "vllm", "transformers": "vllm",
           "vrust": "vllm"}
TASKS = ["decode", "prefill 512", "prefill 2048", "concurrent"]
numbers = random.Random(7)


def prompt(length):
    return [numbers.randrange(300, 100_000) for _ in range(length)]


class Worker:
    """An engine's process."""

    def __init__(self, engine, peers, shape, quantization, threads):
        env = dict(os.environ, BENCH_THREADS=str(threads), OMP_NUM_THREADS=str(threads),
                   MKL_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR",
                   TOKENIZERS_PARALLELISM="false", VLLM_CPU_KVCACHE_SPACE="2",
                   VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                   LLAMA_SERVER=str(peers / "llama/llama-server"))
        if engine == "llama":
            env["LD_LIBRARY_PATH"] = str(peers / "llama")
        if engine == "vrust":
            env["PYTHONPATH"] = str(ROOT / "bindings/python")
            env["VRUST_LIBRARY"] = str(ROOT / "build/lib/libvrust.so")
        python = peers / PYTHONS[engine] / "bin/python"
        command = [python, HERE / "worker.py", engine, peers / "models" / shape]
        if quantization != "none":
            command.append(quantization)
        self.name = engine
        self.log = open(f"/tmp/vrust-bench-{engine}.log", "w")
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, env=env, text=True)
        self.read()
        self.start = time.perf_counter() - began

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended; see {self.log.name}")
        return json.loads(line)

    def ask(self, **task):
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self.read()

    def seconds(self, prompts, tokens):
        return self.ask(prompts=prompts, tokens=tokens)["seconds"]

    def rate(self, task, prompts):
        """Tokens a second."""
        if task == "decode":
            one = self.seconds(prompts[:1], 1)
            return 64 / (self.seconds(prompts[1:], 65) - one)
        if task == "concurrent":
            return len(prompts) * 64 / self.seconds(prompts, 64)
        return len(prompts[0]) / self.seconds(prompts, 1)

    def close(self):
        peak = self.ask(peak=True)["peak_mib"]
        self.process.stdin.close()
        self.process.wait(60)
        return peak


def prompts_of(task):
    if task == "decode":
        return [prompt(32), prompt(32)]
    if task == "concurrent":
        return [prompt(256) for _ in range(32)]
    return [prompt(int(task.split()[1]))]


def compare(options, peer, shape, quantization):
    """Both sides' figures of every task, and the ratios."""
    args = (options.peers, shape, quantization, options.threads)
    workers = [Worker("vrust", *args)]
    if peer != "vrust":
        workers.append(Worker(peer, *args))
    found = {"start": [[w.start] for w in workers]}
    for task in options.tasks:
        found[task] = [[] for _ in workers]
        for round in range(options.rounds + 1):
            prompts = prompts_of(task)
            order = list(enumerate(workers))
            for side, worker in order if round % 2 else reversed(order):
                rate = worker.rate(task, prompts)
                if round > 0:  # The first warms up.
                    found[task][side].append(rate)
    found["peak"] = [[w.close()] for w in workers]
    return found


def spread(values, digits):
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def report(shape, quantization, peer, found):
    print(f"\n{shape}, {'bf16' if quantization == 'none' else quantization}: vrust, {peer}")
    print(f"{'':14}{'vrust':>26}{peer:>26}{'ratio':>24}")
    for task, sides in found.items():
        digits = {"start": 2, "peak": 0, "decode": 1}.get(task, 0)
        cells = [spread(side, digits) for side in sides]
        if len(sides) > 1:
            ratios = [a / b for a, b in zip(*sides)]
            cells.append(spread(ratios, 2))
        print(f"{task:14}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--shapes", default="qwen3-0.6b,llama-3.2-1b")
    parser.add_argument("--quantization", default="none,int8,int4")
    parser.add_argument("--engines", default="openvino,llama,vllm,transformers")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.tasks = options.tasks.split(",")
    everything = []
    for shape in options.shapes.split(","):
        for quantization in options.quantization.split(","):
            for peer in options.engines.split(","):
                if quantization != "none" and peer in ("vllm", "transformers"):
                    continue
                try:
                    found = compare(options, peer, shape, quantization)
                except RuntimeError as error:
                    print(f"\n{shape}, {quantization}, {peer}: {error}", file=sys.stderr)
                    continue
                report(shape, quantization, peer, found)
                everything.append(dict(shape=shape, quantization=quantization, peer=peer,
                                       found=found))
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


main()
