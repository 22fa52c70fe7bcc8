"""Llama 3.2 3B without its weights: the config, and a repository whose 6.4 GB are a hole."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from qllama.config import ModelConfig, RopeScaling
from qllama.tensors import expected_shapes

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=128256,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
    tie_word_embeddings=True,
)

_ROPE_KEYS = (
    "rope_type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def write_repository(directory: Path) -> None:
    """Write `config.json` and a safetensors file that is all header, without a tokenizer."""
    values = CONFIG.to_dict()
    values["rope_scaling"] = {key: values["rope_scaling"][key] for key in _ROPE_KEYS}
    directory.joinpath("config.json").write_text(json.dumps(values))
    header, end = {}, 0
    for name, shape in expected_shapes(CONFIG).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with directory.joinpath("model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
