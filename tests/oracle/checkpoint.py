"""Seeded weights, and a model folder as Hugging Face transformers lays it out."""

import json
import math
import shutil
import zlib

import numpy as np
import torch
from safetensors.torch import save_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_tensors(case, seed):
    """Makes name -> float32 array, by the names transformers saves for the architecture."""
    if case.config["model_type"] == "gpt2":
        return gpt2_tensors(case.config, case.gains, seed)
    return llama_like_tensors(case.config, case.gains, seed)


def llama_like_tensors(config, gains, seed):
    """Llama, Mistral, Qwen2 and Qwen3: linear weights are stored [out, in]."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    embedding, logits_gain = embedding_and_head_gain(gains, config["tie_word_embeddings"], hidden)
    tensors = {"model.embed_tokens.weight": (embedding, 0.0, (config["vocab_size"], hidden))}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}"
        rows = {"q_proj": heads * head_dim, "k_proj": kv_heads * head_dim,
                "v_proj": kv_heads * head_dim}
        for name, out in rows.items():
            gain = gains.linear if name == "v_proj" else gains.query_key
            tensors[f"{p}.self_attn.{name}.weight"] = linear(gain, hidden, (out, hidden))
            if config["model_type"] == "qwen2":
                tensors[f"{p}.self_attn.{name}.bias"] = (gains.bias, 0.0, (out,))
        tensors[f"{p}.self_attn.o_proj.weight"] = linear(
            gains.linear, heads * head_dim, (hidden, heads * head_dim))
        if config["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                tensors[f"{p}.self_attn.{name}.weight"] = norm(gains.query_key, head_dim)
        tensors[f"{p}.mlp.gate_proj.weight"] = linear(gains.linear, hidden, (inner, hidden))
        tensors[f"{p}.mlp.up_proj.weight"] = linear(gains.linear, hidden, (inner, hidden))
        tensors[f"{p}.mlp.down_proj.weight"] = linear(gains.linear, inner, (hidden, inner))
        tensors[f"{p}.input_layernorm.weight"] = norm(1.0, hidden)
        tensors[f"{p}.post_attention_layernorm.weight"] = norm(1.0, hidden)
    tensors["model.norm.weight"] = norm(logits_gain, hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = linear(gains.logits, hidden, (config["vocab_size"], hidden))
    return draw_all(tensors, seed)


def gpt2_tensors(config, gains, seed):
    """GPT-2: `Conv1D` weights are stored [in, out]."""
    hidden = config["n_embd"]
    embedding, logits_gain = embedding_and_head_gain(gains, True, hidden)
    tensors = {
        "transformer.wte.weight": (embedding, 0.0, (config["vocab_size"], hidden)),
        "transformer.wpe.weight": (embedding, 0.0, (config["n_positions"], hidden)),
    }
    for layer in range(config["n_layer"]):
        p = f"transformer.h.{layer}"
        for name in ("ln_1", "ln_2"):
            tensors[f"{p}.{name}.weight"] = norm(1.0, hidden)
            tensors[f"{p}.{name}.bias"] = (gains.bias, 0.0, (hidden,))
        for name, fan_in, fan_out in (("attn.c_attn", hidden, 3 * hidden),
                                      ("attn.c_proj", hidden, hidden),
                                      ("mlp.c_fc", hidden, 4 * hidden),
                                      ("mlp.c_proj", 4 * hidden, hidden)):
            tensors[f"{p}.{name}.weight"] = linear(gains.linear, fan_in, (fan_in, fan_out))
            tensors[f"{p}.{name}.bias"] = (gains.bias, 0.0, (fan_out,))
    tensors["transformer.ln_f.weight"] = norm(logits_gain, hidden)
    tensors["transformer.ln_f.bias"] = (gains.bias * logits_gain, 0.0, (hidden,))
    arrays = draw_all(tensors, seed)
    for name, array in arrays.items():
        if name.endswith("attn.c_attn.weight"):
            array[:, : 2 * hidden] *= gains.query_key
    return arrays


def embedding_and_head_gain(gains, tied, hidden):
    """A tied head has the small weights of the embedding: the last norm makes up for it."""
    gain = gains.logits / (gains.embedding * math.sqrt(hidden)) if tied else 1.0
    return gains.embedding, gain


def linear(gain, fan_in, shape):
    """(standard deviation, mean, shape) of a linear weight."""
    return gain / math.sqrt(fan_in), 0.0, shape


def norm(gain, size):
    """(standard deviation, mean, shape) of a norm's weight: far enough from all ones to matter."""
    return 0.3 * gain, gain, (size,)


def draw_all(recipes, seed):
    """Draws each tensor from a stream of its own, so that order and neighbours do not matter."""
    arrays = {}
    for name, (deviation, mean, shape) in recipes.items():
        stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = stream.standard_normal(shape) * deviation + mean
        arrays[name] = values.astype(np.float32)
    return arrays


def make_prompts(case, seed, lengths):
    """Draws the prompts' token ids."""
    stream = np.random.default_rng([seed, zlib.crc32(b"prompts")])
    return [stream.integers(0, case.config["vocab_size"], n).tolist() for n in lengths]


def write_folder(folder, config, arrays, case):
    """Writes config.json and the tensors in the case's storage type, names and shards."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    tensors = {name: torch.from_numpy(array).to(DTYPES[case.storage]).contiguous()
               for name, array in arrays.items()}
    if case.base_names:
        tensors = published_gpt2_names(tensors, config)
    if case.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        write_shards(folder, tensors, case.shards)


def published_gpt2_names(tensors, config):
    """Drops the prefix and adds each layer's causal mask, as the published checkpoint has it."""
    named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    context = config["n_ctx"]
    for layer in range(config["n_layer"]):
        mask = torch.tril(torch.ones(context, context)).view(1, 1, context, context)
        named[f"h.{layer}.attn.bias"] = mask.contiguous()
    return named


def write_shards(folder, tensors, count):
    """Splits the tensors, in order, into `count` files of about the same size, with the index."""
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    parts, seen = [{} for _ in range(count)], 0
    for name, tensor in tensors.items():
        parts[min(count - 1, seen * count // total)][name] = tensor
        seen += tensor.numel() * tensor.element_size()
    weight_map = {}
    for index, part in enumerate(parts, start=1):
        file_name = f"model-{index:05}-of-{count:05}.safetensors"
        save_file(part, folder / file_name, metadata={"format": "pt"})
        weight_map.update({name: file_name for name in part})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path, value):
    """Writes indented JSON with a closing newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
