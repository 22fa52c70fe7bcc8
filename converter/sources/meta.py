"""Meta's releases as a checkpoint source: `consolidated.NN.pth` with `params.json`.

Owns the joining of tensor-parallel shards, Meta's names and its row order of q and k.
Mistral's `consolidated.safetensors` has the same names and order in one part.

Reference: `_WEIGHT_ROW_KEY` and `_WEIGHT_COLUMN_KEY` in `models/checkpoint.py` of
meta-llama/llama-models; `convert_llama_weights_to_hf.py` of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from converter.hf_config import config_from_hugging_face
from converter.hf_tensors import canonical_tensors, check_is_float, equal_values
from converter.json_files import read_json_object
from converter.meta_config import hugging_face_values, is_params
from converter.sources.base import OpenedSource, SourceTensor
from converter.sources.options import SourceOptions
from converter.sources.safetensors_file import safetensors_arrays
from converter.sources.shards import check_is_weights, joined, weight_files
from converter.sources.torch_file import read_torch_file
from converter.sources.views import Columns, Reordered, Stacked, interleaved_to_half_split
from converter.wording import shown
from qllama.config import ModelConfig, TokenizerConfig
from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD

__all__ = ["open_checkpoint"]

_PART = re.compile(r"consolidated\.([0-9]{2})\.pth")
_SAFETENSORS = "consolidated.safetensors"

_NAMES = {"tok_embeddings.weight": EMBEDDING, "norm.weight": FINAL_NORM, "output.weight": HEAD}
_LAYER = re.compile(r"layers\.([0-9]+)\.([a-z_0-9.]+)\.weight")
_LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
# Rotary frequencies, which follow from the config.
_SUPERFLUOUS = ("rope.freqs",)

# Llama 3 70B has copies that drifted apart in training, by up to 0.01 each value
# (AI-Hypercomputer/jetstream-pytorch, pull request 101).
_MAX_DRIFT = 0.1

# Matrices of which each shard has some columns; of all others it has some rows.
_BY_COLUMNS = (".self_attn.o_proj.", ".mlp.down_proj.")


def open_checkpoint(path: Path, options: SourceOptions) -> OpenedSource:
    """Open a directory, or the directory of one of its parts.

    Parameters
    ----------
    path : Path
        Where `consolidated.00.pth` and `params.json` are, or the former itself.
    options : SourceOptions
        Its `config` is another `params.json`, or the model's `config.json`.

    Raises
    ------
    ConversionError
        When files are missing, damaged or do not fit together.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    """
    directory = path if path.is_dir() else path.parent
    files, parts = _parts(path)
    where = options.config or directory / "params.json"
    if options.config is None and not where.exists():
        raise ConversionError(
            f"{directory}: no params.json beside the weights; fetch it, or give --config FILE"
        )
    values = read_json_object(where)
    raw = _joined(files, parts)
    if is_params(values):
        both = EMBEDDING in raw and HEAD in raw
        tied = both and equal_values(raw[HEAD], raw[EMBEDDING])
        rows = raw[EMBEDDING].shape[0] if EMBEDDING in raw else 0
        values = hugging_face_values(where, values, rows, tied=tied)
    config = config_from_hugging_face(where, values, raw)
    _check_all_parts(files, raw, config)
    for name in raw:
        if ".self_attn.q_proj." in name or ".self_attn.k_proj." in name:
            raw[name] = _half_split(raw[name], config)

    def load_tokenizer(vocab_size: int, trained: Path | None) -> tuple[TokenizerConfig, bytes]:
        from converter.tokenizer_files import tokenizer_from_path

        return tokenizer_from_path(options.tokenizer or trained or directory, vocab_size, values)

    return OpenedSource(
        config=config,
        load_tokenizer=load_tokenizer,
        tensors=canonical_tensors(directory, raw, config),
        files=files,
        provenance={"format": "meta", "metadata": {"parts": len(files)}},
    )


def _parts(path: Path) -> tuple[tuple[Path, ...], list[dict[str, SourceTensor]]]:
    """Find the files of a checkpoint, and list the tensors of each by canonical names."""
    directory = path if path.is_dir() else path.parent
    numbered = sorted(e.name for e in directory.iterdir() if _PART.fullmatch(e.name))
    if numbered and (path.is_dir() or path.name in numbered):
        count = int(numbered[-1].split(".")[1]) + 1
        for number in range(count):
            name = f"consolidated.{number:02}.pth"
            if name not in numbered:
                raise ConversionError(
                    f"{directory}: missing shard {name} of {count} or more; fetch it too"
                )
        return _pickled([directory / name for name in numbered])
    if path.is_file() and path.suffix != ".safetensors":
        return _pickled([path])
    if path.is_dir() and not any(path.glob("consolidated*.safetensors")):
        raise ConversionError(f"{path}: expected consolidated.00.pth or {_SAFETENSORS}")
    found = weight_files(path, _SAFETENSORS)
    return found.files, [
        _renamed(joined(path, found, [safetensors_arrays(file) for file in found.files]))
    ]


def _pickled(files: Sequence[Path]) -> tuple[tuple[Path, ...], list[dict[str, SourceTensor]]]:
    for file in files:
        check_is_weights(file)
    return tuple(files), [_renamed(read_torch_file(file)) for file in files]


def _renamed(part: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Give the tensors of one part their canonical names; an unknown one keeps its own."""
    renamed = {}
    for name, tensor in part.items():
        if name in _SUPERFLUOUS:
            continue
        check_is_float(tensor)
        if not tensor.shape:
            raise ConversionError(f"{tensor.where}: expected a vector or matrix, found a number")
        match = _LAYER.fullmatch(name)
        if match is not None and match[2] in _LAYER_NAMES:
            renamed[f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.weight"] = tensor
        else:
            renamed[_NAMES.get(name, name)] = tensor
    return renamed


def _joined(
    files: Sequence[Path], parts: Sequence[Mapping[str, SourceTensor]]
) -> dict[str, SourceTensor]:
    """Put each matrix together from its parts; vectors are whole in every part."""
    first = parts[0]
    for file, part in zip(files[1:], parts[1:], strict=False):
        for name in first.keys() ^ part.keys():
            lacking, having = (file, files[0]) if name in first else (files[0], file)
            raise ConversionError(
                f"{lacking}: missing tensor {shown(name)}, of which {having.name} has a part; "
                "the files are not of one download"
            )
    if len(parts) == 1:
        return dict(first)
    return {
        name: _together(name, [part[name] for part in parts], first.get(FINAL_NORM))
        for name in first
    }


def _together(name: str, parts: Sequence[SourceTensor], norm: SourceTensor | None) -> SourceTensor:
    for part in parts:
        if part.shape != parts[0].shape:
            raise ConversionError(
                f"{part.where}: expected the shape {parts[0].shape} that it has in the first "
                f"shard, found {part.shape}"
            )
    if len(parts[0].shape) == 1:
        _check_copies(parts)
    if len(parts[0].shape) != 2:
        return parts[0]
    # Llama 1 and 2 split the embedding by columns, Llama 3 by rows: whose are whole.
    whole_rows = norm is not None and parts[0].shape[1:] == norm.shape
    if any(part in name for part in _BY_COLUMNS) or (name == EMBEDDING and not whole_rows):
        return Columns(parts)
    return Stacked(parts)


def _check_copies(parts: Sequence[SourceTensor]) -> None:
    """Refuse a shard of another model: it has other norms, though of the same shape."""
    first = parts[0].read(0, parts[0].shape[0])
    for part in parts[1:]:
        difference = np.linalg.norm(part.read(0, part.shape[0]) - first)
        if difference > _MAX_DRIFT * np.linalg.norm(first):
            raise ConversionError(
                f"{part.where}: expected a copy of {parts[0].where}, found other values; "
                "the files are not of one download"
            )


def _check_all_parts(
    files: Sequence[Path], raw: Mapping[str, SourceTensor], config: ModelConfig
) -> None:
    """Say that the last shards are missing, rather than that a matrix has too few rows."""
    q = raw.get("model.layers.0.self_attn.q_proj.weight")
    if q is None or q.shape[0] == config.q_dim:
        return
    expected, rest = divmod(len(files) * config.q_dim, max(1, q.shape[0]))
    if rest == 0 and expected > len(files):
        raise ConversionError(
            f"{files[0].parent}: expected {expected} shards, consolidated.00.pth to "
            f"consolidated.{expected - 1:02}.pth, as each has {q.shape[0] // len(files)} of the "
            f"{config.q_dim} rows of wq; found {len(files)}"
        )


def _half_split(tensor: SourceTensor, config: ModelConfig) -> SourceTensor:
    rows = tensor.shape[0]
    # Of a wrong shape, which is reported where all shapes are checked.
    if rows % config.head_dim:
        return tensor
    return Reordered(tensor, interleaved_to_half_split(rows, config.head_dim))
