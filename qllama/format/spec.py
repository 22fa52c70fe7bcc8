"""The constants of the `.qlm` format, its tensor records and where bytes lie.

Owns the arithmetic, all in Python integers, that reader and writer share
(`docs/format.md` §2 and §3). Knows no JSON and opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qllama.errors import BadTensorError, UnsupportedModelError
from qllama.quant.types import matrix_n_bytes, vector_n_bytes

__all__ = [
    "ALIGNMENT",
    "DATA_ALIGNMENT",
    "MAGIC",
    "MAX_HEADER_REGION",
    "MAX_QUALITY_BYTES",
    "MAX_TENSORS",
    "PRELUDE_SIZE",
    "VERSION",
    "Extent",
    "Layout",
    "TensorInfo",
    "TensorSpec",
    "align_up",
    "place",
    "tensor_layout",
    "tensor_n_bytes",
]

MAGIC = b"\x89QLM\r\n\x1a\n"
"""As PNG's: a text-mode transfer changes it."""

VERSION = 1
PRELUDE_SIZE = 64
ALIGNMENT = 64
DATA_ALIGNMENT = 65536
MAX_HEADER_REGION = 64 * 1024 * 1024
MAX_TENSORS = 65536
MAX_DIMENSION = 2**31 - 1
MAX_QUALITY_BYTES = 256

_NAME = re.compile(r"[!-~]{1,255}")

Layout = Literal["row_major", "tile16"]


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in the data section.

    Parameters
    ----------
    offset : int
        From `data_offset`, a multiple of 64.
    n_bytes : int
    crc32 : int
        Of those bytes, as `zlib.crc32` gives it.
    """

    offset: int
    n_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a writer is told of a tensor; everything else follows from it.

    Parameters
    ----------
    name : str
        Hugging Face's.
    type : str
        A key of `qllama.quant.types.QUANT_TYPES`.
    shape : tuple of int
        (n,) or (rows, k), without padding.
    """

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a file's tensor table (`docs/format.md` §2).

    Parameters
    ----------
    name, type, shape
        As in `TensorSpec`.
    layout : str
        `row_major` (1-D) or `tile16` (2-D).
    offset, n_bytes, crc32 : int
        As in `Extent`.
    quality : dict or None
        What the converter measured of the quantization, free-form.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    layout: Layout
    offset: int
    n_bytes: int
    crc32: int
    quality: dict[str, Any] | None = None


def align_up(n: int, alignment: int) -> int:
    """Round `n` up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def tensor_layout(shape: Sequence[int]) -> Layout:
    """Layout that a tensor of this shape is stored in."""
    return "row_major" if len(shape) == 1 else "tile16"


def tensor_n_bytes(spec: TensorSpec) -> int:
    """Check a tensor's name, type and shape and return the bytes it takes.

    Raises
    ------
    BadTensorError
        When the name, the type or the shape is not allowed; names the tensor.
    """
    if not _NAME.fullmatch(spec.name):
        raise BadTensorError(
            f"tensor name {spec.name[:80]!r}: expected 1 to 255 printable "
            "ASCII characters without spaces"
        )
    where = f"tensor {spec.name!r}"
    if len(spec.shape) not in (1, 2) or not all(0 < n <= MAX_DIMENSION for n in spec.shape):
        raise BadTensorError(
            f"{where}: shape: expected 1 or 2 dimensions of 1..{MAX_DIMENSION}, "
            f"found {list(spec.shape[:8])}"
        )
    try:
        if len(spec.shape) == 1:
            return vector_n_bytes(spec.type, *spec.shape)
        return matrix_n_bytes(spec.type, *spec.shape)
    except UnsupportedModelError as error:
        raise BadTensorError(f"{where}: {error}") from None


def place(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Lay runs of bytes one after another, each start rounded up to 64.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of the tokenizer blob, then of each tensor in table order.

    Returns
    -------
    offsets : list of int
        Where each starts, from `data_offset`.
    end : int
        Where the last one ends, which is the size of the data section.
    """
    offsets: list[int] = []
    end = 0
    for n_bytes in sizes:
        offsets.append(align_up(end, ALIGNMENT))
        end = offsets[-1] + n_bytes
    return offsets, end
