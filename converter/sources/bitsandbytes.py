"""Weights that bitsandbytes stores as LLM.int8: codes, and a scale a row.

Owns which quantizations of a `config.json` can be read, and the joining of the tensors
that one matrix is stored as. Knows no file.

Reference: `bitsandbytes.nn.Linear8bitLt._save_to_state_dict`, its
`functional.int8_vectorwise_dequant`, and transformers' `BitsAndBytesConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.sources.base import SourceTensor
from qllama.errors import ConversionError, UnsupportedModelError

__all__ = ["joined_int8", "unreadable_quantization"]

_SCALES, _FORMAT = ".SCB", ".weight_format"
_LAYOUTS = ("row", "col32", "col_turing", "col_ampere")
# As the library has it, 1 / 127 in float32.
_TO_UNIT = np.float32(7.874015718698502e-3)


def unreadable_quantization(declared: Any) -> str | None:
    """Return what the weights are, where a `quantization_config` means any but LLM.int8.

    Parameters
    ----------
    declared : object
        The value; repositories of 2023 do not name the method in it.
    """
    if not isinstance(declared, Mapping):
        return "no object that describes a quantization"
    method = declared.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        return f"weights that {method} quantized"
    if declared.get("load_in_4bit") or not declared.get("load_in_8bit"):
        return "4-bit weights of bitsandbytes"
    return None


class Int8Rows(SourceTensor):
    """A matrix of int8 codes that stand for code / 127 of the largest value in their row.

    Parameters
    ----------
    codes : SourceTensor
        int8, (rows, k).
    scales : SourceTensor
        (rows,), the largest magnitudes; codes of 127 stand for them.
    """

    def __init__(self, codes: SourceTensor, scales: SourceTensor) -> None:
        self._codes = codes
        self._scales = scales
        self.where = codes.where
        self.shape = codes.shape
        self.source_type = "LLM.int8"
        self.n_bytes = codes.n_bytes + scales.n_bytes

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        values = self._codes.read(start, stop)
        values *= self._scales.read(start, stop)[:, None]
        values *= _TO_UNIT
        return values


def joined_int8(raw: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Join codes and scales; whatever is not quantized stays as it is.

    Parameters
    ----------
    raw : mapping
        A checkpoint's tensors by its own names.

    Raises
    ------
    ConversionError
        When a scale has no codes of its shape; names the tensor.
    UnsupportedModelError
        When codes are in the order of one kind of GPU.
    """
    found = dict(raw)
    for name, scales in raw.items():
        if not name.endswith(_SCALES):
            continue
        module = name.removesuffix(_SCALES)
        codes = raw.get(f"{module}.weight")
        if codes is None or codes.source_type != "int8" or codes.shape[:1] != scales.shape:
            there = "nothing" if codes is None else f"{codes.source_type} {codes.shape}"
            raise ConversionError(
                f"{scales.where}: expected {module}.weight of int8 codes with {scales.shape[:1]} "
                f"rows beside it, found {there}"
            )
        if scales.source_type not in ("float32", "float16", "bfloat16"):
            raise ConversionError(
                f"{scales.where}: expected the scales as float32, found {scales.source_type}"
            )
        layout = found.pop(f"{module}{_FORMAT}", None)
        if layout is not None:
            _check_by_rows(layout)
        del found[name]
        found[f"{module}.weight"] = Int8Rows(codes, scales)
    return found


def _check_by_rows(layout: SourceTensor) -> None:
    if math.prod(layout.shape) != 1 or not layout.source_type.startswith(("int", "uint")):
        raise ConversionError(
            f"{layout.where}: expected one integer, found {layout.source_type} {layout.shape}"
        )
    number = int(layout.read(0, 1).item())
    if number != 0:
        name = _LAYOUTS[number] if 0 <= number < len(_LAYOUTS) else str(number)
        raise UnsupportedModelError(
            f"{layout.where}: codes in the order {name}, expected row; load the model with "
            "bitsandbytes 0.43 and save it again"
        )
