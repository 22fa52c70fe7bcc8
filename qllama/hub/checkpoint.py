"""What every place that models come from hands over.

Owns the record. Knows no place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Checkpoint"]


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
