"""Small random models in MindFormers' names, and MindSpore checkpoints of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tiny_hf import config_of, write_json, write_tokenizer

_PARTS = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.": "model.norm_out.",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def in_mindformers(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename as MindFormers' `convert_weight.py` does."""
    renamed = {}
    for name, values in weights.items():
        for part, other in _PARTS.items():
            name = name.replace(part, other)
        renamed[name] = values
    return renamed


def mindformers_yaml(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML document of `tiny_hf.LLAMA`, changed."""
    model_config = {
        "type": "LlamaConfig",
        "seq_length": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": 270,
        "rms_norm_eps": 1e-5,
        **changes,
    }
    return {"model": {"model_config": model_config, "arch": {"type": "LlamaForCausalLM"}}}


def write(directory: Path, data: bytes, config: Any = None, name: str = "llama.ckpt") -> Path:
    """Write a checkpoint with a tokenizer beside it, and a config.json unless it is False."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_bytes(data)
    if config is not False:
        write_json(directory / "config.json", config or config_of())
    write_tokenizer(directory)
    return path
