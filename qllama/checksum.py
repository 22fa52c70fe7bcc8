"""The checksum that files from elsewhere are known by.

Owns the reading of a file for it. Knows no file format and no place.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from qllama.progress import OnProgress

__all__ = ["file_sha256"]

_CHUNK = 1 << 22


def file_sha256(path: Path, on_progress: OnProgress) -> str:
    """Hash a file.

    Parameters
    ----------
    path : Path
        The file.
    on_progress : callable
        Told of bytes.

    Returns
    -------
    str
        Lower-case hex SHA-256.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_progress(f"checking {path.name}", done, size)
    return digest.hexdigest()
