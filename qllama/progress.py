"""How work that takes long tells whoever waits for it how far it is.

Owns the type of that callback. Knows no work and shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["OnProgress", "silent"]

OnProgress = Callable[[str, int, int], None]
"""Called with the stage ("downloading NAME"), what is done of it, and its total (0: unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """Stand in for a caller that wants no progress.

    Parameters
    ----------
    stage : str
        What is being done.
    done, total : int
        How much of it, of how much.
    """
