"""Small random models in Hugging Face's names, and the same in Meta's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny_hf import config_of, random_weights, shapes_of, write_json, write_tokenizer
from torch_writer import save

HEAD_DIM = 8
VALUES: dict[str, Any] = config_of(
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=272,
    rope_theta=500000.0,
    max_position_embeddings=8192,
    torch_dtype="bfloat16",
)
PARAMS: dict[str, Any] = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 4,
    "vocab_size": 272,
    "multiple_of": 32,
    "ffn_dim_multiplier": 0.5,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
"""`params.json` of the model that `VALUES` describe."""

META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
BY_COLUMNS = ("wo", "w2")


def random_tensors(values: Mapping[str, Any] = VALUES, dtype: str = "bf16") -> dict[str, Any]:
    """Weights of a model that `values` describe, by Hugging Face's names."""
    return random_weights(shapes_of(values), dtype)


def write_bin(
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    values: Mapping[str, Any] = VALUES,
    n_shards: int = 1,
) -> Path:
    """Write a Hugging Face repository with `.bin` files."""
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", values)
    write_tokenizer(directory)
    if n_shards == 1:
        save(directory / "pytorch_model.bin", tensors)
        return directory
    weight_map = {}
    for i in range(n_shards):
        name = f"pytorch_model-{i + 1:05}-of-{n_shards:05}.bin"
        part = dict(list(tensors.items())[i::n_shards])
        save(directory / name, part)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    write_json(directory / "pytorch_model.bin.index.json", index)
    return directory


def meta_tensors(
    tensors: Mapping[str, np.ndarray], head_dim: int = HEAD_DIM
) -> dict[str, np.ndarray]:
    """Give weights Meta's names and row order, as transformers' converter takes them."""
    renamed = {}
    for name, array in tensors.items():
        for theirs, ours in META_NAMES.items():
            name = name.replace(theirs, ours)
        if ".wq." in name or ".wk." in name:
            halves = array.reshape(-1, 2, head_dim // 2, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        renamed[name] = array
    return renamed


def meta_shards(
    tensors: Mapping[str, np.ndarray], n_shards: int, *, embedding_axis: int = 0
) -> list[dict[str, np.ndarray]]:
    """Split Meta's tensors among processes, as fairscale's parallel layers do."""
    shards: list[dict[str, np.ndarray]] = [{} for _ in range(n_shards)]
    for name, array in tensors.items():
        axis = 1 if name.split(".")[-2] in BY_COLUMNS else 0
        if name == "tok_embeddings.weight":
            axis = embedding_axis
        pieces = [array] * n_shards if array.ndim == 1 else np.split(array, n_shards, axis)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = np.ascontiguousarray(piece)
    return shards


def write_meta(
    directory: Path,
    shards: Sequence[Mapping[str, np.ndarray]],
    params: Mapping[str, Any] = PARAMS,
) -> Path:
    """Write a release of Meta's."""
    directory.mkdir(exist_ok=True)
    write_json(directory / "params.json", params)
    write_tokenizer(directory)
    for i, shard in enumerate(shards):
        frequencies = {"rope.freqs": np.ones(4, np.float32)}
        save(directory / f"consolidated.{i:02}.pth", {**shard, **frequencies})
    return directory
