"""MindFormers' Llama: its tensors' names, and how it fuses and orders them.

Owns the translation to Hugging Face's tensors. Opens no file.

Reference: mindformers 0.6 to 1.8, `models/llama/{convert_weight,llama_transformer,
llama_layer}.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.sources.base import SourceTensor
from converter.sources.views import (
    Grouped,
    Reordered,
    RowSlice,
    Transposed,
    interleaved_to_half_split,
)
from converter.wording import listed, quoted
from qllama.config import ModelConfig
from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD, expected_shapes

__all__ = ["FUSED_LAYOUTS", "ROPE_LAYOUTS", "Layouts", "hugging_face_names", "unfused"]

ROPE_LAYOUTS = ("half-split", "interleaved")
"""Rows of q and k: as in Hugging Face's checkpoints (MindFormers since 0.7), or in Meta's."""

FUSED_LAYOUTS = ("grouped", "stacked")
"""Rows of w_qkv: q, k and v of a key/value head together (MindFormers since 1.4), or all of
q, then k, then v. Likewise w_gate_hidden: gate and up in turns, or one after the other."""

_NAMES = {
    "tok_embeddings.embedding_weight": EMBEDDING,
    # From Meta's checkpoints.
    "tok_embeddings.weight": EMBEDDING,
    "norm_out.weight": FINAL_NORM,
    "lm_head.weight": HEAD,
}

_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_LAYER_NAMES: dict[str, tuple[str, ...]] = {
    "attention_norm": ("input_layernorm",),
    "attention.wq": ("self_attn.q_proj",),
    "attention.wk": ("self_attn.k_proj",),
    "attention.wv": ("self_attn.v_proj",),
    "attention.w_qkv": _QKV,
    "attention.wo": ("self_attn.o_proj",),
    "ffn_norm": ("post_attention_layernorm",),
    "feed_forward.w1": ("mlp.gate_proj",),
    "feed_forward.w3": ("mlp.up_proj",),
    "feed_forward.w_gate_hidden": _GATE_UP,
    "feed_forward.w2": ("mlp.down_proj",),
}

_LAYER = re.compile(r"layers\.(0|[1-9][0-9]*)\.([a-z0-9_.]+)\.(weight|bias)")

# What optimizers, loss scaling and callbacks add while a model is trained, and the cache of
# keys and values of a model that generates.
_IGNORED = re.compile(
    r"(adam_[mv]|muon_m|moments?[12]?|(max_)?exp_avg(_sq)?|accu_grads)\..+"
    r"|exp_avg_sq_(row|col)_.+"
    r"|(.+\.)?(key|value)_cache(_grad)?"
    r"|(model\.)?seq_chunk"
    r"|epoch_num|step_num|global_step|global_batch_size|learning_rate|weight_decay|momentum"
    r"|beta[12]_power|afactor_step|loss_scale|scale_sense|scale_window_(up|down)_count"
    r"|current_iterator_step|last_overflow_iterator_step|list_index|random_op"
)


@dataclass(frozen=True)
class Layouts:
    """What a checkpoint does not tell of its row order.

    Parameters
    ----------
    rope : str
        One of `ROPE_LAYOUTS`.
    fused : str or None
        One of `FUSED_LAYOUTS`; None where nobody said.
    """

    rope: str = "half-split"
    fused: str | None = None


def hugging_face_names(where: Path, tags: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Translate the names of a checkpoint's parameters.

    Parameters
    ----------
    where : Path
        For messages.
    tags : iterable of str

    Returns
    -------
    dict
        Tag to the names of the tensors that it holds, several of a fused one; what training
        left behind is not there.

    Raises
    ------
    ConversionError
        When MindFormers' Llama has no such parameters, or two hold the same tensor.
    """
    found: dict[str, tuple[str, ...]] = {}
    unknown = []
    owner: dict[str, str] = {}
    for tag in tags:
        names = _names(tag)
        if not names:
            if not _IGNORED.fullmatch(tag):
                unknown.append(tag)
            continue
        for name in names:
            if name in owner:
                raise ConversionError(
                    f"{where}: {quoted(owner[name])} and {quoted(tag)} are both {name}"
                )
            owner[name] = tag
        found[tag] = names
    if unknown:
        hint = ""
        if any("lora" in tag for tag in unknown):
            hint = "; merge the adapter with MindFormers' transform_ckpt_lora first"
        raise ConversionError(
            f"{where}: parameter(s) that MindFormers' Llama does not have: {listed(unknown)}{hint}"
        )
    return found


