"""The container of MindSpore's `.ckpt` files, scanned without reading a tensor.

Owns the wire format. A file is one protobuf message after another (`checkpoint.proto`):

    Checkpoint      { repeated Value value = 1 }
    Value           { string tag = 1; oneof { TensorProto tensor = 2; maptensor = 3 } }
    TensorProto     { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

MindSpore cuts a tensor of more than 512 MiB in slices: a message each, in order, all with
the same tag and the dims of the whole. Knows no model.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from converter.sources.stored import Extent
from converter.wording import quoted
from qllama.errors import ConversionError

__all__ = ["CheckpointFile", "ChecksumCheck", "Entry", "scan"]

_CRC_MARK = b"crc_num"
_CRC_TRAILER = len(_CRC_MARK) + 10
# The three ciphers' marks, 0x7F3A5ED8 to 0x7F3A5EDA, little-endian.
_CIPHERS = tuple(bytes([first, 0x5E, 0x3A, 0x7F]) for first in (0xD8, 0xD9, 0xDA))
_FOREIGN = {
    b"PK\x03\x04": "a PyTorch (zip) file; try --from pytorch",
    b"\x80": "a Python pickle; qllama reads PyTorch's zip files",
}
_VARINT, _LENGTH_DELIMITED = 0, 2
_MAX_TEXT = 1024
_MAX_DIMS = 8
_WINDOW = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter of a checkpoint.

    Parameters
    ----------
    tensor_type : str
        MindSpore's name, `BFloat16`; `str` and `random_op` are no tensors.
    dims : tuple of int
        Of the whole tensor; () of a scalar.
    extents : tuple of Extent
        Its slices, in order.
    """

    tag: str
    tensor_type: str
    dims: tuple[int, ...]
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A scanned `.ckpt` file.

    Parameters
    ----------
    entries : dict
        Tag to entry, in the file's order.
    """

    path: Path
    entries: dict[str, Entry]


def scan(path: Path) -> CheckpointFile:
    """Find the parameters of the `.ckpt` file at `path`; reads a few bytes of each.

    Raises
    ------
    ConversionError
        When it cannot be read, is encrypted, is another kind of file, or is truncated or
        malformed; one line that says where.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return _Scanner(path, file).scan()
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e


class ChecksumCheck:
    """Compares a file's checksum, while the file is read from its beginning.

    Parameters
    ----------
    path : Path
        Any file; one that was not saved with `crc_check` has nothing to compare.

    Attributes
    ----------
    crc : int or None
        CRC-32 from the trailer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - _CRC_TRAILER)
            file.seek(start)
            self.crc = _crc_of_trailer(file.read(_CRC_TRAILER))
        self._left = start if self.crc is not None else 0
        self._found = 0

    def update(self, chunk: memoryview) -> None:
        """Take the file's next bytes.

        Parameters
        ----------
        chunk : memoryview of bytes

        Raises
        ------
        ConversionError
            When the contents end here and have another checksum.
        """
        if not self._left:
            return
        chunk = chunk[: self._left]
        self._found = zlib.crc32(chunk, self._found)
        self._left -= len(chunk)
        if not self._left and self._found != self.crc:
            raise ConversionError(
                f"{self._path}: damaged: its trailer has the CRC-32 {self.crc:#010x}, its "
                f"contents have {self._found:#010x}; copy it again"
            )


def _crc_of_trailer(trailer: bytes) -> int | None:
    """The checksum in a file's last 17 bytes, if it has one."""
    if len(trailer) < _CRC_TRAILER or not trailer.startswith(_CRC_MARK):
        return None
    return int.from_bytes(trailer[len(_CRC_MARK) :], "big")


