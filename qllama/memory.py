"""Memory as the operating system gives it: pages that are there once they are touched.

Owns what of this differs between systems. Where one lacks a kind of advice, the
memory works without it.
"""

from __future__ import annotations

import contextlib
import mmap
import sys

import numpy as np
import numpy.typing as npt

__all__ = ["zeroed_pages"]


def zeroed_pages(n_bytes: int, *, huge: bool = False) -> npt.NDArray[np.uint8]:
    """Return zeroed memory whose pages are committed one by one, as they are touched.

    Parameters
    ----------
    n_bytes : int
        At least 1.
    huge : bool
        Commit pages of 2 MiB where the system has them: for memory that will all be
        used. Without it they are kept away (numpy asks for them in large arrays): a
        cache for a long context that holds a few tokens would commit gigabytes.

    Returns
    -------
    uint8, (n_bytes,)
        Starts on a page; freed with its last view.

    Raises
    ------
    MemoryError
        When the system does not grant so much.
    """
    try:
        if sys.platform == "win32":
            pages = mmap.mmap(-1, n_bytes)
        else:
            pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{n_bytes} bytes") from error
    _advise(pages, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE")
    return np.frombuffer(pages, np.uint8)


def _advise(pages: mmap.mmap, advice: str) -> None:
    """Give advice by the name that Python has for it; unknown, it is left out."""
    option = getattr(mmap, advice, None)
    if option is not None:
        with contextlib.suppress(OSError):  # a kernel that was built without it
            pages.madvise(option)
