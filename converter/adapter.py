"""A PEFT LoRA adapter, held against the model that it is for.

Owns which tensors of a model an adapter changes: low-rank updates W + s B A, and
tensors that it replaces whole. Works on qllama's names and row order and needs of the
model no more than shapes, so it does not matter whether the adapter is merged while a
checkpoint is read (`lora`) or computed beside a model that is ready. Everything in
the adapter is used, or the adapter is refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from converter.hf_tensors import canonical_name
from converter.lora_checks import FUSED, check_targets, check_whole
from converter.peft_config import AdapterConfig, read_adapter_config
from converter.peft_weights import AdapterWeights, LowRank, read_adapter_weights
from converter.sources.base import SourceTensor
from converter.sources.views import RowSlice
from converter.wording import quoted, shown
from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, HEAD

__all__ = ["Adapter", "Shapes", "adapter_argument", "open_adapter"]

Shapes = Mapping[str, tuple[int, ...]]
"""Canonical name of each tensor of a model, its head among them even if tied, to its shape."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter changes of one model; nothing of it is read yet.

    Parameters
    ----------
    config : AdapterConfig
    weights : AdapterWeights
        As they lie in the file, by the trained model's names.
    replaced : mapping
        Canonical name to the tensor that replaces the model's.
    updates : mapping
        Canonical name to the update of the matrix, or of what replaces it.
    """

    config: AdapterConfig
    weights: AdapterWeights
    replaced: Mapping[str, SourceTensor]
    updates: Mapping[str, LowRank]


def adapter_argument(text: str) -> tuple[Path, float]:
    """Split the `DIR[=SCALE]` of `--lora`; a directory of that whole name comes first.

    Raises
    ------
    ConversionError
        When SCALE is no finite number.
    """
    directory, equals, scale = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConversionError(f"--lora {text}: expected a number after '=', found {quoted(scale)}")
    return Path(directory), value


def open_adapter(
    directory: Path, shapes: Shapes, scale: float, earlier: Collection[str] = ()
) -> Adapter:
    """Open an adapter for a model of given shapes.

    Parameters
    ----------
    directory : Path
        Holds `adapter_config.json` and the weights.
    shapes : mapping
        The model's.
    scale : float
        Multiplies the low-rank updates, beside the adapter's own alpha over rank.
    earlier : collection of str
        Canonical names of what adapters before it changed.

    Raises
    ------
    ConversionError
        When the adapter is damaged, incomplete, or does not fit the model.
    UnsupportedModelError
        When it asks for more than low-rank updates and replaced tensors.
    """
    config = read_adapter_config(directory)
    weights = read_adapter_weights(directory, config)
    replaced = _replaced(weights, shapes)
    check_whole(config, weights, scale, replaced, earlier, shapes)
    changed = {**shapes, **{name: tensor.shape for name, tensor in replaced.items()}}
    updates = _updates(weights, changed, scale)
    check_targets(config, weights, shapes)
    return Adapter(config, weights, replaced, updates)


def _split(name: str, tensor: SourceTensor, shapes: Shapes) -> dict[str, SourceTensor]:
    """Cut a tensor of the trained model's name into the rows of each canonical one."""
    canonical = canonical_name(name) or name
    for fused, parts in FUSED.items():
        layer, found, kind = canonical.rpartition(f".{fused}.")
        names = [f"{layer}.{part}.{kind}" for part in parts]
        if found and all(n in shapes for n in names):
            ends = list(accumulate(shapes[n][0] for n in names))
            if tensor.shape[0] != ends[-1]:
                raise ConversionError(
                    f"{tensor.where}: expected {ends[-1]} rows for this model, found "
                    f"{tensor.shape[0]}"
                )
            starts = [0, *ends[:-1]]
            return {
                n: RowSlice(tensor, start, stop)
                for n, start, stop in zip(names, starts, ends, strict=True)
            }
    return {canonical: tensor}


def _replaced(weights: AdapterWeights, shapes: Shapes) -> dict[str, SourceTensor]:
    """Return the tensors that the adapter has whole, by canonical name."""
    found: dict[str, SourceTensor] = {}
    for name, tensor in weights.whole.items():
        parts = _split(name, tensor, shapes)
        _check_known(weights.path, parts, shapes, found)
        found |= parts
    for name, tensor in found.items():
        expected = shapes[name]
        # A vocabulary that grew for the training: rows were added.
        grown = name in (EMBEDDING, HEAD) and tensor.shape[1:] == expected[1:]
        if tensor.shape != expected and not (grown and tensor.shape > expected):
            raise ConversionError(
                f"{tensor.where}: expected shape {expected} of the model's {name}, found "
                f"{tensor.shape}"
            )
    return found


def _updates(weights: AdapterWeights, shapes: Shapes, scale: float) -> dict[str, LowRank]:
    """Return the low-rank updates, by canonical name."""
    found: dict[str, LowRank] = {}
    for module, update in weights.updates.items():
        lefts = _split(f"{module}.weight", update.left, shapes)
        _check_known(weights.path, lefts, shapes, found)
        for name, left in lefts.items():
            shape = (left.shape[0], update.right.shape[1])
            if shape != shapes[name]:
                raise ConversionError(
                    f"{left.where}: the update has shape {shape}, the model's {name} "
                    f"{shapes[name]}; is the adapter for another model?"
                )
            found[name] = replace(update, left=left, scale=scale * update.scale)
    return found


def _check_known(
    path: Path, names: Iterable[str], known: Collection[str], taken: Collection[str]
) -> None:
    for name in names:
        if name not in known:
            raise ConversionError(
                f"{path}: the model has no tensor {shown(name)}; is the adapter for another model?"
            )
        if name in taken:
            raise ConversionError(f"{path}: changes {name} twice, under two names")