class _Scanner:
    """Walks over the messages of an open file; contents are skipped by their lengths."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._window = b""
        self._window_start = 0

    def scan(self) -> CheckpointFile:
        self._refuse_foreign()
        end = self._size
        start = max(0, end - _CRC_TRAILER)
        if _crc_of_trailer(self._bytes(start, end - start)) is not None:
            end = start
        entries: dict[str, Entry] = {}
        previous = ""
        for number, value in self._fields(0, end):
            if number != 1 or isinstance(value, int):
                raise self._malformed(f"field {number} among the values")
            entry = self._value(value)
            if entry.tag not in entries:
                entries[entry.tag] = entry
            elif entry.tag == previous:
                entries[entry.tag] = self._joined(entries[entry.tag], entry)
            else:
                raise self._malformed(
                    f"tensor {quoted(entry.tag)} is there again after others, which slices "
                    "of one tensor never are"
                )
            previous = entry.tag
        if not entries:
            raise ConversionError(f"{self._path}: no MindSpore checkpoint: it holds no parameters")
        return CheckpointFile(self._path, entries)

    def _refuse_foreign(self) -> None:
        start = self._bytes(0, min(4, self._size))
        if start in _CIPHERS:
            raise ConversionError(
                f"{self._path}: an encrypted checkpoint; decrypt it with MindSpore "
                "(load_checkpoint with dec_key, then save_checkpoint)"
            )
        for magic, what in _FOREIGN.items():
            if start.startswith(magic):
                raise ConversionError(f"{self._path}: no MindSpore checkpoint but {what}")

    def _joined(self, whole: Entry, part: Entry) -> Entry:
        if (whole.tensor_type, whole.dims) != (part.tensor_type, part.dims):
            raise self._malformed(
                f"slices of tensor {quoted(whole.tag)} disagree: {whole.tensor_type} "
                f"{list(whole.dims)} and {part.tensor_type} {list(part.dims)}"
            )
        return Entry(whole.tag, whole.tensor_type, whole.dims, whole.extents + part.extents)

    def _value(self, message: Extent) -> Entry:
        tag, tensor = "", None
        for number, value in self._fields(message.offset, message.offset + message.n_bytes):
            if number == 3:
                raise ConversionError(
                    f"{self._path}: {quoted(tag)} is a MapParameter (a table of embeddings), "
                    "which no Llama has"
                )
            if isinstance(value, int) or number not in (1, 2):
                raise self._malformed(f"field {number} in the value at byte {message.offset}")
            if number == 1:
                tag = self._text(value, "a tag")
            else:
                tensor = value
        if not tag or tensor is None:
            raise self._malformed(f"the value at byte {message.offset} lacks its tag or tensor")
        return self._tensor(tag, tensor)

    def _tensor(self, tag: str, message: Extent) -> Entry:
        dims: list[int] = []
        tensor_type, content = "", None
        end = message.offset + message.n_bytes
        for number, value in self._fields(message.offset, end):
            if number == 1:
                dims += [value] if isinstance(value, int) else self._packed(value)
            elif number == 2 and isinstance(value, Extent):
                tensor_type = self._text(value, f"the type of {quoted(tag)}")
            elif number == 3 and isinstance(value, Extent):
                content = value
            else:
                raise self._malformed(f"field {number} in tensor {quoted(tag)}")
        if content is None or not tensor_type:
            raise self._malformed(f"tensor {quoted(tag)} lacks its type or content")
        if len(dims) > _MAX_DIMS or any(dim >> 63 for dim in dims):
            raise self._malformed(f"tensor {quoted(tag)} has the dims {quoted(dims)}")
        # Scalars had the dims [0] once, and have none now.
        shape = () if dims == [0] else tuple(dims)
        return Entry(tag, tensor_type, shape, (content,))

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int | Extent]]:
        """Yield the number of each field, and its value or where that lies."""
        while at < end:
            start = at
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, value
            elif wire == _LENGTH_DELIMITED:
                n_bytes, at = self._varint(at, end)
                if n_bytes > end - at:
                    raise ConversionError(
                        f"{self._path}: truncated, or no MindSpore checkpoint: a field of "
                        f"{n_bytes} bytes begins at byte {at}, and only {end - at} are left; "
                        "copy the file again"
                    )
                yield number, Extent(at, n_bytes)
                at += n_bytes
            else:
                raise self._malformed(f"wire type {wire} at byte {start}")

    def _packed(self, extent: Extent) -> list[int]:
        values: list[int] = []
        at, end = extent.offset, extent.offset + extent.n_bytes
        while at < end and len(values) <= _MAX_DIMS:
            value, at = self._varint(at, end)
            values.append(value)
        return values

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the number at byte `at`, and where it ends."""
        raw = self._bytes(at, min(10, end - at))
        value = 0
        for i, byte in enumerate(raw):
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value, at + i + 1
        raise self._malformed(f"a number at byte {at} does not end")

    def _text(self, extent: Extent, what: str) -> str:
        if extent.n_bytes > _MAX_TEXT:
            raise self._malformed(f"{what} has {extent.n_bytes} bytes, at most {_MAX_TEXT} may be")
        try:
            return self._bytes(extent.offset, extent.n_bytes).decode()
        except UnicodeDecodeError:
            raise self._malformed(f"{what} at byte {extent.offset} is not UTF-8") from None

    def _bytes(self, at: int, n_bytes: int) -> bytes:
        """Read bytes of the file, a window at a time: those of a message lie together."""
        skip = at - self._window_start
        if skip < 0 or skip + n_bytes > len(self._window):
            self._file.seek(at)
            self._window = self._file.read(max(n_bytes, _WINDOW))
            self._window_start, skip = at, 0
        return self._window[skip : skip + n_bytes]

    def _malformed(self, detail: str) -> ConversionError:
        return ConversionError(f"{self._path}: no MindSpore checkpoint, or a damaged one: {detail}")
