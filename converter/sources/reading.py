"""Reading pieces of a checkpoint's files into memory, with one wording for what goes wrong.

Not mapped: a file that shrinks meanwhile is then an error rather than a SIGBUS, and the
process holds no more of it than it works on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from converter.page_cache import note_read
from qllama.errors import ConversionError

__all__ = ["fill"]


def fill(where: str, path: Path, pieces: Iterable[tuple[int, memoryview]]) -> None:
    """Fill buffers from a file.

    Parameters
    ----------
    where : str
        How a message names what is read.
    path : Path
    pieces : iterable of (int, memoryview)
        Byte of the file where each begins, and the bytes to fill.

    Raises
    ------
    ConversionError
        When the file cannot be read, or ends before all are full.
    """
    try:
        with path.open("rb", buffering=0) as file:
            for offset, wanted in pieces:
                stop = offset + len(wanted)
                file.seek(offset)
                while wanted:
                    got = file.readinto(wanted)
                    if not got:
                        raise ConversionError(f"{where}: the file became shorter while it was read")
                    wanted = wanted[got:]
                note_read(path, file.fileno(), offset, stop)
    except OSError as e:
        raise ConversionError(f"{where}: cannot be read: {e.strerror or e}") from e
