"""The bytes of a `.qlm` file before its data: prelude, header text, zeros.

Owns `docs/format.md` §1: magic, version, sizes and the header's checksum, and
what to say of a file that is something else. Knows no JSON and opens no file.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from qllama.errors import (
    BadHeaderError,
    BadMagicError,
    BadVersionError,
    ChecksumError,
    TruncatedError,
)
from qllama.format.spec import (
    DATA_ALIGNMENT,
    MAGIC,
    MAX_HEADER_REGION,
    PRELUDE_SIZE,
    VERSION,
)

__all__ = ["Prelude", "check_region", "decode_prelude", "encode_region"]

_PRELUDE = struct.Struct("<8sIIQQQ24s")
_CHECKSUM_AT = slice(12, 16)

_FOREIGN = (
    (rb"GGUF", "a GGUF file"),
    (rb"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint"),
    (rb"\x80[\x02-\x05]", "a Python pickle, perhaps a PyTorch checkpoint"),
    (rb".{5}\x00{3}\{", "a safetensors file"),
)
"""How files that people mistake for a `.qlm` start."""


@dataclass(frozen=True, slots=True)
class Prelude:
    """The fixed 64 bytes a `.qlm` file starts with (`docs/format.md` §1)."""

    checksum: int
    header_n_bytes: int
    data_offset: int
    file_size: int


def encode_region(header: bytes, data_offset: int, file_size: int) -> bytes:
    """Everything before the data: prelude, header, zeros up to `data_offset`.

    Parameters
    ----------
    header : bytes
        The JSON, at most `data_offset - 64` bytes.
    data_offset, file_size : int
        As they will stand in the prelude.
    """
    assert len(header) <= data_offset - PRELUDE_SIZE
    prelude = _PRELUDE.pack(MAGIC, VERSION, 0, len(header), data_offset, file_size, bytes(24))
    region = bytearray((prelude + header).ljust(data_offset, b"\0"))
    region[_CHECKSUM_AT] = zlib.crc32(region).to_bytes(4, "little")
    return bytes(region)


def decode_prelude(data: bytes) -> Prelude:
    """Check the first bytes of a file and return their fields.

    Parameters
    ----------
    data : bytes
        The first 64 bytes of the file, or all of it where it is shorter.

    Raises
    ------
    BadMagicError, TruncatedError, BadVersionError, BadHeaderError
        When the prelude is not one of `docs/format.md` §1.
    """
    if not data.startswith(MAGIC[: len(data)]):
        raise BadMagicError(_describe(data))
    if len(data) < PRELUDE_SIZE:
        raise TruncatedError(
            f"truncated: expected at least {PRELUDE_SIZE} bytes, found {len(data)}; "
            "fetch or convert the model again"
        )
    _, version, checksum, n_bytes, data_offset, file_size, reserved = _PRELUDE.unpack(data)
    if version != VERSION:
        raise BadVersionError(
            f"format version: expected {VERSION}, found {version}; "
            "convert the model again, or use a newer qllama"
        )
    if data_offset % DATA_ALIGNMENT or not PRELUDE_SIZE <= data_offset <= MAX_HEADER_REGION:
        raise BadHeaderError(
            f"data offset: expected a multiple of {DATA_ALIGNMENT} "
            f"up to {MAX_HEADER_REGION}, found {data_offset}"
        )
    if n_bytes > data_offset - PRELUDE_SIZE:
        raise BadHeaderError(
            f"header length: expected at most {data_offset - PRELUDE_SIZE}, found {n_bytes}"
        )
    if file_size <= data_offset:
        raise BadHeaderError(
            f"file size: expected more than the data offset {data_offset}, found {file_size}"
        )
    if any(reserved):
        raise BadHeaderError(f"reserved bytes of the prelude: expected zeros, found {reserved!r}")
    return Prelude(checksum, n_bytes, data_offset, file_size)


def check_region(prelude: Prelude, region: bytes, found_size: int) -> bytes:
    """Check everything before the data and return the header's JSON.

    Parameters
    ----------
    prelude : Prelude
        Of the same file.
    region : bytes
        The file up to `prelude.data_offset`, or all of it where it is shorter.
    found_size : int
        The file's real size in bytes.

    Raises
    ------
    TruncatedError, ChecksumError, BadHeaderError
        When bytes are missing, damaged or left over.
    """
    complete = len(region) == prelude.data_offset
    # The checksum first: it tells a damaged size field from a file cut short.
    if complete:
        found = zlib.crc32(region[_CHECKSUM_AT.stop :], zlib.crc32(region[:12] + bytes(4)))
        if found != prelude.checksum:
            raise ChecksumError(
                f"header checksum: expected {prelude.checksum:08x}, found {found:08x}; "
                "the file is damaged: fetch or convert the model again"
            )
    if found_size < prelude.file_size or not complete:
        raise TruncatedError(
            f"truncated: expected {prelude.file_size} bytes, found {found_size}; "
            "fetch or convert the model again"
        )
    if found_size > prelude.file_size:
        raise BadHeaderError(
            f"file size: expected {prelude.file_size} bytes, found {found_size}; "
            "something was appended: fetch or convert the model again"
        )
    end = PRELUDE_SIZE + prelude.header_n_bytes
    if region.count(0, end) != len(region) - end:
        raise BadHeaderError(
            f"bytes {end} to {prelude.data_offset}: expected zeros after the header"
        )
    return region[PRELUDE_SIZE:end]


def _describe(data: bytes) -> str:
    """Say what a file that is not a `.qlm` seems to be, and what to do."""
    for pattern, what in _FOREIGN:
        if re.match(pattern, data, re.DOTALL):
            return f"this is {what}, not a .qlm; run `qllama convert FILE`"
    if data.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the model itself; run `git lfs pull`"
    return (
        f"not a .qlm file: expected it to start with {MAGIC!r}, found {data[:8]!r}; "
        "run `qllama convert` on a checkpoint to make one"
    )
