"""Small base models in memory, and PEFT adapters for them written field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from converter.sources.base import OpenedSource, SourceTensor
from converter.tokenizer_files import tokenizer_from_path
from qllama.config import ModelConfig, TokenizerConfig
from qllama.tensors import expected_shapes

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
TIED = replace(CONFIG, tie_word_embeddings=True)
Q_PROJ = "model.layers.0.self_attn.q_proj"
TARGETS = ("q_proj", "v_proj")

# What alpaca-lora's training wrote, with PEFT 0.2: the fields of the public alpaca-lora-7b.
ALPACA = {
    "base_model_name_or_path": "decapoda-research/llama-7b-hf",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 8,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


class ArrayTensor(SourceTensor):
    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self.where = "base"
        self.shape = values.shape
        self.source_type = "float32"
        self.n_bytes = values.nbytes

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._values[start:stop]


def base_model(config: ModelConfig = CONFIG, **provenance: Any) -> OpenedSource:
    """Make a model of random weights, as any source would open it."""
    random = np.random.default_rng(1)
    tensors = {
        name: ArrayTensor(random.standard_normal(shape, np.float32))
        for name, shape in expected_shapes(config).items()
    }

    def load_tokenizer(vocab_size: int, trained: Path | None) -> tuple[TokenizerConfig, bytes]:
        if trained is not None:
            return tokenizer_from_path(trained, vocab_size, {})
        return TokenizerConfig("tokenizers"), b"blob"

    provenance = {"format": "gguf", **provenance}
    return OpenedSource(config, load_tokenizer, tensors, (Path("m.gguf"),), provenance)


def values(source: Any) -> dict[str, np.ndarray]:
    """Read all tensors of a source."""
    return {name: t.read(0, t.shape[0]) for name, t in source.tensors.items()}


def random_array(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def low_rank(
    modules: Mapping[str, tuple[int, int]], rank: int = 8, prefix: str = "base_model.model."
) -> dict[str, np.ndarray]:
    """Make both factors for modules of given (rows, k), by PEFT's names."""
    arrays = {}
    for seed, (module, (rows, k)) in enumerate(modules.items()):
        arrays[f"{prefix}{module}.lora_A.weight"] = random_array(rank, k, seed=seed)
        arrays[f"{prefix}{module}.lora_B.weight"] = random_array(rows, rank, seed=seed)
    return arrays


def projections(*names: str, config: ModelConfig = CONFIG) -> dict[str, tuple[int, int]]:
    """List the modules of all layers that end in one of `names`, with their shapes."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in expected_shapes(config).items()
        if any(name.endswith(f"{n}.weight") for n in names)
    }


def write_adapter(
    directory: Path, arrays: Mapping[str, np.ndarray] | None = None, **fields: Any
) -> Path:
    """Write an adapter, by default alpaca-lora's on `CONFIG`; `fields` change its config."""
    directory.mkdir(exist_ok=True)
    config = {**ALPACA, **fields}
    config = {key: value for key, value in config.items() if value != "ABSENT"}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    arrays = low_rank(projections(*TARGETS)) if arrays is None else arrays
    save_file(dict(arrays), directory / "adapter_model.safetensors")
    return directory


def update(arrays: Mapping[str, np.ndarray], module: str, scale: float) -> np.ndarray:
    """Compute the update of a module in float64."""
    a = arrays[f"base_model.model.{module}.lora_A.weight"].astype(np.float64)
    b = arrays[f"base_model.model.{module}.lora_B.weight"].astype(np.float64)
    return scale * (b @ a)
