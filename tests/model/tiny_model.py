"""Tiny random models: any configuration, any weight types, written as `.qlm` files."""

from __future__ import annotations

import zlib

import ml_dtypes
import numpy as np

from qllama.config import ModelConfig, TokenizerConfig
from qllama.format import QlmWriter, TensorSpec
from qllama.quant import codec
from qllama.tensors import expected_shapes

BASE = ModelConfig(
    model_type="llama",
    vocab_size=48,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=640,
    rms_norm_eps=1e-5,
)

_VECTOR_DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def config(**changes):
    """The base configuration with some fields changed."""
    return ModelConfig.from_dict(BASE.to_dict() | changes)


def random_tensors(config, seed=0):
    """Float32 arrays by name, of sizes at which a trained model's signals flow."""
    tensors = {}
    for name, shape in expected_shapes(config).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(shape)
        if name == "model.rope_divisors":
            values = 1 + 3 * rng.random(shape)
        elif name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith(".bias"):
            values *= 0.5
        else:
            values /= np.sqrt(shape[1]) / 1.5
        tensors[name] = values.astype(np.float32)
    return tensors


def write_model(path, config, tensors, types="f32", vector_type="f32"):
    """Write a model; `types` is one weight type, or types by a part of the matrix' name."""

    def type_of(name):
        if tensors[name].ndim == 1:
            return vector_type
        if isinstance(types, str):
            return types
        return next(kind for part, kind in types.items() if part in name)

    specs = [TensorSpec(name, type_of(name), array.shape) for name, array in tensors.items()]
    tokenizer = TokenizerConfig("tokenizers", eos_token_ids=(0,))
    with QlmWriter(path, config, tokenizer, b"{}", specs, {}, {}) as file:
        for spec in specs:
            array = tensors[spec.name]
            if array.ndim == 1:
                data = array.astype(_VECTOR_DTYPES[spec.type]).tobytes()
            else:
                data = codec(spec.type).quantize(array)
            file.write(spec.name, data)
    return path
