"""PyTorch's files: tensors by name, each read from its place in the file.

Owns the two containers, the zip archive that torch.save writes since 1.6 and the stream
of pickles before that. Archives and pickles are read by the modules beside this one; knows
no model.

Reference: `torch/serialization.py` (`_save`, `_legacy_save`, `_load`, `_legacy_load`).
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from converter.sources.base import SourceTensor
from converter.sources.stored import Extent, StoredArray
from converter.sources.strided import StridedArray
from converter.sources.torch_pickle import unpickle
from converter.sources.torch_records import DTYPES, TensorRecord
from converter.sources.zip_archive import ZIP_START, check_crc32, member_extent, zip_members
from converter.wording import quoted
from qllama.errors import ConversionError

__all__ = ["read_torch_file"]

# A pickled number.
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# A pickle has some 200 bytes a tensor; no model has 100000 of them.
_MAX_PICKLE = 16 << 20

# Tensors by name, and where the bytes of their storages lie.
_Content = tuple[dict[str, TensorRecord], dict[str, Extent]]


def read_torch_file(path: Path) -> dict[str, SourceTensor]:
    """List the tensors of a `.bin`, `.pt` or `.pth` file; no weights are read.

    Parameters
    ----------
    path : Path
        The file; it must not change while the tensors are in use.

    Returns
    -------
    dict
        The file's own names to tensors, in the file's order. They may overlap: several
        may be views of one storage.

    Raises
    ------
    ConversionError
        When the file is damaged, holds anything but tensors by name, or stores them in a
        way that cannot be read in place; names the member, tensor or name.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY_START))
            if start.startswith(ZIP_START):
                records, extents = _open_zip(path, file)
            elif start == _LEGACY_START:
                records, extents = _open_legacy(path, file)
            else:
                raise ConversionError(
                    f"{path}: expected a file of torch.save, found one that begins with "
                    f"{quoted(start)}"
                )
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e
    return {name: _tensor(path, name, record, extents) for name, record in records.items()}


def _state_dict(path: Path, content: Any) -> dict[str, TensorRecord]:
    if not isinstance(content, dict):
        raise ConversionError(
            f"{path}: expected a state dict, found a {type(content).__name__}; save the model "
            "again with torch.save(model.state_dict(), ...)"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, TensorRecord):
            found = "a tensor" if isinstance(value, TensorRecord) else type(value).__name__
            raise ConversionError(
                f"{path}: entry {quoted(name)}: expected the name of a tensor and the tensor, "
                f"found {found}; where a training checkpoint keeps the weights in one of its "
                "entries, save that entry alone"
            )
    return content


def _tensor(
    path: Path, name: str, record: TensorRecord, extents: Mapping[str, Extent]
) -> SourceTensor:
    where = f"{path}: tensor {quoted(name)}"
    storage = extents.get(record.storage.key)
    if storage is None or storage.n_bytes != record.storage.n_bytes:
        found = "nothing" if storage is None else storage.n_bytes
        raise ConversionError(
            f"{where}: expected {record.storage.n_bytes} bytes in storage "
            f"{quoted(record.storage.key)}, found {found}"
        )
    dtype = DTYPES[record.dtype]
    shape, strides = record.shape, record.strides
    offset = storage.offset + record.offset * dtype.itemsize
    n_elements, contiguous = 1, True
    for n, stride in zip(shape[::-1], strides[::-1], strict=True):
        contiguous &= stride == n_elements or n == 1
        n_elements *= n
    if contiguous or n_elements == 0:
        extent = Extent(offset, n_elements * dtype.itemsize)
        return StoredArray(where, path, dtype, shape, [extent])
    if len(shape) == 2 and 1 in strides and 0 not in strides:
        return StridedArray(where, path, dtype, (shape[0], shape[1]), strides, offset)
    raise ConversionError(
        f"{where}: shape {shape} with strides {strides} has neither its rows nor its columns in "
        "one piece; save it again as tensor.contiguous()"
    )


def _open_zip(path: Path, file: BinaryIO) -> _Content:
    members = zip_members(path, file)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConversionError(
            f"{path}: expected a zip archive of torch.save with one data.pkl, "
            f"found {len(pickles)} in {len(members)} members"
        )
    prefix = pickles[0][: -len("data.pkl")]
    if f"{prefix}constants.pkl" in members:
        raise ConversionError(
            f"{path}: expected a state dict, found a TorchScript program; save the weights with "
            "torch.save(model.state_dict(), ...)"
        )

    def content(name: str) -> bytes:
        extent = member_extent(path, file, members[name])
        if extent.n_bytes > _MAX_PICKLE:
            raise ConversionError(
                f"{path}: member {quoted(name)}: {extent.n_bytes} bytes, expected no more than "
                f"{_MAX_PICKLE}"
            )
        file.seek(extent.offset)
        raw = file.read(extent.n_bytes)
        check_crc32(path, members[name], zlib.crc32(raw))
        return raw

    order = f"{prefix}byteorder"
    if order in members and content(order) != b"little":
        raise ConversionError(f"{path}: byteorder {quoted(content(order))}: expected little")
    extents: dict[str, Extent] = {}
    for name in members:
        if name.startswith(f"{prefix}data/"):
            extents[name[len(prefix) + len("data/") :]] = member_extent(path, file, members[name])

    found = unpickle(str(path), io.BytesIO(content(pickles[0])))
    return _state_dict(path, found), extents


def _open_legacy(path: Path, file: BinaryIO) -> _Content:
    """Read a stream of pickles, of which the last lists the storages behind it."""
    file.seek(0)
    pickles = io.BytesIO(file.read(_MAX_PICKLE))
    # Before them the number that the file starts with, and the version, of which there is one.
    _, _, system, content, keys = (unpickle(str(path), pickles) for _ in range(5))
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise ConversionError(f"{path}: expected little-endian numbers")
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ConversionError(f"{path}: expected a list of storages, found {type(keys).__name__}")
    records = _state_dict(path, content)
    storages = {r.storage.key: r.storage for r in records.values()}
    extents: dict[str, Extent] = {}
    offset, end = pickles.tell(), os.fstat(file.fileno()).st_size
    for key in keys:
        where = f"{path}: storage {quoted(key)}"
        storage = storages.get(key)
        if storage is None or key in extents:
            raise ConversionError(f"{where} is listed twice, or belongs to no tensor")
        # The count of its elements, and then the elements.
        file.seek(offset)
        count = int.from_bytes(file.read(8), "little")
        offset += 8
        if count * DTYPES[storage.dtype].itemsize != storage.n_bytes:
            raise ConversionError(
                f"{where}: expected {storage.n_bytes} bytes, found {count} numbers of "
                f"{storage.dtype}"
            )
        if offset + storage.n_bytes > end:
            raise ConversionError(
                f"{where}: expected {storage.n_bytes} bytes, the file has {max(end - offset, 0)}"
            )
        extents[key] = Extent(offset, storage.n_bytes)
        offset += storage.n_bytes
    return records, extents
