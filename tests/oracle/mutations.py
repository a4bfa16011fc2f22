"""Wrong models on purpose: shows that the goldens would notice each mistake.

A mutation changes the config, the tensors or the loaded model of a case; transformers then runs
the golden token sequences. It is noticed when a greedy token differs or a greedy token's logprob
moves by more than NOTICED (or FAINT).
"""

import json
import pathlib
import tempfile

import numpy as np
from safetensors.numpy import load_file

import record
from checkpoint import write_folder
from cases import WINDOW

NOTICED = 1e-2
FAINT = {"exact gelu instead of gelu_new": 5e-4}
"""Mistakes that are small by nature: to notice these a test must compare within 1e-4."""


def check(cases, golden_root):
    """Prints a table of every case's mutations and fails if one goes unnoticed."""
    missed = []
    print("| case | mutation | tokens changed | largest logprob change | median |")
    print("|---|---|---|---|---|")
    for case in cases:
        if case.storage != "float32" or case.shards != 1 or case.base_names:
            continue
        golden = json.loads((golden_root / case.name / "golden.json").read_text())
        for name, change in mutations_of(case).items():
            changed, largest, median = effect(case, golden_root / case.name, golden, change)
            row = f"| {case.name} | {name} | {changed} | {largest:.3g} | {median:.2g} |"
            print(row, flush=True)
            if not changed and largest <= FAINT.get(name, NOTICED):
                missed.append(f"{case.name}: {name}")
    assert not missed, f"unnoticed: {missed}"


def effect(case, folder, golden, change):
    """How many greedy choices a mutation changes, and by how much it moves their logprobs."""
    config = json.loads((folder / "config.json").read_text())
    arrays = load_file(folder / "model.safetensors")
    patch = change(config, arrays)
    with tempfile.TemporaryDirectory() as scratch:
        mutant = pathlib.Path(scratch) / case.name
        write_folder(mutant, config, arrays, case)
        model = record.load_model(mutant)
    if patch:
        patch(model)
    changed, moves = 0, []
    for prompt in golden["prompts"]:
        ids, tokens = prompt["prompt_token_ids"], prompt["greedy_token_ids"]
        logprobs = record.log_softmax(record.forward_logits(model, ids + tokens))
        for got, want in zip(record.steps(logprobs, ids, tokens), prompt["steps"]):
            changed += got["top"][0][0] != want["id"]
            moves.append(abs(got["logprob"] - want["logprob"]))
    return changed, max(moves), float(np.median(moves))


def mutations_of(case):
    """name -> function(config, arrays) that changes them in place, perhaps returning a patch."""
    if case.config["model_type"] == "gpt2":
        return GPT2
    changes = dict(EVERY_ROPE_MODEL)
    changes["RMS eps 1e-3"] = set_config(rms_norm_eps=1e-3)
    wrong = 1e-6 if case.config["rms_norm_eps"] == 1e-5 else 1e-5
    changes[f"RMS eps {wrong:.0e}"] = set_config(rms_norm_eps=wrong)
    if case.config["num_key_value_heads"] < case.config["num_attention_heads"]:
        changes["key/value heads rolled by one"] = roll_kv_heads
        changes["query head h uses group h % groups"] = interleave_groups
    if case.config["tie_word_embeddings"]:
        changes["own head instead of tied"] = untie
    else:
        changes["tied head instead of own"] = tie
    if case.config.get("head_dim"):
        changes["scores scaled by hidden / heads"] = wrong_score_scale
    if case.config["model_type"] == "qwen2":
        for name in ("q", "k", "v"):
            changes[f"{name} bias dropped"] = zero(f"self_attn.{name}_proj.bias")
    if case.config["model_type"] == "qwen3":
        changes["q norm weight dropped"] = ones("q_norm.weight")
        changes["k norm weight dropped"] = ones("k_norm.weight")
        changes["q/k norm after rope"] = norm_after_rope
    if case.config.get("rope_scaling") or "rope_parameters" in case.config:
        changes.update(LLAMA3_SCALING)
    if case.config.get("sliding_window") == WINDOW:
        changes.update(SLIDING_WINDOW)
    if case.config.get("use_sliding_window"):
        changes["every layer windowed"] = set_config(max_window_layers=0)
    return changes


