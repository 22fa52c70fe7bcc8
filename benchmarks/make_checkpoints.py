"""Checkpoints of full size with random weights, to time `qllama convert`; see `--help`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import click
import ml_dtypes
import numpy as np
import numpy.typing as npt
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from qllama.config import ModelConfig
from qllama.tensors import expected_shapes

_SEED = 0
_DEVIATION = 0.02
# Of the random values that all matrices are cut from; odd, so that no row comes round soon.
_POOL_VALUES = 16777213
_MINDSPORE_SLICE = 1 << 29
_SHARD_BYTES = 5 * 10**9

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "head_dim": 128,
}
_LLAMA_2_7B = _LLAMA | {
    "torch_dtype": "float16",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA_3_8B = _LLAMA | {
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
_LLAMA_3_2_3B = _LLAMA | {
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
}

# Keys of a MindFormers YAML by Hugging Face's.
_YAML_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "theta",
    "torch_dtype": "param_init_type",
}

# As MindFormers' `convert_weight.py` renames them.
_MINDFORMERS_PARTS = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.": "model.norm_out.",
    ".self_attn.q_proj.": ".attention.wq.",
    ".self_attn.k_proj.": ".attention.wk.",
    ".self_attn.v_proj.": ".attention.wv.",
    ".self_attn.o_proj.": ".attention.wo.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".mlp.up_proj.": ".feed_forward.w3.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
}

_DTYPES: dict[str, npt.DTypeLike] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

Shapes = Mapping[str, tuple[int, ...]]


class Weights:
    """Contents of tensors: ones for norms, else cut from a pool of random values.

    Parameters
    ----------
    dtype : numpy dtype
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        rng = np.random.default_rng(_SEED)
        pool = rng.standard_normal(_POOL_VALUES, np.float32) * np.float32(_DEVIATION)
        self.dtype = np.dtype(dtype)
        self._pool = memoryview(pool.astype(dtype).view(np.uint8))
        self._at = 0

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * self.dtype.itemsize

    def write(self, file: BinaryIO, shape: tuple[int, ...], n_bytes: int) -> None:
        """Write the next `n_bytes` of a tensor of `shape`."""
        if len(shape) == 1:
            file.write(np.ones(n_bytes // self.dtype.itemsize, self.dtype).tobytes())
            return
        while n_bytes:
            piece = self._pool[self._at : self._at + n_bytes]
            file.write(piece)
            n_bytes -= len(piece)
            self._at = (self._at + len(piece)) % len(self._pool)


def write_ckpt(
    path: Path, shapes: Shapes, weights: Weights, slice_bytes: int = _MINDSPORE_SLICE
) -> None:
    """Write a MindSpore `.ckpt` of MindFormers' Llama.

    Parameters
    ----------
    path : Path
    shapes : mapping
        Hugging Face's names to shapes.
    weights : Weights
    slice_bytes : int
        A tensor of more bytes is stored in several messages, all with its tag and dims.
    """
    tensor_type = {"float16": b"Float16", "bfloat16": b"BFloat16"}[weights.dtype.name]
    with path.open("wb") as file:
        for name, shape in shapes.items():
            tag = name
            for part, other in _MINDFORMERS_PARTS.items():
                tag = tag.replace(part, other)
            left = weights.n_bytes(shape)
            while left:
                n_bytes = min(left, slice_bytes)
                file.write(_message_header(tag.encode(), shape, tensor_type, n_bytes))
                weights.write(file, shape, n_bytes)
                left -= n_bytes


def _message_header(tag: bytes, shape: tuple[int, ...], tensor_type: bytes, n_bytes: int) -> bytes:
    """`Checkpoint{value{tag, tensor{dims, tensor_type, tensor_content}}}` up to the content."""
    tensor = b"".join(b"\x08" + _varint(dim) for dim in shape)
    tensor += b"\x12" + _varint(len(tensor_type)) + tensor_type + b"\x1a" + _varint(n_bytes)
    value = b"\x0a" + _varint(len(tag)) + tag
    value += b"\x12" + _varint(len(tensor) + n_bytes) + tensor
    return b"\x0a" + _varint(len(value) + n_bytes) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def write_safetensors(path: Path, shapes: Shapes, weights: Weights) -> None:
    """Write one safetensors file; parameters as `write_ckpt`'s."""
    ends = list(accumulate(weights.n_bytes(shape) for shape in shapes.values()))
    dtype = {"float16": "F16", "bfloat16": "BF16"}[weights.dtype.name]
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (name, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False):
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape in shapes.values():
            weights.write(file, shape, weights.n_bytes(shape))


def write_mindformers(directory: Path, name: str, shapes: Shapes, weights: Weights) -> None:
    """Write NAME.ckpt."""
    write_ckpt(directory / f"{name}.ckpt", shapes, weights)


def write_shards(directory: Path, name: str, shapes: Shapes, weights: Weights) -> None:
    """Write shards of at most 5 GB, and their index, as `save_pretrained` does."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for tensor, shape in shapes.items():
        size += weights.n_bytes(shape)
        if shards[-1] and size > _SHARD_BYTES:
            shards.append({})
            size = weights.n_bytes(shape)
        shards[-1][tensor] = shape
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_safetensors(directory / file, shard, weights)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(weights.n_bytes(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_config(directory: Path, values: Mapping[str, Any]) -> None:
    """Write config.json."""
    (directory / "config.json").write_text(json.dumps(values, indent=2))


def write_yaml(directory: Path, values: Mapping[str, Any]) -> None:
    """Write a MindFormers YAML file."""
    config = {key: values[name] for name, key in _YAML_KEYS.items()}
    document = {
        "model": {
            "model_config": {"type": "LlamaConfig", **config},
            "arch": {"type": "LlamaForCausalLM"},
        }
    }
    (directory / "predict.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE; the rows of the embedding that it has no token for are padding."""
    specials = ["<|begin|>", "<|end|>"]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [("t", "h")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": specials[0],
        "eos_token": specials[1],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be made.

    Parameters
    ----------
    values : dict
        As in a `config.json`.
    write_weights, write_values : callable
        For the format that it comes in.
    """

    values: dict[str, Any]
    write_weights: Callable[[Path, str, Shapes, Weights], None]
    write_values: Callable[[Path, Mapping[str, Any]], None]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        known = {field.name for field in fields(ModelConfig)}
        return expected_shapes(
            ModelConfig.from_dict({k: v for k, v in self.values.items() if k in known})
        )

    def write(self, directory: Path, name: str) -> None:
        """Write all files; the directory has its name when they are complete."""
        shapes = self.shapes()
        weights = Weights(_DTYPES[self.values["torch_dtype"]])
        total = sum(weights.n_bytes(shape) for shape in shapes.values())
        free = shutil.disk_usage(directory).free
        if total > free:
            raise click.ClickException(
                f"{directory}: {name} takes {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            )
        with _partial(directory / name) as partial:
            self.write_weights(partial, name, shapes, weights)
            self.write_values(partial, self.values)
            write_tokenizer(partial)


CHECKPOINTS = {
    "llama2-7b": Checkpoint(_LLAMA_2_7B, write_mindformers, write_yaml),
    "llama3-8b": Checkpoint(_LLAMA_3_8B, write_mindformers, write_config),
    "llama3.2-3b": Checkpoint(_LLAMA_3_2_3B, write_shards, write_config),
}


@contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    partial = directory.with_name(f"partial-{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(directory)


@click.command(
    epilog="Example: python benchmarks/make_checkpoints.py checkpoints llama3-8b && "
    "qllama convert checkpoints/llama3-8b"
)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.argument("names", nargs=-1, required=True, type=click.Choice(list(CHECKPOINTS)))
def main(directory: Path, names: tuple[str, ...]) -> None:
    """Write into DIRECTORY/NAME a checkpoint with random weights, for each NAME.

    \b
    llama2-7b    MindSpore .ckpt of MindFormers, float16, with its YAML   13.5 GB
    llama3-8b    the same in bfloat16, tensors cut in slices of 512 MiB   16.1 GB
    llama3.2-3b  shards of safetensors in bfloat16, with their index       6.4 GB

    Takes 300 MB of memory, and as long as the disk does. What is there is kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (directory / name).exists():
            click.echo(f"making {name}", err=True)
            CHECKPOINTS[name].write(directory, name)


if __name__ == "__main__":
    main()
