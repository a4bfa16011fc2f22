"""The table of golden cases: one tiny model configuration per architecture or storage form."""

from dataclasses import dataclass, field, replace

VOCAB = 384
PROMPT_LENGTHS = (1, 17, 40, 70)
GREEDY_TOKENS = 28
WINDOW = 24


@dataclass(frozen=True)
class Gains:
    """Standard deviations (before the 1/sqrt(fan_in)) that shape the seeded weights."""

    embedding: float = 0.006
    """Kept so small that the eps of the first norm matters."""
    query_key: float = 2.0
    """Attention scores have about this value squared as standard deviation: peaked softmax."""
    linear: float = 1.0
    bias: float = 0.5
    logits: float = 2.5
    """Wanted standard deviation of the logits."""


@dataclass(frozen=True)
class Case:
    """One folder under tests/golden."""

    name: str
    config: dict
    seed: int
    """Found by --search: the first seed that meets the floors of make_goldens.py."""
    gains: Gains = field(default_factory=Gains)
    storage: str = "float32"
    shards: int = 1
    base_names: bool = False
    """GPT-2 as first published: no `transformer.` prefix, causal masks among the tensors."""
    several_eos: bool = False
    """Writes a generation_config.json whose stop ids occur in the greedy tokens."""
    tokenizer: str | None = None
    """Tokenizer fixture whose files are copied in, so that text prompts can be tried."""
    flat_attention: bool = False
    """Frees the case from the floor for peaked attention."""


def llama_config(**changes):
    """A Llama config in the style of the Llama 2 release."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "vocab_size": VOCAB,
    }
    config.update(changes)
    return config


LLAMA3_SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 36,
    "rope_type": "llama3",
}


def llama3_config(**changes):
    """Llama 3.1 style; of its wavelengths 6.3 stays, 14.3 and 32.4 blend, the rest are scaled."""
    return llama_config(
        bos_token_id=376,
        eos_token_id=380,
        head_dim=32,
        num_key_value_heads=2,
        rope_theta=500000.0,
        rope_scaling=dict(LLAMA3_SCALING),
        max_position_embeddings=288,
        transformers_version="4.43.0",
        **changes,
    )


def llama3_new_config():
    """The same model as newer releases of transformers write it."""
    config = llama3_config()
    for key in ("rope_theta", "rope_scaling", "torch_dtype", "pretraining_tp"):
        del config[key]
    config["rope_parameters"] = {**LLAMA3_SCALING, "rope_theta": 500000.0}
    config["dtype"] = "float32"
    config["transformers_version"] = "5.0.0"
    return config


def qwen2_config(**changes):
    """Qwen2: biases on query, key and value; tied embeddings; grouped heads."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "max_window_layers": 2,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 128,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB,
    }
    config.update(changes)
    return config


def qwen3_config(**changes):
    """Qwen3: per-head norms on query and key, head_dim unlike hidden / heads, padded vocabulary."""
    config = qwen2_config(
        architectures=["Qwen3ForCausalLM"],
        attention_bias=False,
        head_dim=32,
        model_type="qwen3",
        rope_scaling=None,
        sliding_window=None,
        transformers_version="4.51.0",
        vocab_size=VOCAB + 16,
    )
    config.update(changes)
    return config


def gpt2_config():
    """GPT-2 as published, shrunk; n_inner is absent and means four times n_embd."""
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50,
        "embd_pdrop": 0.1,
        "eos_token_id": 50,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 112,
        "n_embd": 48,
        "n_head": 3,
        "n_layer": 2,
        "n_positions": 112,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "vocab_size": VOCAB,
    }


def mistral_config():
    """Mistral with a window that the longer prompts overrun, and an explicit head_dim."""
    return {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "model_type": "mistral",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.42.0",
        "use_cache": True,
        "vocab_size": VOCAB,
    }


QWEN = Gains(embedding=0.003)
GPT2 = Gains(embedding=0.008, query_key=1.8, bias=0.3)
BF16 = {"torch_dtype": "bfloat16"}
F16 = {"torch_dtype": "float16", "num_key_value_heads": 2}
GENTLE = Gains(query_key=1.0, logits=1.0)
"""For goldens in bfloat16: peaked weights magnify what any two orders of rounding differ by."""
GENTLE_QWEN = replace(GENTLE, embedding=QWEN.embedding)
WINDOWED = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}

CASES = (
    Case("llama2", llama_config(), 2, tokenizer="tokenizer-llama2"),
    Case("llama2-sharded", llama_config(), 2, shards=3),
    Case("llama3", llama3_config(), 0, several_eos=True, tokenizer="tokenizer-bpe"),
    Case("llama3-new", llama3_new_config(), 0, several_eos=True),
    Case("llama-f16", llama_config(**F16), 0, storage="float16"),
    Case("qwen2", qwen2_config(), 4, QWEN),
    Case("qwen2-window", qwen2_config(**WINDOWED), 4, QWEN),
    Case("qwen3", qwen3_config(), 2, QWEN, tokenizer="tokenizer-chatml"),
    Case("qwen3-bf16", qwen3_config(**BF16), 1, QWEN, storage="bfloat16"),
    Case("qwen3-bf16-gentle", qwen3_config(**BF16), 5, GENTLE_QWEN, storage="bfloat16",
         flat_attention=True),
    Case("llama-bf16-gentle", llama3_config(**BF16), 5, GENTLE, storage="bfloat16",
         flat_attention=True),
    Case("gpt2", gpt2_config(), 4, GPT2, tokenizer="tokenizer-gpt2"),
    Case("gpt2-base", gpt2_config(), 4, GPT2, base_names=True),
    Case("mistral", mistral_config(), 0),
)
SAME_GOLDENS = (("llama2", "llama2-sharded"), ("llama3", "llama3-new"), ("gpt2", "gpt2-base"))
"""Pairs with the same weights: their goldens are asserted equal."""
