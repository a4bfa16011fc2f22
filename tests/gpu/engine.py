"""What the engine does on a GPU: engine.py TASK full|dry; the last line is a JSON object.

golden      greedy tokens of every architecture in float32 against Hugging Face transformers
bfloat16    logprobs on tensor cores against the CPU's, prompts in pieces beside tokens drawn
first       loads the 8B shape with dummy weights and makes one token
decode      milliseconds a step at a context of 1k, by batch size, and the share of the limit
prefill     prompts of 1k and 8k, as a share of 790 TFLOP/s
saturation  output tokens a second of 128/128, 1000/1000 and 2048/128, all requests at once
page        32 requests as long as those of vLLM's first figures, as peers.py page runs them
mix         Qwen3-0.6B, 256 sequences of 100 to 1024 in and out, as nano-vllm's bench has it
"""

import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

from mixes import chats

from vrust import Engine, _abi
from vrust import engine as core

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DRY = sys.argv[2:] == ["dry"]
# Bytes a second measured by copy, and bf16 products, by a part of the card's name.
CARDS = {"H100": (3.0e12, 790e12), "H200": (4.3e12, 790e12)}


@functools.cache
def card():
    """The limits of the card that is here; an H200's where it is not known. Not asked for at the
    start of a process, which is timed."""
    tool = shutil.which("nvidia-smi")
    name = "" if DRY or not tool else subprocess.run(
        [tool, "--id=0", "--query-gpu=name", "--format=csv,noheader"], text=True,
        stdout=subprocess.PIPE, check=False).stdout
    return next((CARDS[known] for known in CARDS if known in name), CARDS["H200"])

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 128000, "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
QWEN = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "tie_word_embeddings": True,
    "hidden_act": "silu", "attention_bias": False, "bos_token_id": 151643,
    "eos_token_id": 151645, "torch_dtype": "bfloat16",
}
SMALL = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 64,
         "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 512,
         "eos_token_id": 2, "bos_token_id": 1}


# First and last token of each finished request, in nanoseconds of the engine's clock.
FINISHED = {}
_decode = core._decode


def _watch(event, data):
    if event.kind == _abi.FINISHED:
        FINISHED[event.request_id] = (event.first_token_ns, event.last_token_ns)
    return _decode(event, data)


core._decode = _watch


def shape(config):
    return {**config, **SMALL} if DRY else config


def engine(config, max_len, seqs, **more):
    """An engine with dummy weights of a shape, on the GPU."""
    folder = tempfile.mkdtemp(prefix="vrust-gpu-")
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(shape(config), f)
    if DRY:
        more["kv_cache_memory_bytes"] = 16 << 20
    made = Engine(
        folder, extra={"device": "cuda:0"}, load_format="dummy", skip_tokenizer=True,
        max_model_len=max_len, max_num_seqs=seqs,
        enable_prefix_caching=more.pop("enable_prefix_caching", 0), **more)
    print("engine:", made.info.get("backend"), flush=True)
    return made


def prompts(count, length, seed=0):
    rng = random.Random(seed)
    most = shape(LLAMA)["vocab_size"] - 10
    return [[rng.randrange(3, most) for _ in range(length)] for _ in range(count)]


def generate(made, requests, temperature=0):
    """Runs (prompt, tokens) pairs together: seconds, and the tokens that came."""
    began = time.perf_counter()
    streams = [made.generate(p, max_tokens=n, temperature=temperature, ignore_eos=True)
               for p, n in requests]
    count = sum(len(delta.token_ids) for stream in streams for delta in stream)
    seconds = time.perf_counter() - began
    wanted = sum(n for _, n in requests)
    if count != wanted:
        raise SystemExit(f"{count} tokens instead of {wanted}")
    return seconds, count


class Watch:
    """How long the host took for a step beside the device, and how long the device idled."""

    def __init__(self, made):
        self.made, self.before, self.sampler = made, self.counters(made), None
        tool = shutil.which("nvidia-smi")
        if tool and not DRY:
            self.sampler = subprocess.Popen(
                [tool, "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
                 "-lms", "100"], stdout=subprocess.PIPE, text=True)

    @staticmethod
    def counters(made):
        page = made.metrics()
        page = page.decode() if isinstance(page, bytes) else page

        def value(name):
            return float(re.search(rf"^vrust:{name}_total(?:{{.*}})? (\S+)$", page, re.M)[1])

        return [value(name) for name in ("steps", "step_seconds", "model_seconds")]

    def end(self):
        """Host time of a step in milliseconds; the share of time without a kernel, if known."""
        steps, all_of_it, model = (
            now - then for now, then in zip(self.counters(self.made), self.before))
        idle = "not known"
        if self.sampler:
            self.sampler.terminate()
            busy = [int(x) for x in self.sampler.communicate()[0].split() if x.isdigit()]
            # The first and the last window are not wholly of this run.
            busy = busy[2:-2]
            idle = f"{1 - sum(busy) / len(busy) / 100:.1%}" if busy else idle
        return f"{(all_of_it - model) / max(1, steps) * 1e3:.3f} ms", idle


