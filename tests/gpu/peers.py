"""The other side, in torch: peers.py TASK full|dry; the last line is a JSON object.

ceilings      copy bandwidth and bf16 products, as torch and cuBLAS reach them
graph         a static-KV decoder of Llama-3.1-8B's shape in a CUDA graph, in the manner of gpt-fast
transformers  Hugging Face transformers with the same shape: static batches
continuous    the same library's continuous batching, 64 requests at once
page          the 32 requests of engine.py page as one static batch
"""

import json
import sys
import time

from mixes import chats

DRY = sys.argv[2:] == ["dry"]
HIDDEN, MIDDLE, LAYERS, HEADS, KV_HEADS, DIM, VOCAB = 4096, 14336, 32, 32, 8, 128, 128256


def seconds(torch, work, repeats=10):
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def capture(torch, work):
    """A CUDA graph of what `work` does, which runs aside before."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        work()
    return captured


def product_seconds(torch, m, n, k):
    """Seconds of a product in a graph of several, whose weights together outgrow the cache."""
    copies = max(1, (256 << 20) // (2 * n * k))
    weights = torch.randn(copies, n, k, dtype=torch.bfloat16, device="cuda")
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")

    def products():
        for w in weights:
            torch.nn.functional.linear(x, w)

    return seconds(torch, capture(torch, products).replay, 5) / copies


def ceilings(torch):
    out = {}
    a = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    copy = seconds(torch, lambda: b.copy_(a))
    out["copy"] = f"{2 * a.numel() / copy / 1e12:.2f} TB/s"
    # Every product of a layer, and the head, at the rows of small and large steps.
    shapes = {"qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), "out": (HIDDEN, HEADS * DIM),
              "gate and up": (2 * MIDDLE, HIDDEN), "down": (HIDDEN, MIDDLE),
              "head": (VOCAB, HIDDEN)}
    for name, (n, k) in shapes.items():
        for m in (1, 16, 32, 128, 256, 1024, 8192):
            if name == "head" and m > 256:
                continue
            took = product_seconds(torch, m, n, k)
            flops, moved = 2 * m * n * k, 2 * n * k
            out[f"cuBLASLt {name} {m}x{n}x{k}"] = (
                f"{took * 1e6:.1f} us, {flops / took / 1e12:.0f} TFLOP/s, "
                f"{moved / took / 1e12:.2f} TB/s")
    return out


class Decoder:
    """One step of the shape with a cache of fixed size; random weights."""

    def __init__(self, torch, batch, context):
        self.torch, self.batch, self.context = torch, batch, context
        kind = {"dtype": torch.bfloat16, "device": "cuda"}
        width = (HEADS + 2 * KV_HEADS) * DIM
        self.layers = [
            {"norm": torch.ones(HIDDEN, **kind), "norm2": torch.ones(HIDDEN, **kind),
             "qkv": torch.randn(width, HIDDEN, **kind) * 0.01,
             "out": torch.randn(HIDDEN, HEADS * DIM, **kind) * 0.01,
             "up": torch.randn(2 * MIDDLE, HIDDEN, **kind) * 0.01,
             "down": torch.randn(HIDDEN, MIDDLE, **kind) * 0.01}
            for _ in range(LAYERS)]
        self.head = torch.randn(VOCAB, HIDDEN, **kind) * 0.01
        self.table = torch.randn(VOCAB, HIDDEN, **kind)
        self.cache = [torch.randn(2, batch, KV_HEADS, context, DIM, **kind) for _ in range(LAYERS)]
        self.ids = torch.zeros(batch, dtype=torch.long, device="cuda")

    def step(self):
        f = self.torch.nn.functional
        x = self.table[self.ids]
        for layer, cache in zip(self.layers, self.cache):
            h = f.rms_norm(x, (HIDDEN,), layer["norm"], 1e-5)
            q, k, v = f.linear(h, layer["qkv"]).split(
                [HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=-1)
            cache[0][:, :, -1] = k.view(self.batch, KV_HEADS, DIM)
            cache[1][:, :, -1] = v.view(self.batch, KV_HEADS, DIM)
            y = f.scaled_dot_product_attention(
                q.view(self.batch, HEADS, 1, DIM), cache[0], cache[1], enable_gqa=True)
            x = x + f.linear(y.reshape(self.batch, HEADS * DIM), layer["out"])
            h = f.rms_norm(x, (HIDDEN,), layer["norm2"], 1e-5)
            gate, up = f.linear(h, layer["up"]).chunk(2, dim=-1)
            x = x + f.linear(f.silu(gate) * up, layer["down"])
        self.ids.copy_(f.linear(x, self.head).argmax(dim=-1))


def graph(torch):
    out = {}
    with torch.no_grad():
        for batch in (1, 32, 128):
            decoder = Decoder(torch, batch, 1024)
            captured = capture(torch, decoder.step)
            took = seconds(torch, captured.replay)
            out[f"B={batch}"] = f"{took * 1e3:.2f} ms, {batch / took:.0f} tok/s"
            del captured, decoder
            torch.cuda.empty_cache()
    return out


def llama(torch, **more):
    """The shape in transformers, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=MIDDLE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, vocab_size=VOCAB,
        max_position_embeddings=8192, **more)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return LlamaForCausalLM(config).eval()


