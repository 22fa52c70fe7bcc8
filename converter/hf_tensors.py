"""The tensors of a checkpoint that has Hugging Face's names, made canonical.

Owns the spellings of those names, what is superfluous, and the undoing of fused
matrices. Reads no tensor.

Reference: the modules of transformers 5.23 for the families of `hf_config`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converter.sources.base import SourceTensor
from converter.sources.stored import StoredArray
from converter.sources.strided import StridedArray
from converter.sources.views import RowSlice, StoredTwice
from converter.tensor_map import check_tensors
from qllama.config import ModelConfig
from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, HEAD, expected_shapes

__all__ = ["canonical_name", "canonical_tensors", "check_is_float", "equal_values"]

# A model that was saved without its head has its names without `model.` too.
_WITHOUT_PREFIX = re.compile(r"(embed_tokens|layers|norm)\.")

# Rotary tables that old versions of transformers saved; the config says the same.
_SUPERFLUOUS = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")

_FLOATS = ("float32", "float16", "bfloat16")

# 8 MiB of float32 at a time.
_COMPARED_VALUES = 1 << 21


def canonical_name(name: str) -> str | None:
    """Return the canonical spelling of a name; None for a tensor that qllama does without."""
    if _SUPERFLUOUS.fullmatch(name):
        return None
    return f"model.{name}" if _WITHOUT_PREFIX.match(name) else name


def canonical_tensors(
    where: Path, raw: Mapping[str, SourceTensor], config: ModelConfig
) -> dict[str, SourceTensor]:
    """Return exactly the tensors that a model of `config` has, in canonical order.

    Parameters
    ----------
    where : Path
        The checkpoint, for messages.
    raw : mapping
        The checkpoint's tensors by Hugging Face's names, with or without `model.`; q, k and
        v, and gate and up, may be fused as in Phi-3.
    config : ModelConfig
        See `hf_config.config_from_hugging_face`.

    Raises
    ------
    ConversionError
        When a tensor is missing, superfluous, there twice, or of another shape or type than
        expected; names it.
    """
    found: dict[str, SourceTensor] = {}
    for spelled, tensor in raw.items():
        name = canonical_name(spelled)
        if name is None:
            continue
        if name in found:
            raise ConversionError(f"{where}: tensor {name} is there twice, also as {spelled}")
        if isinstance(tensor, StoredArray | StridedArray):
            check_is_float(tensor)
        found[name] = tensor
    _split_fused(found, config)
    if config.tie_word_embeddings and HEAD in found:
        _drop_tied(found)
    expected = expected_shapes(config)
    if expected.keys() - found.keys() == {HEAD}:
        raise ConversionError(
            f"{where}: {HEAD} is missing, and no tie_word_embeddings: true says that it is the "
            "embedding; fetch the file with it, or give a config.json that says so as --config"
        )
    check_tensors(where, {name: tensor.shape for name, tensor in found.items()}, expected)
    return {name: found[name] for name in expected}


def check_is_float(tensor: SourceTensor) -> None:
    """Refuse numbers as they lie in a file that are not values of weights but codes or indices.

    Parameters
    ----------
    tensor : SourceTensor
        Its `source_type` is numpy's name.

    Raises
    ------
    ConversionError
        Names the tensor and its type.
    """
    if tensor.source_type not in _FLOATS:
        raise ConversionError(
            f"{tensor.where}: expected one of the types {', '.join(_FLOATS)}, "
            f"found {tensor.source_type}"
        )


def equal_values(a: SourceTensor, b: SourceTensor) -> bool:
    """Whether two vectors or matrices are the same; reads until the first difference.

    Parameters
    ----------
    a, b : SourceTensor
        Of whatever shapes.
    """
    if a.shape != b.shape or not a.shape:
        return False
    step = max(1, _COMPARED_VALUES // max(1, math.prod(a.shape[1:])))
    return all(
        np.array_equal(a.read(i, end), b.read(i, end), equal_nan=True)
        for i in range(0, a.shape[0], step)
        for end in (min(i + step, a.shape[0]),)
    )


def _split_fused(tensors: dict[str, SourceTensor], config: ModelConfig) -> None:
    """Replace matrices that stand below each other in one tensor by views of their rows."""
    q, kv, gate = config.q_dim, config.kv_dim, config.intermediate_size
    fused = {
        ".self_attn.qkv_proj.": (
            (".self_attn.q_proj.", q),
            (".self_attn.k_proj.", kv),
            (".self_attn.v_proj.", kv),
        ),
        ".mlp.gate_up_proj.": ((".mlp.gate_proj.", gate), (".mlp.up_proj.", gate)),
    }
    for name in list(tensors):
        for part, pieces in fused.items():
            if part not in name:
                continue
            tensor = tensors.pop(name)
            rows = sum(n for _, n in pieces)
            if tensor.shape[:1] != (rows,):
                raise ConversionError(
                    f"{tensor.where}: expected {rows} rows, found the shape {tensor.shape}"
                )
            start = 0
            for piece, n in pieces:
                split = name.replace(part, piece)
                if split in tensors:
                    raise ConversionError(f"{tensor.where}: {split} is there as well")
                tensors[split] = RowSlice(tensor, start, start + n)
                start += n


def _drop_tied(tensors: dict[str, SourceTensor]) -> None:
    """Leave out the head, and have it compared with the embedding wherever that is read."""
    head, embedding = tensors.pop(HEAD), tensors.get(EMBEDDING)
    if embedding is None:
        return
    differs = (
        f"{head.where}: differs from {EMBEDDING}, although tie_word_embeddings is true; "
        "set it to false to keep both"
    )
    if head.shape != embedding.shape:
        raise ConversionError(differs)
    tensors[EMBEDDING] = StoredTwice(embedding, head, differs)
