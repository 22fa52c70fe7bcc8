"""What every place that models come from hands over.

Owns the record and the type of the progress callback. Knows no place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Checkpoint", "OnProgress"]

OnProgress = Callable[[str, int, int], None]
"""Called with the stage ("downloading NAME"), the bytes done and the bytes in all (0: unknown)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine, ready to be converted.

    Parameters
    ----------
    origin : str or None
        Where it was fetched from, kept as provenance.
    sha256 : str or None
        Lower-case hex, where it has been computed and found right.
    """

    path: Path
    origin: str | None = None
    sha256: str | None = None
