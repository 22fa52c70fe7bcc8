"""The system's cache of files, of which a conversion leaves nothing that it needs no more.

Owns the count of what is still to be read of the files that are being converted. Each byte
is read twice, for the weights and for the file's hash, in no certain order; what was read
twice is dropped, and its memory serves what is read next. Memory that is new costs more than
to copy from it, on virtual machines ten times as much: their hosts give it page by page.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["dropped_when_read", "note_read"]

_PIECE = 1 << 22
# Smaller files are no matter, and are left alone: 64 MiB.
_FEWEST_PIECES = 16

_lock = threading.Lock()
# The cache is one for the whole process, and so is this: the bytes of each piece of a file
# that are still to be read.
_to_read: dict[Path, list[int]] = {}


@contextmanager
def dropped_when_read(files: Mapping[Path, int]) -> Iterator[None]:
    """Drop pieces of files from the cache once they have been read, until the block ends.

    Parameters
    ----------
    files : mapping
        How many times each will be read. What is read more often is read from the disk.
    """
    for path, times in files.items():
        n_pieces, rest = divmod(path.stat().st_size, _PIECE)
        if n_pieces < _FEWEST_PIECES:
            continue
        _to_read[path] = [_PIECE * times] * n_pieces + [rest * times]
    try:
        yield
    finally:
        for path in files:
            _to_read.pop(path, None)


def note_read(path: Path, descriptor: int, start: int, stop: int) -> None:
    """Say that bytes `start` to `stop` - 1 of a file have been read.

    Parameters
    ----------
    path : Path
    descriptor : int
        Of the open file.
    start, stop : int
    """
    to_read = _to_read.get(path)
    if to_read is None:
        return
    for piece in range(start // _PIECE, min((stop - 1) // _PIECE + 1, len(to_read))):
        begin = piece * _PIECE
        with _lock:
            before = to_read[piece]
            left = before - min(stop, begin + _PIECE) + max(start, begin)
            to_read[piece] = left
        if left <= 0 < before and sys.platform == "linux":
            os.posix_fadvise(descriptor, begin, _PIECE, os.POSIX_FADV_DONTNEED)
