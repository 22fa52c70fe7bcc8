"""How the data of a `.qlm` file becomes memory: mapped, or read.

Knows no tensor: the data section is one piece.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from io import BufferedReader

import numpy as np
import numpy.typing as npt

from qllama.errors import OutOfMemoryError, TruncatedError
from qllama.format.prelude import Prelude
from qllama.memory import available_bytes, zeroed_pages

__all__ = ["map_data", "read_data"]

_CHUNK = 16 * 1024 * 1024


def map_data(file: BufferedReader, prelude: Prelude) -> npt.NDArray[np.uint8]:
    """Return the data section, mapped.

    Parameters
    ----------
    file : binary file
        May be closed afterwards.
    prelude : Prelude
        Checked against the file's size.

    Returns
    -------
    uint8, (n_bytes,), read-only
    """
    mapping = mmap.mmap(file.fileno(), prelude.file_size, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, np.uint8, offset=prelude.data_offset)


def read_data(
    file: BufferedReader, prelude: Prelude, on_progress: Callable[[int, int], None] | None
) -> npt.NDArray[np.uint8]:
    """Return the data section, read into memory of its own, in huge pages.

    Parameters
    ----------
    file : binary file
    prelude : Prelude
    on_progress : callable or None
        Called with the bytes read so far and their total.

    Returns
    -------
    uint8, (n_bytes,), read-only

    Raises
    ------
    OutOfMemoryError
        When it does not fit the memory that is free.
    TruncatedError
        When the file has become shorter.
    """
    n_bytes = prelude.file_size - prelude.data_offset
    available = available_bytes()
    try:
        # Granted is not there: a system that runs short kills somebody, later.
        if n_bytes > available:
            raise MemoryError
        data = zeroed_pages(n_bytes, huge=True)
    except MemoryError:
        raise OutOfMemoryError(
            f"reading the weights takes {n_bytes / 2**20:.0f} MiB, {available / 2**20:.0f} MiB are "
            "free; map the file instead: without --no-mmap (use_mmap=True)"
        ) from None
    file.seek(prelude.data_offset)
    for start in range(0, n_bytes, _CHUNK):
        piece = data[start : start + _CHUNK]
        if file.readinto(piece.data) != piece.size:
            raise TruncatedError("the file became shorter while it was read")
        if on_progress is not None:
            on_progress(start + piece.size, n_bytes)
    data.flags.writeable = False
    return data
