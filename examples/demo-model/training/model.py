"""The demo model's architecture, and its export as a Hugging Face folder."""

import json

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1792,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.7,
              "top_p": 0.9, "max_new_tokens": 256}


def create():
    """Return a fresh model with float32 weights."""
    values = {key: value for key, value in CONFIG.items()
              if key not in ("architectures", "model_type", "torch_dtype", "rope_scaling")}
    return LlamaForCausalLM(LlamaConfig(**values)).float()


def export(state, folder):
    """Write configuration and bfloat16 weights of a state dictionary into a folder."""
    weights = {name: value.detach().to(torch.bfloat16).contiguous().clone()
               for name, value in state.items() if name != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    for name, value in (("config", CONFIG), ("generation_config", GENERATION)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