def step_limit(batch, context):
    """Seconds of one step at least: weights and the cache, or the products."""
    c = LLAMA
    kv_width = c["num_key_value_heads"] * 128
    layer = c["hidden_size"] * (2 * c["hidden_size"] + 2 * kv_width + 3 * c["intermediate_size"])
    parameters = c["num_hidden_layers"] * layer + c["vocab_size"] * c["hidden_size"]
    cache = 2 * 2 * c["num_hidden_layers"] * kv_width
    bandwidth, flops = card()
    weights = max(2 * parameters / bandwidth, 2 * parameters * batch / flops)
    return weights + batch * context * cache / bandwidth


def share(part, of):
    """A share of a limit, which the tiny shapes of a dry run do not have."""
    return "" if DRY else f", {part:.0%} {of}"


def decode():
    """Prompts are computed once and then found in the cache, so that all sequences run together."""
    context, steps = (24, 6) if DRY else (1024, 96)
    sizes = (1, 3) if DRY else (1, 8, 32, 128, 256)
    made = engine(LLAMA, context + steps + 16, max(sizes), enable_prefix_caching=1)
    out = {}
    for batch in sizes:
        ids = prompts(batch, context, batch)
        # Long enough that all run together for some steps: the second is captured as a graph.
        generate(made, [(p, 8) for p in ids])
        FINISHED.clear()
        watch = Watch(made)
        generate(made, [(p, 1 + steps) for p in ids])
        host, _ = watch.end()
        first, last = max(FINISHED.values())
        step = (last - first) / 1e9 / steps
        limit = step_limit(batch, context + steps / 2)
        out[f"B={batch}"] = (f"{step * 1e3:.2f} ms, {batch / step:.0f} tok/s"
                             + share(limit / step, "of the limit") + f", host {host} a step")
    made.close()
    return out


