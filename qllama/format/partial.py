"""A file that appears under its name only when it is whole.

Owns the temporary file beside the target, its lock, the rename, and the wording
of what the operating system refuses (`docs/format.md` §4). Knows nothing of `.qlm`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qllama.errors import ConversionError

if sys.platform != "win32":
    import fcntl

__all__ = ["PartialFile", "check_target"]

# What the disk may be behind: a fraction of a second of its time, and many files' all.
_SYNC_BYTES = 1 << 26


class PartialFile:
    """A new file beside `target` that `commit` renames to it.

    The disk takes what was written while more is made, so that `commit` need not wait for all.

    Parameters
    ----------
    target : Path
        Where the whole file shall appear; a regular file there is replaced.
    n_bytes : int
        What the whole file will take; refused at once where that is not free.
    clean : bool
        Whether to remove what killed writers of the same target left.

    Attributes
    ----------
    path : Path
        The file's name for the time being.

    Raises
    ------
    ConversionError
        Here and in every method, when the operating system refuses; names the
        target, and the bytes needed and free where space is short.
    """

    def __init__(self, target: Path, n_bytes: int, *, clean: bool = True) -> None:
        self._target = target
        self._n_bytes = n_bytes
        self._n_unsynced = 0
        self._pool = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None
        with self._explained():
            if target.exists() and not target.is_file():
                raise ConversionError(
                    f"{target}: cannot be written: it exists and is not a regular file; "
                    "choose another name"
                )
            if clean:
                _remove_leftovers(target)
            free = shutil.disk_usage(target.parent).free
            if free < n_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.path, self._file = _create(target)

    def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        """Append `data`, or write it from byte `at` on."""
        with self._explained():
            if at is not None:
                self._file.seek(at)
            self._file.write(data)
            self._n_unsynced += len(data)
            if self._n_unsynced >= _SYNC_BYTES:
                self._sync_beside()

    def flush(self) -> None:
        """Let who opens `path` see all that was written."""
        with self._explained():
            self._file.flush()

    def commit(self) -> None:
        """Make the file durable and give it the target's name."""
        with self._explained():
            self._file.flush()
            if self._syncing is not None:
                # An error of the disk is told to only one of those who ask.
                self._syncing.result()
            os.fsync(self._file.fileno())
            if sys.platform == "win32":  # An open file cannot be renamed there.
                self._file.close()
            # Elsewhere the lock is held till the rename, so that nobody takes the
            # file for a leftover.
            self.path.replace(self._target)
            self._file.close()
            _sync_directory(self._target.parent)

    def discard(self) -> None:
        """Remove the file; nothing happens when it is committed or gone."""
        self._pool.shutdown()
        # Buffered data cannot be flushed when the disk is full.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()

    def _sync_beside(self) -> None:
        """Have a thread wait for the disk, unless one is still waiting."""
        if self._syncing is not None:
            if not self._syncing.done():
                return
            self._syncing.result()
        self._syncing = self._pool.submit(os.fsync, self._file.fileno())
        self._n_unsynced = 0

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConversionError(
                f"{self._target}: cannot be written: {self._reason(error)}"
            ) from error

    def _reason(self, error: OSError) -> str:
        """Say what the operating system refused and what to do."""
        directory = self._target.parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            with suppress(OSError):
                free = shutil.disk_usage(directory).free
                return (
                    f"{error.strerror}: it needs {self._n_bytes} bytes, {free} are free "
                    f"in {directory}; free some, raise the limit or choose another directory"
                )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{error.strerror}: {directory}; choose a directory you may write to"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"{error.strerror}: {directory}; make the directory first or choose another"
        return f"{error.strerror or error}"


def check_target(target: Path, n_bytes: int) -> None:
    """Refuse what `PartialFile` would refuse; afterwards all is as it was.

    Parameters
    ----------
    target : Path
    n_bytes : int
        What the whole file would take.

    Raises
    ------
    ConversionError
        As `PartialFile`.
    """
    PartialFile(target, n_bytes, clean=False).discard()


def _create(target: Path) -> tuple[Path, BinaryIO]:
    """Create and lock a temporary file that no other process has."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        _lock(file, wait=True)
        # Another writer may have taken it for a leftover before it was locked.
        if path.exists():
            return path, file
        file.close()


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of the same target whose writer was killed."""
    ours = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.partial")
    for path in target.parent.iterdir():
        if not ours.fullmatch(path.name):
            continue
        # Not ours to touch or already gone: somebody else's business.
        with suppress(OSError):
            if sys.platform == "win32":  # It refuses while the writer has it open.
                path.unlink()
                continue
            with path.open("r+b") as file:
                if _lock(file, wait=False):
                    path.unlink()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Lock `file` exclusively; False when another holds it or locks do not work here."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sync_directory(directory: Path) -> None:
    """Make a rename durable, where directories can be synced."""
    if sys.platform == "win32":
        return
    # Some network file systems refuse it; the file itself is whole and in place.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
