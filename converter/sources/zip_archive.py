"""The zip archives that torch.save writes: where the bytes of members lie, and their CRC-32.

Owns members that are stored as they are, which is all that torch.save makes. Knows
nothing of what they hold.

Reference: APPNOTE.TXT of the zip format, 4.3.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import deque
from pathlib import Path
from typing import BinaryIO

from converter.sources.stored import Extent
from converter.wording import quoted
from qllama.errors import ConversionError

__all__ = ["ZIP_START", "MemberChecks", "check_crc32", "member_extent", "zip_members"]

ZIP_START = b"PK\x03\x04"
"""What an archive with members begins with."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and the extra field
_ENCRYPTED = 0x1


def zip_members(path: Path, file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """List an archive's members by name.

    Parameters
    ----------
    path : Path
        For messages.
    file : binary stream
        The archive.

    Raises
    ------
    ConversionError
        When its table of contents is damaged, or has a name twice.
    """
    try:
        listed = zipfile.ZipFile(file).infolist()
    # What zipfile raises for tables that point anywhere.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as e:
        raise ConversionError(
            f"{path}: begins as a zip archive, but its table of contents cannot be read ({e}); "
            "the file is incomplete, so fetch it again"
        ) from None
    members: dict[str, zipfile.ZipInfo] = {}
    for info in listed:
        if members.setdefault(info.filename, info) is not info:
            raise ConversionError(f"{path}: member {quoted(info.filename)} is there twice")
    return members


def member_extent(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> Extent:
    """Find a member's bytes; zipfile itself only hands out streams.

    Parameters
    ----------
    path, file
        As for `zip_members`.
    info : zipfile.ZipInfo
        One of its members.

    Raises
    ------
    ConversionError
        When they are compressed, encrypted, or not where the table says.
    """
    where = f"{path}: member {quoted(info.filename)}"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ConversionError(
            f"{where} is compressed, which torch.save never does; load and save the file again "
            "with PyTorch"
        )
    if info.flag_bits & _ENCRYPTED:
        raise ConversionError(f"{where} is encrypted")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size or not header.startswith(ZIP_START):
        raise ConversionError(f"{where}: the archive is damaged: its header is not where it says")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    found = os.fstat(file.fileno()).st_size - offset
    if found < info.file_size:
        raise ConversionError(f"{where}: expected {info.file_size} bytes, the file has {found}")
    return Extent(offset, info.file_size)


def check_crc32(path: Path, info: zipfile.ZipInfo, found: int) -> None:
    """Compare a member's CRC-32 with the one that the archive has for it.

    Parameters
    ----------
    path : Path
        The archive.
    info : zipfile.ZipInfo
        The member; `torch.serialization.set_crc32_options(False)` leaves zeros in all.
    found : int
        CRC-32 of its bytes.

    Raises
    ------
    ConversionError
        When they differ.
    """
    if info.CRC not in (0, found):
        raise ConversionError(
            f"{path}: member {quoted(info.filename)}: expected the CRC-32 {info.CRC:#010x}, "
            f"found {found:#010x}; the file is damaged: fetch it again"
        )


class MemberChecks:
    """Compares the CRC-32 of all stored members, while a file is read from its beginning.

    Parameters
    ----------
    path : Path
        Any file; one that is no archive has nothing to compare.

    Raises
    ------
    ConversionError
        When it begins as an archive and is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._crc32 = 0
        self._coming: deque[tuple[Extent, zipfile.ZipInfo]] = deque()
        with path.open("rb") as file:
            if file.read(len(ZIP_START)) != ZIP_START:
                return
            members = zip_members(path, file).values()
            stored = [i for i in members if i.compress_type == zipfile.ZIP_STORED]
            found = [(member_extent(path, file, info), info) for info in stored]
        self._coming.extend(sorted(found, key=lambda member: member[0].offset))

    def update(self, chunk: memoryview) -> None:
        """Take the file's next bytes.

        Parameters
        ----------
        chunk : memoryview of bytes

        Raises
        ------
        ConversionError
            When a member that ends here has another CRC-32; also where members overlap.
        """
        at = self._at
        self._at += len(chunk)
        while self._coming:
            extent, info = self._coming[0]
            begin = max(extent.offset - at, 0)
            end = max(extent.offset + extent.n_bytes - at, begin)
            self._crc32 = zlib.crc32(chunk[begin:end], self._crc32)
            if end > len(chunk):
                return
            check_crc32(self._path, info, self._crc32)
            self._coming.popleft()
            self._crc32 = 0