def prefill():
    lengths = (24, 70) if DRY else (1024, 8192)
    made = engine(LLAMA, max(lengths) + 16, 4, max_num_batched_tokens=max(lengths))
    c, out = LLAMA, {}
    layer = c["hidden_size"] * (2 * c["hidden_size"] + 2 * 1024 + 3 * c["intermediate_size"])
    for length in lengths:
        times = []
        for i in range(2 if DRY else 6):
            times.append(generate(made, [(prompts(1, length, i)[0], 1)])[0])
        best = sorted(times)[len(times) // 2]
        flops = c["num_hidden_layers"] * (2.0 * layer * length + 2.0 * 4096 * length * length)
        out[f"{length} tokens"] = (f"{best * 1e3:.1f} ms"
                                   + share(flops / best / card()[1], "of 790 TFLOP/s"))
    made.close()
    return out


def saturation():
    kinds = ((8, 8, 4),) if DRY else ((128, 128, 2048), (1000, 1000, 320), (2048, 128, 320))
    out = {}
    made = engine(LLAMA, 64 if DRY else 2304, 4 if DRY else 512,
                  max_num_batched_tokens=64 if DRY else 8192)
    for prompt, tokens, count in kinds:
        generate(made, [(p, 8) for p in prompts(max(1, count // 8), prompt, 1)])
        seconds, made_tokens = generate(made, [(p, tokens) for p in prompts(count, prompt)])
        out[f"{prompt}/{tokens}"] = f"{made_tokens / seconds:.0f} tok/s out, {count} requests"
    made.close()
    return out


def mix():
    rng = random.Random(0)
    count, low, high = (4, 3, 12) if DRY else (256, 100, 1024)
    made = engine(QWEN, 64 if DRY else 4096, 4 if DRY else 256)
    ids = [[rng.randrange(3, 400 if DRY else 10000) for _ in range(rng.randint(low, high))]
           for _ in range(count)]
    requests = [(p, rng.randint(low, high)) for p in ids]
    # On a new machine the first steps of each size time cuBLASLt's algorithms.
    generate(made, requests, 0.6)
    watch = Watch(made)
    seconds, tokens = generate(made, requests, 0.6)
    host, idle = watch.end()
    made.close()
    return {"tok/s": round(tokens / seconds), "tokens": tokens, "seconds": round(seconds, 2),
            "host time a step": host, "GPU idle": idle}


def page():
    lengths = chats(4, 20) if DRY else chats(32)
    made = engine(LLAMA, 64 if DRY else 2048, 4 if DRY else 64)
    requests = [(prompts(1, length, i)[0], tokens) for i, (length, tokens) in enumerate(lengths)]
    generate(made, requests[:max(1, len(requests) // 2)])
    seconds, tokens = generate(made, requests)
    made.close()
    return {"tok/s": round(tokens / seconds), "tokens": tokens}


def first():
    made = engine(LLAMA, 256 if DRY else 4096, 4 if DRY else 64)
    generate(made, [(prompts(1, 16)[0], 1)])
    made.close()
    return {"info": made.info.get("backend", "")}


def golden():
    """Tokens equal; in float32 the margins are wide enough for any order of sums."""
    folder = os.path.join(ROOT, "tests", "golden")
    out = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name, "golden.json")
        if not os.path.exists(os.path.join(folder, name, "config.json")):
            continue
        with open(path, encoding="utf-8") as f:
            want = json.load(f)
        if want.get("compute_dtype", "float32") != "float32" or "bf16" in name:
            continue
        made = Engine(
            os.path.join(folder, name), extra={"device": "cuda:0"}, dtype="float32",
            skip_tokenizer=True, kv_cache_memory_bytes=64 << 20, max_num_batched_tokens=33,
            use_generation_config=0, max_num_seqs=8)
        streams = [(p, made.generate(p["prompt_token_ids"], temperature=0, ignore_eos=True,
                                     max_tokens=len(p["greedy_token_ids"])))
                   for p in want["prompts"]]
        for prompt, stream in streams:
            ids = [t for delta in stream for t in delta.token_ids]
            if ids != prompt["greedy_token_ids"]:
                raise SystemExit(f"{name}: {ids} instead of {prompt['greedy_token_ids']}")
        made.close()
        out[name] = f"{len(streams)} prompts equal"
    if not out:
        raise SystemExit("no golden files")
    return out


def scores(folder, device):
    """Logprobs of some prompts' tokens, and of the greedy tokens after them, by request."""
    made = Engine(
        folder, extra={"device": device}, dtype="bfloat16", load_format="dummy",
        skip_tokenizer=True, kv_cache_memory_bytes=16 << 20, max_model_len=512,
        max_num_batched_tokens=48, max_num_seqs=8)
    ids = [[(37 * j + 11 * i) % 400 + 3 for j in range(n)] for i, n in
           enumerate((5, 150, 33, 70, 20, 90))]
    streams = [made.generate(p, max_tokens=16, temperature=0, ignore_eos=True, prompt_logprobs=0,
                             logprobs=0) for p in ids]
    out = []
    for stream in streams:
        prompt, tokens = [], []
        for delta in stream:
            (prompt if delta.is_prompt else tokens).extend(p[0] for p in delta.logprobs)
        out.append((prompt, tokens))
    made.close()
    return out


def bfloat16():
    """Sums run in another order than the CPU's; greedy tokens are compared as long as both choose
    the same."""
    out = {}
    for heads in (64, 128, 256):
        folder = tempfile.mkdtemp(prefix="vrust-gpu-")
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
            json.dump({**LLAMA, **SMALL, "head_dim": heads, "num_attention_heads": 4}, f)
        largest, count = 0.0, 0
        for ours, cpus in zip(scores(folder, "cuda:0"), scores(folder, "cpu")):
            for part, (mine, theirs) in enumerate(zip(ours, cpus)):
                for a, b in zip(mine, theirs):
                    if part == 1 and a.token_id != b.token_id:
                        break
                    largest, count = max(largest, abs(a.logprob - b.logprob)), count + 1
        if count < 362 or not largest < 0.05:
            raise SystemExit(f"heads of {heads}: {count} places, off by {largest}")
        out[f"heads of {heads}"] = f"{count} places, off by {largest:.1e} at most"
    return out


TASKS = {f.__name__: f for f in (golden, bfloat16, first, decode, prefill, saturation, mix, page)}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]]()))
