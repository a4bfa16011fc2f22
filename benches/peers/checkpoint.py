#!/usr/bin/env python3
"""A seeded random checkpoint of a real model's shape: checkpoint.py SHAPE FOLDER.

Writes safetensors with a tokenizer (for vrust, vLLM, transformers and OpenVINO's exporter) and the
same weights as GGUF (for llama.cpp). Speed does not depend on the values. Needs numpy and gguf.
"""

import json
import sys
from pathlib import Path

import numpy

from shapes import SHAPES

# The names that GGUF gives to a layer's tensors.
IN_GGUF = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "embed_tokens": "token_embd", "norm": "output_norm",
}


def tensors(c):
    """Names and dimensions, in file order."""
    hidden, inner, dim = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    layer = {
        "input_layernorm": (hidden,), "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q), "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    if c["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,)}
    yield "model.embed_tokens", (c["vocab_size"], hidden)
    for number in range(c["num_hidden_layers"]):
        for name, dims in layer.items():
            yield f"model.layers.{number}.{name}", dims
    yield "model.norm", (hidden,)


def values(dims, generator):
    """bf16 bits: ones for norms, a uniform distribution of deviation 0.02 otherwise."""
    if len(dims) == 1:
        return numpy.full(dims, 0x3F80, dtype=numpy.uint16)
    floats = generator.random(dims, dtype=numpy.float32)
    floats -= 0.5
    floats *= 0.02 * 12**0.5
    bits = floats.view(numpy.uint32)
    bits += 0x8000
    bits >>= 16
    return bits.astype(numpy.uint16)


def vocabulary(c):
    """The byte alphabet of byte-level BPE, then names that no text reaches."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + i) for i in range(256 - len(plain))]
    names = [chr(b) for b in plain] + others
    names += [f"\u0120t{i}" for i in range(c["vocab_size"] - len(names))]
    names[c["bos_token_id"]] = "<|endoftext|>"
    names[c["eos_token_id"]] = "<|im_end|>"
    return names


def write_safetensors(path, weights):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in weights.items():
        header[name + ".weight"] = {"dtype": "BF16", "shape": list(bits.shape),
                                    "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in weights.values():
            file.write(memoryview(bits).cast("B"))


def write_texts(folder, c):
    names = vocabulary(c)
    specials = [c["bos_token_id"], c["eos_token_id"]]
    added = [{"id": i, "content": names[i], "special": True, "single_word": False,
              "lstrip": False, "rstrip": False, "normalized": False} for i in specials]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": level, "post_processor": None,
        "decoder": level, "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "ignore_merges": False, "vocab": {name: i for i, name in enumerate(names)},
            "merges": []},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[specials[0]],
        "eos_token": names[specials[1]], "model_max_length": c["max_position_embeddings"],
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    ends = {"bos_token_id": specials[0], "eos_token_id": specials[1]}
    for name, content in [("config", c), ("generation_config", ends), ("tokenizer", tokenizer),
                          ("tokenizer_config", settings)]:
        (folder / f"{name}.json").write_text(json.dumps(content))


def write_gguf(path, c, weights):
    import gguf

    out = gguf.GGUFWriter(path, c["model_type"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    out.add_context_length(c["max_position_embeddings"])
    out.add_embedding_length(c["hidden_size"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_block_count(c["num_hidden_layers"])
    out.add_head_count(c["num_attention_heads"])
    out.add_head_count_kv(c["num_key_value_heads"])
    out.add_key_length(c["head_dim"])
    out.add_value_length(c["head_dim"])
    out.add_rope_dimension_count(c["head_dim"])
    out.add_rope_freq_base(c["rope_theta"])
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_vocab_size(c["vocab_size"])
    specials = (c["bos_token_id"], c["eos_token_id"])
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2" if c["model_type"] == "qwen3" else "llama-bpe")
    out.add_token_list(vocabulary(c))
    out.add_token_types([3 if i in specials else 1 for i in range(c["vocab_size"])])
    out.add_token_merges(["\u0120 t"])
    out.add_bos_token_id(specials[0])
    out.add_eos_token_id(specials[1])
    out.add_add_bos_token(False)
    for name, bits in weights.items():
        place, own = "", name.removeprefix("model.")
        if own.startswith("layers."):
            _, number, own = own.split(".", 2)
            place = f"blk.{number}."
        in_gguf = f"{place}{IN_GGUF[own]}.weight"
        if bits.ndim == 1:
            wide = (bits.astype(numpy.uint32) << 16).view(numpy.float32)
            out.add_tensor(in_gguf, wide)
        else:
            raw = bits.view(numpy.uint8)
            out.add_tensor(in_gguf, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    shape, folder = sys.argv[1], Path(sys.argv[2])
    done = folder / "model-bf16.gguf"
    if done.exists():
        return
    c = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(1)
    weights = {name: values(dims, generator) for name, dims in tensors(c)}
    write_safetensors(folder / "model.safetensors", weights)
    write_texts(folder, c)
    part = folder / "part.gguf"
    write_gguf(part, c, weights)
    part.rename(done)


main()
