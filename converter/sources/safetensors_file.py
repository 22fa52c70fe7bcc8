"""The arrays of one safetensors file.

Owns nothing but the place of each array: the `safetensors` library checks the file
(offsets without holes or overlap, exact size), and `StoredArray` reads the bytes.
Knows no names. Reference: the format's specification, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from converter.sources.stored import Extent, StoredArray
from converter.wording import quoted
from qllama.errors import ConversionError, UnsupportedModelError

__all__ = ["safetensors_arrays"]

_DTYPES: Mapping[str, npt.DTypeLike] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def safetensors_arrays(path: Path) -> dict[str, StoredArray]:
    """List the arrays of a file by their names in it, of whatever type and rank they are.

    Raises
    ------
    ConversionError
        When the file cannot be read, or is damaged.
    UnsupportedModelError
        For an array of a type that numpy has no equal of.
    """
    try:
        with path.open("rb") as file, safe_open(path, framework="numpy"):
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
    except SafetensorError as e:
        raise ConversionError(
            f"{path}: truncated or malformed safetensors file ({e}); download it again"
        ) from None
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {quoted(name)}"
        if entry["dtype"] not in _DTYPES:
            raise UnsupportedModelError(
                f"{where} is of type {entry['dtype']}, expected one of {', '.join(_DTYPES)}"
            )
        begin, end = entry["data_offsets"]
        extent = Extent(8 + header_bytes + begin, end - begin)
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        arrays[name] = StoredArray(where, path, dtype, tuple(entry["shape"]), [extent])
    return arrays
