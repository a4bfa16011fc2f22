"""Runs a model folder with transformers and records its goldens."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM

TOP = 5
PROMPT_TOP = 3


def load_model(folder, dtype=torch.float32):
    """Loads the folder as any user would, and insists that every tensor found its place."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info.get(kind), f"{folder}: {kind} {info[kind]}"
    return model.eval()


@torch.no_grad()
def forward_logits(model, token_ids):
    """Logits [len(token_ids), vocab] of one whole forward pass, without a cache."""
    logits = model(torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits.to(torch.float64).numpy()


def log_softmax(logits):
    """Natural log of the softmax over the last axis, in double precision."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def greedy(model, prompt, count):
    """Greedy tokens, end-of-sequence ids ignored, and the margin of each choice in logits."""
    tokens, margins = [], []
    for _ in range(count):
        logits = forward_logits(model, prompt + tokens)[-1]
        second, first = np.sort(logits)[-2:]
        tokens.append(int(logits.argmax()))
        margins.append(float(first - second))
    return tokens, margins


@torch.no_grad()
def cached_greedy(model, prompt, count):
    """The same by transformers' own generation loop with its key/value cache."""
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([prompt])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                            max_new_tokens=count, pad_token_id=0)
    return output[0, prompt.shape[1]:].tolist()


@torch.no_grad()
def mean_max_attention(model, token_ids, skip=8):
    """Mean over layers, heads and queries (past the first few) of the largest probability."""
    attentions = model(torch.tensor([token_ids]), output_attentions=True).attentions
    return float(np.mean([a[0, :, skip:].max(-1).values.mean() for a in attentions]))


def record_prompt(model, prompt, count):
    """The golden entry of one prompt."""
    tokens, margins = greedy(model, prompt, count)
    assert tokens == cached_greedy(model, prompt, count), "the cache changes the greedy tokens"
    logprobs = log_softmax(forward_logits(model, prompt + tokens))
    return {
        "prompt_token_ids": prompt,
        "greedy_token_ids": tokens,
        "min_margin": min(margins),
        "steps": steps(logprobs, prompt, tokens),
        "prompt_logprobs": prompt_logprobs(logprobs, prompt),
    }


def steps(logprobs, prompt, tokens):
    """Per greedy token: its logprob and the most likely tokens at that place."""
    return [entry(logprobs[len(prompt) - 1 + i], token, TOP) for i, token in enumerate(tokens)]


def prompt_logprobs(logprobs, prompt):
    """Per prompt token: null for the first, then logprob, rank and the most likely tokens."""
    rest = [entry(logprobs[i - 1], prompt[i], PROMPT_TOP, rank=True)
            for i in range(1, len(prompt))]
    return [None] + rest


def entry(row, token, top, rank=False):
    """One place: the token, its logprob, perhaps its rank (1 is the most likely), and the top."""
    found = {"id": token, "logprob": float(row[token])}
    if rank:
        found["rank"] = int((row > row[token]).sum()) + 1
    order = np.argsort(-row, kind="stable")[:top]
    found["top"] = [[int(i), float(row[i])] for i in order]
    return found


def largest_difference(folder, other_dtype, prompts):
    """Largest change of a prompt's or greedy token's logprob when run in another dtype."""
    model, largest = load_model(folder, other_dtype), 0.0
    for golden in prompts:
        prompt, tokens = golden["prompt_token_ids"], golden["greedy_token_ids"]
        logprobs = log_softmax(forward_logits(model, prompt + tokens))
        got = prompt_logprobs(logprobs, prompt)[1:] + steps(logprobs, prompt, tokens)
        want = golden["prompt_logprobs"][1:] + golden["steps"]
        gaps = [abs(g["logprob"] - w["logprob"]) for g, w in zip(got, want, strict=True)]
        largest = max(largest, *gaps)
    return largest


def record_bf16(folder, prompts):
    """Runs the model in bfloat16 along the float32 model's greedy tokens."""
    model, entries = load_model(folder, torch.bfloat16), []
    for golden in prompts:
        prompt, tokens = golden["prompt_token_ids"], golden["greedy_token_ids"]
        logprobs = log_softmax(forward_logits(model, prompt + tokens))
        own_tokens, _ = greedy(model, prompt, len(tokens))
        entries.append({
            "greedy_token_ids": own_tokens,
            "steps": steps(logprobs, prompt, tokens),
            "prompt_logprobs": prompt_logprobs(logprobs, prompt),
        })
    return entries