def set_config(**changes):
    """A mutation of config.json alone."""
    return lambda config, arrays: config.update(changes)


def zero(ending):
    """A mutation that drops the tensors of a name."""
    return lambda config, arrays: fill(arrays, ending, 0.0)


def ones(ending):
    """A mutation that takes a norm's weights for ones."""
    return lambda config, arrays: fill(arrays, ending, 1.0)


def fill(arrays, ending, value):
    """Fills every tensor whose name has the ending."""
    names = [n for n in arrays if n.endswith(ending)]
    assert names, ending
    for name in names:
        arrays[name] = np.full_like(arrays[name], value)


def head_size(config):
    """Elements of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def map_heads(arrays, endings, size, function, axis=0):
    """Rewrites tensors as function([heads, size, ...]) along an axis."""
    for name in [n for n in arrays if any(e in n for e in endings)]:
        array = np.moveaxis(arrays[name], axis, 0)
        heads = array.reshape(-1, size, *array.shape[1:])
        array = function(heads).reshape(array.shape)
        arrays[name] = np.ascontiguousarray(np.moveaxis(array, 0, axis))


def no_rope(config, arrays):
    """Every position rotates by nothing."""
    return lambda model: model.model.rotary_emb.inv_freq.zero_()


def double_theta(config, arrays):
    """Doubles the base of the rotation, wherever the config has it."""
    holder = config.get("rope_parameters", config)
    holder["rope_theta"] *= 2


def interleave_rope(config, arrays):
    """Pairs neighbours (2i, 2i + 1) as GPT-J does instead of the two halves."""
    size = head_size(config)
    order = np.arange(size).reshape(-1, 2).T.reshape(-1)
    map_heads(arrays, ("q_proj.", "k_proj."), size, lambda heads: heads[:, order])


def roll_kv_heads(config, arrays):
    """Every query group reads its neighbour's keys and values."""
    map_heads(arrays, ("k_proj.", "v_proj."), head_size(config),
              lambda heads: np.roll(heads, 1, axis=0))


def interleave_groups(config, arrays):
    """Query heads take key/value heads round robin instead of in blocks."""
    groups = config["num_key_value_heads"]
    per_group = config["num_attention_heads"] // groups
    order = np.arange(groups * per_group).reshape(per_group, groups).T.reshape(-1)
    map_heads(arrays, ("q_proj.",), head_size(config), lambda heads: heads[order])
    map_heads(arrays, ("o_proj.",), head_size(config), lambda heads: heads[order], axis=1)


