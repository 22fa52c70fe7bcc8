"""Memory as the operating system gives it: pages that are there once they are touched.

Owns what of this differs between systems. Where one lacks a kind of advice, the
memory works without it, only slower. `docs/memory.md` tells what qllama keeps where.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from qllama.control_groups import own_control_groups, read_text

__all__ = ["available_bytes", "populate", "zeroed_pages"]

_MADV_WILLNEED = 3  # the same number on Linux, macOS and the BSDs
_MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it
_PIECE = 32 * 2**20
_READ = 2**20


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
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel that was built without it
            pages.madvise(advice)
    return np.frombuffer(pages, np.uint8)


def available_bytes() -> int:
    """Memory that can be filled before the machine, or a control group, runs short of it.

    What files are cached in counts: it is given up where it is needed.
    """
    groups = [_available_in(*group) for group in own_control_groups("memory")]
    return min([int(psutil.virtual_memory().available), *(n for n in groups if n is not None)])


def _available_in(group: Path, is_version_2: bool) -> int | None:
    """Bytes that a control group leaves; None without a limit."""
    names = ("max", "current") if is_version_2 else ("limit_in_bytes", "usage_in_bytes")
    limit, used = (read_text(group / f"memory.{name}") for name in names)
    if limit is None or used is None or limit == "max":
        return None
    cached = "file " if is_version_2 else "total_cache "
    lines = (read_text(group / "memory.stat") or "").splitlines()
    return (
        int(limit) - int(used) + sum(int(x[len(cached) :]) for x in lines if x.startswith(cached))
    )


def populate(memory: npt.NDArray[np.uint8], is_wanted: Callable[[], bool]) -> None:
    """Bring the pages of a mapped file into memory, and into this process' page table.

    Reads at the disk's speed what is not in the system's cache; what is, costs 5 ms
    for 100 MiB. It never fails: what it cannot bring comes when it is touched.

    Parameters
    ----------
    memory : uint8, (n_bytes,)
        A part of a mapping.
    is_wanted : callable
        Asked now and then; when it says False, the rest is left.
    """
    if sys.platform == "win32":
        return
    # Unlike mmap.madvise, a foreign call lets other Python threads run while it waits.
    system = ctypes.CDLL(None)
    system.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    system.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    first = memory.ctypes.data
    end = first + memory.size
    first -= first % mmap.PAGESIZE
    _read_ahead(system, first, min(first + _PIECE, end))
    for start in range(first, end, _PIECE):
        if not is_wanted():
            return
        stop = min(start + _PIECE, end)
        _read_ahead(system, stop, min(stop + _PIECE, end))
        if sys.platform == "linux":
            system.madvise(start, stop - start, _MADV_POPULATE_READ)


def _read_ahead(system: ctypes.CDLL, first: int, end: int) -> None:
    """Start reading a piece from disk, unless it is in the system's cache."""
    resident = np.zeros(-(-(end - first) // mmap.PAGESIZE), np.uint8)
    system.mincore(first, end - first, resident.ctypes.data)
    if (resident & 1).all():
        return
    # The system reads no more than a disk's largest request for one piece of advice.
    for start in range(first, end, _READ):
        system.madvise(start, min(_READ, end - start), _MADV_WILLNEED)
