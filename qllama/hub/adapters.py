"""Directories of LoRA adapters to the updates that they are of one model.

Owns what of an adapter can be computed beside a model that is ready, and the wording of
what must be merged instead. The converter reads and checks; knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig
from qllama.errors import UnsupportedModelError
from qllama.tensors import EMBEDDING, HEAD, expected_shapes

if TYPE_CHECKING:
    from converter.adapter import Adapter

__all__ = ["Updates", "read_adapters"]

#: Canonical tensor name to the matrices (rows, r) and (r, k), float32, of each update of it.
Updates = dict[str, list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]]


def read_adapters(
    scales: Mapping[Path, float], model: Path, config: ModelConfig, provenance: Mapping[str, Any]
) -> Updates:
    """Read PEFT adapters for a model; says on stderr where one seems to be for another.

    Parameters
    ----------
    scales : mapping of Path to float
        Directory of each to what multiplies its updates, beside its own alpha over rank.
    model : Path
        The model's file, for messages.
    config : ModelConfig
    provenance : mapping
        What the file says that the model was made of.

    Returns
    -------
    mapping
        Scales and everything else that multiplies an update are in its left matrix.

    Raises
    ------
    ConversionError
        When an adapter is damaged, incomplete, or does not fit the model.
    UnsupportedModelError
        When it asks for more than low-rank updates.
    """
    from converter.adapter import open_adapter
    from converter.lora_checks import compare_names

    shapes = expected_shapes(config)
    shapes.setdefault(HEAD, shapes[EMBEDDING])
    updates: Updates = {}
    for directory, scale in scales.items():
        adapter = open_adapter(directory, shapes, scale)
        _check_only_updates(directory, adapter, config)
        compare_names(adapter.config, model, provenance)
        for name, update in adapter.updates.items():
            left = update.left.read(0, update.left.shape[0]) * np.float32(update.scale)
            updates.setdefault(name, []).append((left, update.right.read(0, update.right.shape[0])))
    return updates


def _check_only_updates(directory: Path, adapter: Adapter, config: ModelConfig) -> None:
    """Refuse trained tensors; others that it has whole are the model's own once more."""
    path, trained = adapter.weights.path, adapter.weights.trained
    found = f"replaces {trained[0]} whole" if trained else ""
    for tensor in adapter.replaced.values():
        rows = tensor.shape[0]
        if len(tensor.shape) == 2 and rows > config.vocab_size:
            found = f"adds {rows - config.vocab_size} tokens to the model's {config.vocab_size}"
    if found:
        raise UnsupportedModelError(
            f"{path}: the adapter {found}, which cannot be computed beside it; merge it instead: "
            f"qllama convert CHECKPOINT --lora {directory}"
        )
