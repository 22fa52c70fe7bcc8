"""GGUF files of models that have Hugging Face's names and row order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiny_gguf
from gguf import GGMLQuantizationType as Ggml
from tiny_hf import config_of

SIZES = {
    "hidden_size": tiny_gguf.HIDDEN,
    "intermediate_size": tiny_gguf.INTERMEDIATE,
    "head_dim": tiny_gguf.HEAD_DIM,
    "num_hidden_layers": tiny_gguf.LAYERS,
    "max_position_embeddings": 128,
    # As float32 holds it.
    "rms_norm_eps": float(np.float32(1e-5)),
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
}


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    values: Mapping[str, Any],
    matrices: Ggml = Ggml.F16,
) -> Path:
    """Write a model of `SIZES` whose `config.json` has `values`, as llama.cpp's converter does."""
    arch = values["model_type"]
    renamed = {}
    for name, array in tensors.items():
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            halves = array.reshape(-1, 2, tiny_gguf.HEAD_DIM // 2, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = array.astype(np.float32)
    scaling = values.get("rope_scaling")
    if scaling:
        renamed["rope_freqs.weight"] = _divisors(scaling, values["rope_theta"])
    keys: dict[str, Any] = {"rope.freq_base": float(values["rope_theta"])}
    if arch == "qwen3":
        keys |= dict.fromkeys(("attention.key_length", "attention.value_length"), 64)
    tied = bool(values.get("tie_word_embeddings"))
    return tiny_gguf.write_gguf(
        path, arch=arch, tied=tied, matrices=matrices, extra=renamed, keys=keys
    )


def _divisors(scaling: Mapping[str, Any], theta: float) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3's scaling."""
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    divisors = []
    for exponent in np.arange(0, tiny_gguf.HEAD_DIM, 2) / tiny_gguf.HEAD_DIM:
        wavelength = 2 * np.pi * theta**exponent
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(scaling["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


def config(**changes: Any) -> dict[str, Any]:
    """A `config.json` of these sizes."""
    return config_of(**{**SIZES, **changes})
