"""Files that are read whole, of a size that no slip of a path makes a burden."""

from __future__ import annotations

from pathlib import Path

from qllama.errors import ConversionError

__all__ = ["read_small"]

# Many times the largest tokenizer.json in use.
_MAX_BYTES = 256 << 20


def read_small(path: Path) -> bytes:
    """Read a file that holds no weights: a config, an index, a tokenizer.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ConversionError
        When it is too large for that.
    OSError
        When it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ConversionError(
            f"{path}: expected a config or tokenizer of at most {_MAX_BYTES >> 20} MiB, found a "
            "larger file; was another one meant?"
        )
    return data
