"""config.json of the models whose shapes are measured, from their cards."""

COMMON = {
    "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False,
    "attention_dropout": 0.0, "initializer_range": 0.02, "rope_scaling": None,
    "torch_dtype": "bfloat16", "use_cache": True, "num_key_value_heads": 8,
}
SHAPES = {
    "qwen3-0.6b": COMMON | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "head_dim": 128, "vocab_size": 151936, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960, "bos_token_id": 151643, "eos_token_id": 151645,
        "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28,
    },
    "llama-3.2-1b": COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "head_dim": 64, "vocab_size": 128256, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 16384, "bos_token_id": 128000, "eos_token_id": 128001,
        "mlp_bias": False, "pretraining_tp": 1,
    },
}
