"""Small random models in genuine Hugging Face repositories, written by `safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# Not a multiple of 16, so that the last tile is padded.
VOCAB_SIZE = 270
LAYERS = 2

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def config_of(**changes: Any) -> dict[str, Any]:
    """The values of a `config.json`: those of LLAMA, changed."""
    return {**LLAMA, **changes}


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that transformers saves for `config`."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    family = config["model_type"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if family == "phi3":
        layer["self_attn.qkv_proj.weight"] = (q + 2 * kv, hidden)
        layer["mlp.gate_up_proj.weight"] = (2 * inner, hidden)
    else:
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            layer[f"self_attn.{name}_proj.weight"] = (rows, hidden)
            if family == "qwen2" or config.get("attention_bias"):
                layer[f"self_attn.{name}_proj.bias"] = (rows,)
        layer["mlp.gate_proj.weight"] = layer["mlp.up_proj.weight"] = (inner, hidden)
    if family == "qwen3":
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (head_dim,)
    if config.get("attention_bias"):
        layer["self_attn.o_proj.bias"] = (hidden,)
    if config.get("mlp_bias"):
        layer |= {f"mlp.{name}_proj.bias": (inner,) for name in ("gate", "up")}
        layer["mlp.down_proj.bias"] = (hidden,)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        **{
            f"model.layers.{i}.{name}": shape
            for i in range(config["num_hidden_layers"])
            for name, shape in layer.items()
        },
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], dtype: str = "f32", seed: int = 0
) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape, np.float32) * np.float32(0.05)).astype(DTYPES[dtype])
        for name, shape in shapes.items()
    }


def write_repository(
    directory: Path,
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    shards: int = 0,
    tokenizer: bool = True,
) -> Path:
    """Write a repository.

    Parameters
    ----------
    config : mapping, optional
        What `config.json` gets; `config_of()` without.
    weights : mapping, optional
        Name to array; random ones that suit the config without.
    shards : int
        How many files the weights are dealt out to, with an index; 0 is one file without.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = config or config_of()
    weights = weights or random_weights(shapes_of(config))
    write_json(directory / "config.json", config)
    if shards:
        write_shards(directory, weights, shards)
    else:
        save_file(dict(weights), directory / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        write_tokenizer(directory)
    return directory


def write_shards(directory: Path, weights: Mapping[str, np.ndarray], count: int) -> dict[str, str]:
    """Write `count` shards and their index as `save_pretrained` does; return its map."""
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    weight_map = {name: names[i * count // len(weights)] for i, name in enumerate(weights)}
    for file in names:
        held = {name: weights[name] for name, place in weight_map.items() if place == file}
        save_file(held, directory / file, metadata={"format": "pt"})
    total = sum(values.nbytes for values in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)
    return weight_map


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE tokenizer of three special tokens, 256 bytes and four words."""
    specials = ["<unk>", "<s>", "</s>"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    write_json(directory / "tokenizer_config.json", {**settings, "eos_token": "</s>"})


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
