"""The header of a GGUF file: metadata and tensor table, read within bounds.

Owns the parsing of everything before the tensor data. The `gguf` library's own
reader slices without bounds checks, makes an object an array element (seconds
for a 49k vocabulary) and hangs on some short files, so the header is read here
and the library is left what it does best, the dequantization. Knows nothing of
models: keys and tensor names are just strings.

Reference: the GGUF specification, ggml/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from converter.wording import quoted
from qllama.errors import ConversionError

__all__ = ["GgufHeader", "GgufTensorInfo", "read_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20
_MAX_KEY_BYTES = 65535
_MAX_TEXT_BYTES = 1 << 26
# Four times ggml's own limit.
_MAX_NAME_BYTES = 255
# Sixteen times the largest vocabulary in use; bounds the Python objects a file can ask for.
_MAX_ARRAY = 1 << 22
# Smallest possible entries, so that an absurd count is refused before anything is allocated.
_MIN_KEY_VALUE_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

_SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True, slots=True)
class GgufTensorInfo:
    """One entry of the tensor table, checked against the file's size.

    Parameters
    ----------
    path : Path
        The file.
    shape : tuple of int
        Outermost first, as numpy has it (GGUF stores it the other way round).
    offset, n_bytes : int
        Place of the data, from the start of the file.
    """

    path: Path
    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the tensor data.

    Parameters
    ----------
    metadata : mapping
        Key to plain Python value; arrays are lists.
    tensors : mapping
        Name to entry, in file order.
    """

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensorInfo]


class _Cursor:
    """Reads forward through the header; every read is checked against the file's end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.offset = 0

    @property
    def left(self) -> int:
        return self.size - self.offset

    def error(self, message: str) -> ConversionError:
        return ConversionError(f"{self.path}: malformed GGUF: {message}")

    def take(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes` and return where they start."""
        if n_bytes > self.left:
            raise ConversionError(
                f"{self.path}: truncated or malformed GGUF: {what} needs {n_bytes} bytes at "
                f"offset {self.offset}, the file ends at {self.size}; download it again"
            )
        start = self.offset
        self.offset += n_bytes
        return start

    def u32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.data, self.take(8, what))[0])

    def count(self, what: str, min_entry_bytes: int) -> int:
        """A number of entries that the rest of the file could hold."""
        n = self.u64(what)
        if n * min_entry_bytes > self.left:
            raise self.error(
                f"{what} is {n}, more than fit in the {self.left} bytes that are left "
                "(a truncated file, or not a GGUF)"
            )
        return n

    def text(self, what: str, max_bytes: int = _MAX_TEXT_BYTES) -> str:
        n_bytes = self.u64(f"the length of {what}")
        if max_bytes < n_bytes <= self.left:
            raise self.error(f"{what} has {n_bytes} bytes, expected at most {max_bytes}")
        start = self.take(n_bytes, what)
        try:
            return self.data[start : start + n_bytes].decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.error(f"{what} is not UTF-8 ({e.reason} at byte {e.start})") from None


