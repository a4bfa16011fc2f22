#!/usr/bin/env python3
"""vrust against its peers on a CPU: the same checkpoint, token ids, threads and work.

compare.py [--peers FOLDER] [--shapes ..] [--quantization none,int8,int4] [--engines ..]
           [--tasks ..] [--rounds 3] [--results FILE]        measures, and adds to FILE
compare.py machine                                           what the machine can do at all
compare.py report [--markdown FILE] [--plot FOLDER]          tables of all that the results hold,
                                                             put between the marks of a file

The folder is what setup.sh filled. Each engine runs in a process of its own; within a run they
take turns, one task at a time, and a ratio is taken of each pair of turns, because memory speed
drifts within the hour. A turn that takes longer than --patience counts and is not repeated.
Results pile up in FILE, a JSON object a line: a row can be measured alone (--tasks), and vrust
alone (--engines vrust) against what is known of the peers. Engines are vrust, vrust-kv8 (its KV
cache in 8 bits, as OpenVINO's is), vrust-http, openvino, llama, llama-bench, vllm, transformers,
and reader: memory's own speed.

  start        seconds from the start of the process to the first token, files in the page cache
  decode       tokens/s of one stream: 128 / (time for 129 tokens - time for 1), prompt of 32
  prefill N    prompt tokens/s to the first token of a prompt never seen before
  concurrent   output tokens/s of 32 requests, 256 tokens in, 64 out
  peak         resident memory at its highest, MiB
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHONS = {"openvino": "ov", "vllm": "vllm", "transformers": "vllm"}
# Who takes turns when nobody is named: as many as fit in 16 GiB.
GROUPS = [["vrust", "vrust-kv8", "openvino", "llama-bench", "reader"], ["vrust", "llama"],
          ["vrust", "vllm"], ["vrust", "transformers"], ["vrust", "vrust-http"]]
TASKS = ["decode", "prefill 512", "prefill 2048", "concurrent"]
# llama.cpp's server is left out: llama-bench is faster at one stream, OpenVINO with many.
QUANTIZED = {"vrust", "vrust-kv8", "openvino", "llama-bench", "reader"}
# Seconds in which engines end what goes on behind their start.
SETTLE = 4
# Sums never meet in two engines by chance: each run draws prompts of its own.
numbers = random.Random(time.time_ns())


def prompt(length):
    return [numbers.randrange(300, 100_000) for _ in range(length)]


def prompts_of(task):
    if task == "decode":
        return [prompt(32), prompt(32)]
    if task == "concurrent":
        return [prompt(256) for _ in range(32)]
    return [prompt(int(task.split()[1]))]


class Worker:
    """An engine's process."""

    def __init__(self, engine, peers, shape, quantization, threads):
        env = dict(os.environ, BENCH_THREADS=str(threads), OMP_NUM_THREADS=str(threads),
                   MKL_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR",
                   TOKENIZERS_PARALLELISM="false", VLLM_CPU_KVCACHE_SPACE="2",
                   VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                   VLLM_CACHE_ROOT=str(peers / "vllm-cache"),
                   LLAMA_SERVER=str(peers / "llama/llama-server"),
                   PYTHONPATH=str(ROOT / "bindings/python") if engine.startswith("vrust") else "",
                   VRUST_LIBRARY=str(library()), VRUST_COMMAND=str(ROOT / "build/bin/vrust"))
        python = peers / PYTHONS.get(engine, "tools") / "bin/python"
        command = [python, HERE / "worker.py", engine, peers / "models" / shape]
        if quantization != "none":
            command.append(quantization)
        self.name = engine
        self.log = open(peers / f"{engine}.log", "w")
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
            return 128 / (self.seconds(prompts[1:], 129) - one)
        if task == "concurrent":
            return len(prompts) * 64 / self.seconds(prompts, 64)
        return len(prompts[0]) / self.seconds(prompts, 1)

    def close(self):
        peak = self.ask(peak=True)["peak_mib"]
        self.process.stdin.close()
        self.process.wait(60)
        return peak


class LlamaBench:
    """llama.cpp's own benchmark, which is faster than its server at one stream."""

    name, start = "llama-bench", None

    def __init__(self, engine, peers, shape, quantization, threads):
        file = {"none": "bf16", "int8": "Q8_0", "int4": "Q4_0"}[quantization]
        model = peers / "models" / shape / f"model-{file}.gguf"
        self.command = [peers / "llama/llama-bench", "-m", model, "-t", threads, "-fa", 1,
                        "-r", 1, "-o", "json"]

    def rate(self, task, prompts):
        if task == "concurrent":
            return None
        work = ["-p", 0, "-n", 128] if task == "decode" else ["-n", 0, "-p", len(prompts[0])]
        command = [str(c) for c in [*self.command, *work]]
        out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             check=True).stdout
        return json.loads(out)[0]["avg_ts"]

    def close(self):
        return None