def wrong_score_scale(config, arrays):
    """Divides scores by sqrt(hidden / heads) although head_dim says otherwise."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    factor = np.float32((config["head_dim"] / (hidden / heads)) ** 0.5)
    scaled = "q_norm.weight" if config["model_type"] == "qwen3" else "q_proj.weight"
    for name in [n for n in arrays if n.endswith(scaled)]:
        arrays[name] = arrays[name] * factor


def norm_after_rope(config, arrays):
    """Norms queries and keys after the rotation instead of before."""

    def patch(model):
        from transformers.models.qwen3 import modeling_qwen3
        rotate = modeling_qwen3.apply_rotary_pos_emb
        for layer in model.model.layers:
            attention = layer.self_attn
            inner, norms = attention.forward, (attention.q_norm, attention.k_norm)
            del attention.q_norm, attention.k_norm
            attention.q_norm = attention.k_norm = lambda x: x

            def forward(*args, inner=inner, norms=norms, **kwargs):
                def late(q, k, *rest, **options):
                    return tuple(n(x) for n, x in zip(norms, rotate(q, k, *rest, **options)))
                modeling_qwen3.apply_rotary_pos_emb = late
                try:
                    return inner(*args, **kwargs)
                finally:
                    modeling_qwen3.apply_rotary_pos_emb = rotate

            attention.forward = forward

    return patch


def untie(config, arrays):
    """Gives a tied model a head of its own."""
    config["tie_word_embeddings"] = False
    embedding = arrays["model.embed_tokens.weight"]
    arrays["lm_head.weight"] = np.ascontiguousarray(embedding[::-1])


def tie(config, arrays):
    """Takes the embedding for the head although the model has its own."""
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()


def drop_scaling(config, arrays):
    """Plain rotation instead of the llama3 scaling."""
    if "rope_parameters" in config:
        theta = config["rope_parameters"]["rope_theta"]
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    else:
        config["rope_scaling"] = None


def linear_scaling(config, arrays):
    """Divides every frequency, as the linear type does."""
    for key in ("rope_parameters", "rope_scaling"):
        if key in config:
            keep = {k: v for k, v in config[key].items() if k in ("factor", "rope_theta")}
            config[key] = {**keep, "rope_type": "linear"}


def no_blending(config, arrays):
    """Leaves the middle frequencies as they are instead of blending them."""

    def patch(model):
        frequencies = model.model.rotary_emb.inv_freq
        theta = config.get("rope_parameters", config)["rope_theta"]
        plain = theta ** -(np.arange(len(frequencies)) / len(frequencies))
        for i in (1, 2):
            frequencies[i] = float(plain[i])

    return patch


def roll_gpt2_heads(config, arrays):
    """Keys move to the next head: c_attn is [in, (q, k, v) x heads x size]."""
    width = config["n_embd"]
    size = width // config["n_head"]
    for name in [n for n in arrays if ".c_attn." in n]:
        arrays[name][..., width:2 * width] = np.roll(
            arrays[name][..., width:2 * width], size, axis=-1)


def swap_gpt2_query_key(config, arrays):
    """Reads c_attn's parts in the order key, query, value."""
    width = config["n_embd"]
    for name in [n for n in arrays if ".c_attn." in n]:
        array = arrays[name]
        arrays[name] = np.concatenate(
            [array[..., width:2 * width], array[..., :width], array[..., 2 * width:]], axis=-1)


def transpose_square(config, arrays):
    """Takes the square attention output projection for [out, in]."""
    for name in [n for n in arrays if n.endswith("attn.c_proj.weight")]:
        arrays[name] = np.ascontiguousarray(arrays[name].T)


def shift_positions(config, arrays):
    """Positions start at one."""
    arrays["transformer.wpe.weight"] = np.roll(arrays["transformer.wpe.weight"], -1, axis=0)


EVERY_ROPE_MODEL = {
    "no rope": no_rope,
    "rope theta doubled": double_theta,
    "rope pairs neighbours": interleave_rope,
    "input norm weight dropped": ones("input_layernorm.weight"),
}
LLAMA3_SCALING = {
    "llama3 scaling dropped": drop_scaling,
    "linear scaling instead of llama3": linear_scaling,
    "llama3 middle frequencies not blended": no_blending,
}
SLIDING_WINDOW = {
    "window + 1": set_config(sliding_window=WINDOW + 1),
    "window - 1": set_config(sliding_window=WINDOW - 1),
    "no window": set_config(sliding_window=4096),
}
GPT2 = {
    "no positions": zero("wpe.weight"),
    "positions shifted by one": shift_positions,
    "LayerNorm eps 1e-3": set_config(layer_norm_epsilon=1e-3),
    "LayerNorm eps 1e-6": set_config(layer_norm_epsilon=1e-6),
    "LayerNorm bias dropped": zero("ln_1.bias"),
    "c_attn bias dropped": zero("c_attn.bias"),
    "attention c_proj transposed": transpose_square,
    "query and key swapped": swap_gpt2_query_key,
    "key heads rolled by one": roll_gpt2_heads,
    "exact gelu instead of gelu_new": set_config(activation_function="gelu"),
}