def read_header(path: Path) -> GgufHeader:
    """Parse and check the header of the GGUF file at `path`.

    Raises
    ------
    ConversionError
        When it cannot be read, is no little-endian GGUF of version 2 or 3, or is
        truncated or malformed; one line that says where.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] != _MAGIC or len(start) < 8:
                raise ConversionError(
                    f"{path}: not a GGUF file: expected it to start with {_MAGIC!r}, "
                    f"found {start[:4]!r}"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(path, data))
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e


def _parse(cursor: _Cursor) -> GgufHeader:
    cursor.take(4, "the magic")
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise ConversionError(
            f"{cursor.path}: big-endian GGUF; qllama reads little-endian ones"
            if swapped in _VERSIONS
            else f"{cursor.path}: GGUF version {version}; qllama reads versions 2 and 3"
        )
    n_tensors = cursor.count("the tensor count", _MIN_TENSOR_BYTES)
    n_values = cursor.count("the metadata count", _MIN_KEY_VALUE_BYTES)
    metadata: dict[str, Any] = {}
    for i in range(n_values):
        key = cursor.text(f"metadata key {i}", _MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.error(f"metadata key {quoted(key)} is there twice")
        metadata[key] = _value(cursor, key)
    entries = [_tensor_entry(cursor, i) for i in range(n_tensors)]
    tensors = _place(cursor, entries, _alignment(cursor, metadata))
    return GgufHeader(version, metadata, tensors)


def _value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    number = cursor.u32(f"the type of metadata key {quoted(key)}")
    try:
        return GGUFValueType(number)
    except ValueError:
        raise cursor.error(
            f"metadata key {quoted(key)} has the unknown value type {number}"
        ) from None


def _value(cursor: _Cursor, key: str) -> Any:
    what = f"metadata key {quoted(key)}"
    kind = _value_type(cursor, key)
    if kind == GGUFValueType.STRING:
        return cursor.text(what)
    if kind == GGUFValueType.ARRAY:
        return _array(cursor, key)
    return _numbers(cursor, kind, 1, what)[0]


def _array(cursor: _Cursor, key: str) -> list[Any]:
    what = f"the array of metadata key {quoted(key)}"
    kind = _value_type(cursor, key)
    if kind == GGUFValueType.ARRAY:
        raise cursor.error(f"metadata key {quoted(key)} is an array of arrays")
    is_text = kind == GGUFValueType.STRING
    item_bytes = 8 if is_text else np.dtype(_SCALARS[kind]).itemsize
    n = cursor.count(f"the length of {what}", item_bytes)
    if n > _MAX_ARRAY:
        raise cursor.error(f"{what} has {n} elements, expected at most {_MAX_ARRAY}")
    if is_text:
        return [cursor.text(f"element {i} of {what}") for i in range(n)]
    return _numbers(cursor, kind, n, what)


def _numbers(cursor: _Cursor, kind: GGUFValueType, n: int, what: str) -> list[Any]:
    dtype = np.dtype(_SCALARS[kind])
    start = cursor.take(n * dtype.itemsize, what)
    raw = cursor.data[start : start + n * dtype.itemsize]
    return list(np.frombuffer(raw, dtype).tolist())


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(
            f"general.alignment is {quoted(value)}, expected a power of two up to {_MAX_ALIGNMENT}"
        )
    return value


def _tensor_entry(cursor: _Cursor, index: int) -> GgufTensorInfo:
    """One entry as stored; its offset still counts from the start of the data."""
    name = cursor.text(f"the name of tensor {index}", _MAX_NAME_BYTES)
    what = f"tensor {quoted(name)}"
    n_dims = cursor.u32(f"{what}: the number of dimensions")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise cursor.error(f"{what} has {n_dims} dimensions, expected 1 to {_MAX_DIMS}")
    dims = [cursor.u64(f"{what}: dimension {d}") for d in range(n_dims)]
    number = cursor.u32(f"{what}: the type")
    offset = cursor.u64(f"{what}: the offset")
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ConversionError(
            f"{cursor.path}: {what} has ggml type {number}, which the installed gguf library "
            "does not know; a newer gguf may"
        ) from None
    if 0 in dims or dims[0] % block:
        raise cursor.error(
            f"{what} has dimensions {dims}, expected none to be 0 and the first to be a "
            f"multiple of {block} ({kind.name} blocks)"
        )
    n_bytes = dims[0] // block * block_bytes
    for dim in dims[1:]:
        n_bytes *= dim
    return GgufTensorInfo(cursor.path, name, kind, tuple(reversed(dims)), offset, n_bytes)


def _place(
    cursor: _Cursor, entries: Sequence[GgufTensorInfo], alignment: int
) -> dict[str, GgufTensorInfo]:
    """Turn offsets into file offsets; check bounds, alignment, overlap and names."""
    data_start = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, GgufTensorInfo] = {}
    for e in entries:
        offset = data_start + e.offset
        if e.name in tensors:
            raise cursor.error(f"tensor {quoted(e.name)} is there twice")
        if e.offset % alignment:
            raise cursor.error(
                f"tensor {quoted(e.name)}: offset {e.offset} is not {alignment}-aligned"
            )
        if offset + e.n_bytes > cursor.size:
            raise ConversionError(
                f"{cursor.path}: truncated or malformed GGUF: tensor {quoted(e.name)} needs "
                f"{e.n_bytes} bytes at offset {offset}, the file ends at {cursor.size}; "
                "download it again"
            )
        tensors[e.name] = replace(e, offset=offset)
    placed = sorted(tensors.values(), key=lambda t: t.offset)
    for before, after in pairwise(placed):
        if before.offset + before.n_bytes > after.offset:
            raise cursor.error(f"tensors {quoted(before.name)} and {quoted(after.name)} overlap")
    return tensors