class Reader:
    """The best of all readers, averaged over about as long as decoding takes, in turn with it:
    GB/s, not tokens."""

    name, start = "reader", None

    def __init__(self, engine, peers, shape, quantization, threads):
        self.command = [str(build_machine(peers)), str(threads), "read"]

    def rate(self, task, prompts):
        if task != "decode":
            return None
        line = subprocess.run(self.command, check=True, stdout=subprocess.PIPE).stdout
        return max(json.loads(line).values())

    def close(self):
        return None


def library():
    return ROOT / "build/lib/libvrust.so"


def build_id():
    """Tells one build of vrust from another."""
    return hashlib.sha256(library().read_bytes()).hexdigest()[:12]


def warm(peers, shape):
    """Reads the weights once, so that every engine finds them in the page cache."""
    for file in (peers / "models").glob(f"{shape}*/**/*"):
        if file.suffix in (".safetensors", ".gguf", ".bin"):
            with open(file, "rb") as weights:
                while weights.read(1 << 24):
                    pass


def measure(options, shape, quantization, engines, note):
    """Starts the engines, gives each task in turn, and notes each turn."""
    args = (options.peers, shape, quantization, options.threads)
    workers = []
    for engine in engines:
        kind = {"llama-bench": LlamaBench, "reader": Reader}.get(engine, Worker)
        worker = kind(engine, *args)
        workers.append(worker)
        if worker.start is not None:
            note(engine, "start", 0, worker.start)
            time.sleep(SETTLE)
    for task in options.tasks:
        if task in ("start", "peak"):
            continue  # Noted of every process, whatever else it is asked.
        slow = set()
        # A turn of many prompts takes long, and prompts of 2,048 have warmed up all but the cache.
        warmed = task == "concurrent" and "prefill 2048" in options.tasks
        warm_up = 0 if warmed else options.warm_up
        for round in range(options.rounds + warm_up):
            prompts = prompts_of(task)
            turn = round % len(workers)
            for worker in workers[turn:] + workers[:turn]:
                if worker in slow:
                    continue
                began = time.perf_counter()
                rate = worker.rate(task, prompts)
                if time.perf_counter() - began > options.patience:
                    slow.add(worker)
                if rate is not None and (round >= warm_up or worker in slow):
                    note(worker.name, task, round, rate)
    for worker in workers:
        peak = worker.close()
        if peak is not None:
            note(worker.name, "peak", 0, peak)


def run(options):
    cpu, build = report.cpu_name(), build_id()
    for shape in options.shapes:
        warm(options.peers, shape)
        for quantization in options.quantization:
            for group in options.engines or GROUPS:
                engines = [e for e in group if quantization == "none" or e in QUANTIZED]
                if len(engines) < min(2, len(group)):
                    continue
                known = dict(session=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), cpu=cpu,
                             threads=options.threads, shape=shape, quantization=quantization)
                try:
                    measure(options, shape, quantization, engines, Notes(options, known, build))
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    print(f"{shape}, {quantization}: {error}", file=sys.stderr)


class Notes:
    """Adds figures to the results."""

    def __init__(self, options, known, build):
        self.path, self.known, self.build = options.results, known, build

    def __call__(self, engine, task, round, value):
        record = dict(self.known, engine=engine, task=task, round=round, value=value)
        if engine.startswith("vrust"):
            record["build"] = self.build
        with open(self.path, "a") as out:
            print(json.dumps(record), file=out)
        print("{shape} {quantization}".format(**record), f"{task} {engine}: {value:.2f}",
              flush=True)


def build_machine(peers):
    program = peers / "machine"
    subprocess.run(["cc", "-O2", "-pthread", HERE / "machine.c", "-o", program], check=True)
    return program


def machine(options):
    program = build_machine(options.peers)
    line = subprocess.run([program, str(options.threads)], check=True, text=True,
                          stdout=subprocess.PIPE).stdout
    session = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    figures = json.loads(line)
    record = dict(session=session, cpu=report.cpu_name(), machine=figures)
    with open(options.results, "a") as out:
        print(json.dumps(record), file=out)
    for name, value in figures.items():
        print(f"{name}: {value}")


def names(text):
    return text.split(",")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mode", nargs="?", default="run", choices=["run", "machine", "report"])
    parser.add_argument("--peers", type=Path, default=ROOT / "build/peers")
    parser.add_argument("--shapes", type=names, default=["qwen3-0.6b", "llama-3.2-1b"])
    parser.add_argument("--quantization", type=names, default=["none", "int8", "int4"])
    parser.add_argument("--engines", type=lambda text: [names(text)],
                        help="who take turns; group by group by default")
    parser.add_argument("--tasks", type=names, default=TASKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1,
                        help="turns of a task that are not counted")
    parser.add_argument("--patience", type=float, default=40,
                        help="seconds; a longer turn counts, and is not repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.results = options.results or options.peers / "results.jsonl"
    if options.mode == "run":
        run(options)
    elif options.mode == "machine":
        machine(options)
    else:
        report.write(options.results, options.markdown, options.plot)


main()
