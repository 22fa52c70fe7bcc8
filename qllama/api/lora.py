"""What callers say of LoRA adapters, and the adapters that they mean.

Owns the spellings: one directory, several, with scales; llama-cpp-python's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qllama.format.reader import QlmFile
from qllama.model.adapter import Adapter

__all__ = ["LoraArgument", "load_adapter", "lora_scales"]

_Path = str | os.PathLike[str]
LoraArgument = _Path | Mapping[str, float] | Sequence[_Path | tuple[_Path, float]] | None


def lora_scales(
    lora: LoraArgument, lora_path: _Path | None = None, lora_scale: float = 1.0
) -> dict[str, float]:
    """Return the absolute path of each adapter and its scale.

    Parameters
    ----------
    lora : str, path, mapping of str to float, sequence or None
        A directory, directories, pairs of a directory and its scale, or a mapping of the
        one to the other; a scale is 1 where none is given.
    lora_path, lora_scale : str, float
        A directory and its scale; only without `lora`.

    Raises
    ------
    TypeError, ValueError
        When it is none of these, names an adapter twice, or a scale is not finite.
    """
    if lora_path is not None:
        if lora is not None:
            raise ValueError("lora and lora_path: expected one of them, found both")
        lora = [(lora_path, lora_scale)]
    if lora is None:
        return {}
    if isinstance(lora, str | os.PathLike):
        lora = [lora]
    if not isinstance(lora, Mapping | Sequence):
        raise TypeError(f"lora: expected a directory or several, found {lora!r}")
    pairs = list(lora.items()) if isinstance(lora, Mapping) else list(lora)
    scales: dict[str, float] = {}
    for given in pairs:
        path, scale = given if isinstance(given, tuple) else (given, 1.0)
        if not isinstance(path, str | os.PathLike) or not isinstance(scale, int | float):
            raise TypeError(
                f"lora: expected directories, or pairs of one and its scale, found {given!r}"
            )
        if not math.isfinite(scale):
            raise ValueError(f"lora: expected a finite scale of {os.fspath(path)}, found {scale}")
        absolute = str(Path(path).expanduser().absolute())
        if absolute in scales:
            raise ValueError(f"lora: {os.fspath(path)} is there twice; give it once, with a scale")
        scales[absolute] = float(scale)
    return scales


def load_adapter(scales: Mapping[str, float], file: QlmFile) -> Adapter | None:
    """Read the adapters that `lora_scales` found, for a model; None where they change nothing.

    Parameters
    ----------
    scales : mapping of str to float
    file : QlmFile
        The model's.

    Raises
    ------
    ConversionError, UnsupportedModelError
        As `qllama.hub.adapters.read_adapters`.
    """
    if not scales:
        return None
    from qllama.hub.adapters import read_adapters

    directories = {Path(path): scale for path, scale in scales.items()}
    updates = read_adapters(directories, Path(file.path), file.config, file.provenance)
    return Adapter(updates) if updates else None