def _names(tag: str) -> tuple[str, ...]:
    name = tag.removeprefix("model.")
    if name in _NAMES:
        return (_NAMES[name],)
    match = _LAYER.fullmatch(name)
    if match is None:
        return ()
    layer, module, kind = match.groups()
    return tuple(f"model.layers.{layer}.{part}.{kind}" for part in _LAYER_NAMES.get(module, ()))


def unfused(
    where: Path,
    stored: Mapping[str, SourceTensor],
    names: Mapping[str, tuple[str, ...]],
    config: ModelConfig,
    layouts: Layouts,
) -> dict[str, SourceTensor]:
    """Take fused matrices apart, and put rows and columns in Hugging Face's order.

    Parameters
    ----------
    where : Path
        For messages.
    stored : mapping
        Tag to tensor.
    names : mapping
        As `hugging_face_names` gives them.
    config : ModelConfig
    layouts : Layouts

    Returns
    -------
    dict
        Hugging Face's names to tensors; shapes of those that are not fused are unchecked.

    Raises
    ------
    ConversionError
        When a tensor is a slice of a matrix, or fused in an order that nobody told.
    """
    tensors: dict[str, SourceTensor] = {}
    expected = expected_shapes(config)
    for tag, tensor in stored.items():
        parts = names[tag]
        rows = [expected[name][0] for name in parts if name in expected]
        if len(parts) > 1 and len(rows) == len(parts):
            _check_fused(tensor, (sum(rows), *expected[parts[0]][1:]))
            for name, part in zip(parts, _parts(tensor, rows, config, layouts), strict=True):
                tensors[name] = part
        else:
            tensors |= dict.fromkeys(parts, tensor)
    for name, tensor in tensors.items():
        shape = expected.get(name)
        if shape is None:
            continue
        if name.endswith("mlp.down_proj.weight") and tensor.shape == shape[::-1] != shape:
            tensors[name] = Transposed(tensor)
        elif layouts.rope == "interleaved" and tensor.shape == shape and _is_rotated(name):
            order = interleaved_to_half_split(shape[0], config.head_dim)
            tensors[name] = Reordered(tensor, order)
        else:
            _refuse_slice(tensor, shape)
    return tensors


def _parts(
    tensor: SourceTensor, rows: list[int], config: ModelConfig, layouts: Layouts
) -> list[SourceTensor]:
    """Take one fused matrix apart."""
    if layouts.fused is None:
        raise ConversionError(
            f"{tensor.where} is fused, and no file tells in what order: give --fused-layout "
            "grouped for MindFormers 1.4 and later, stacked for 1.3 and earlier"
        )
    if layouts.fused == "stacked":
        ends = [sum(rows[: i + 1]) for i in range(len(rows))]
        return [RowSlice(tensor, end - n, end) for end, n in zip(ends, rows, strict=True)]
    groups = config.num_key_value_heads if len(rows) == len(_QKV) else rows[0]
    sizes = [n // groups for n in rows]
    return [Grouped(tensor, sum(sizes), sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def _check_fused(tensor: SourceTensor, shape: tuple[int, ...]) -> None:
    _refuse_slice(tensor, shape)
    if tensor.shape != shape:
        raise ConversionError(f"{tensor.where}: expected shape {shape}, found {tensor.shape}")


def _is_rotated(name: str) -> bool:
    return ".q_proj." in name or ".k_proj." in name


def _refuse_slice(tensor: SourceTensor, shape: tuple[int, ...]) -> None:
    """Tell a slice of a matrix, as training on several devices leaves them, from other trouble."""
    if len(tensor.shape) != len(shape) or 0 in tensor.shape:
        return
    pairs = [(n, m) for n, m in zip(shape, tensor.shape, strict=True) if n != m]
    if len(pairs) == 1 and pairs[0][0] % pairs[0][1] == 0:
        parts = pairs[0][0] // pairs[0][1]
        raise ConversionError(
            f"{tensor.where}: expected shape {shape}, found {tensor.shape}: by the look of it "
            f"one of {parts} slices from training on several devices; merge the ranks' files with "
            "mindspore.transform_checkpoints first"
        )