def static(torch, model, ids, mask, tokens):
    """Seconds of one static batch."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens,
                   do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def transformers(torch):
    model, out = llama(torch), {}
    for batch, prompt, tokens in ((1, 1024, 32), (32, 200, 180)):
        ids = torch.randint(3, VOCAB, (batch, prompt), device="cuda")
        took = static(torch, model, ids, torch.ones_like(ids), tokens)
        out[f"{batch} of {prompt}/{tokens}"] = f"{batch * tokens / took:.0f} tok/s out"
    return out


def continuous(torch):
    from transformers import GenerationConfig
    # Newer versions and older ones name it differently.
    model, last = None, ""
    for name in ("paged|sdpa", "sdpa_paged", "paged_attention"):
        try:
            model = llama(torch, attn_implementation=name)
            break
        except (ValueError, ImportError, KeyError) as e:
            last = str(e)
    if model is None or not hasattr(model, "generate_batch"):
        return {"skipped": f"this transformers has no continuous batching: {last}"}
    prompt, tokens, count = 200, 180, 64
    ids = torch.randint(3, VOCAB, (count, prompt)).tolist()
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1,
                              pad_token_id=0, use_cuda_graph=False)
    began = time.perf_counter()
    answers = model.generate_batch(inputs=ids, generation_config=config)
    took = time.perf_counter() - began
    made = sum(len(answer.generated_tokens) for answer in answers.values())
    return {f"{count} of {prompt}/{tokens}": f"{made / took:.0f} tok/s out"}


def page(torch):
    """As vLLM's own script of that time had it: a batch padded to the left, run to the longest."""
    model, lengths = llama(torch), chats(32)
    longest = max(prompt for prompt, _ in lengths)
    ids = torch.randint(3, VOCAB, (len(lengths), longest), device="cuda")
    mask = torch.ones_like(ids)
    for row, (prompt, _) in enumerate(lengths):
        mask[row, :longest - prompt] = 0
    took = static(torch, model, ids, mask, max(tokens for _, tokens in lengths))
    wanted = sum(tokens for _, tokens in lengths)
    return {"tok/s": round(wanted / took), "tokens": wanted}


TASKS = {"ceilings": ceilings, "graph": graph, "transformers": transformers,
         "continuous": continuous, "page": page}


def main():
    if DRY:
        return {"skipped": "peers need a GPU"}
    try:
        import torch
    except ImportError:
        return {"skipped": "torch is not installed"}
    try:
        return TASKS[sys.argv[1]](torch)
    except ImportError as e:
        return {"skipped": str(e)}


if __name__ == "__main__":
    print(json.dumps(main()))
