"""SHA-256 of a checkpoint's files, computed and other checksums compared during conversion.

Owns the thread that reads them a second time. It follows the conversion through the
files, so that what it reads is mostly still in the system's cache.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from converter.page_cache import note_read
from converter.published import published_digest
from converter.sources.mindspore_file import ChecksumCheck
from converter.sources.zip_archive import MemberChecks
from qllama.errors import ConversionError

__all__ = ["SourceHashes"]

# Still in a core's own cache when it is hashed.
_CHUNK = 1 << 20
# How far the hashing may run ahead: part of a second of conversion, and of its cache.
_AHEAD = 1 << 26


class SourceHashes:
    """Context manager that hashes files on a thread of its own.

    Parameters
    ----------
    files : sequence of Path
    known : mapping
        Hashes that need not be computed.
    """

    def __init__(self, files: Sequence[Path], known: Mapping[Path, str]) -> None:
        self._hashes = dict(known)
        self._files = [(f, f.stat().st_size) for f in files if f not in known]
        self._total = sum(size for _, size in self._files)
        self._done = 0
        self._allowed = 0.0
        self._stopped = False
        self._error: OSError | ConversionError | None = None
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> SourceHashes:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify_all()
        self._thread.join()

    def follow(self, share: float) -> None:
        """Allow hashing up to about `share` (0 to 1) of the bytes."""
        with self._moved:
            self._allowed = share * self._total + _AHEAD
            self._moved.notify_all()

    def finish(self, on_progress: Callable[[int, int], None]) -> Mapping[Path, str]:
        """Wait for the end.

        Parameters
        ----------
        on_progress : callable
            Told of bytes hashed, of how many.

        Returns
        -------
        mapping
            Lower-case hex SHA-256 by file.

        Raises
        ------
        ConversionError
            When a file cannot be read, is damaged, or is not the one that was published.
        """
        self.follow(1.0)
        while self._thread.is_alive():
            if self._total:
                on_progress(self._done, self._total)
            self._thread.join(0.1)
        if isinstance(self._error, OSError):
            reason = self._error.strerror or self._error
            raise ConversionError(f"{self._error.filename}: cannot be read: {reason}")
        if self._error is not None:
            raise self._error
        if self._total:
            on_progress(self._total, self._total)
        return self._hashes

    def _work(self) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        try:
            for path, _ in self._files:
                published = published_digest(path)
                digests = {"sha256": hashlib.sha256()}
                if published is not None and published.algorithm not in digests:
                    digests[published.algorithm] = hashlib.new(
                        published.algorithm, usedforsecurity=False
                    )
                takers: list[Callable[[memoryview], None]] = [
                    MemberChecks(path).update,
                    ChecksumCheck(path).update,
                    *(digest.update for digest in digests.values()),
                ]
                with path.open("rb", buffering=0) as file:
                    while self._may_go_on() and (n := file.readinto(buffer)):
                        note_read(path, file.fileno(), file.tell() - n, file.tell())
                        for take in takers:
                            take(buffer[:n])
                        self._done += n
                self._hashes[path] = digests["sha256"].hexdigest()
                if published is None:
                    continue
                found = digests[published.algorithm].hexdigest()
                if found != published.digest:
                    raise ConversionError(
                        f"{path}: expected {published.algorithm} {published.digest} as "
                        f"{published.where} has it, found {found}; the file is damaged: "
                        "fetch it again"
                    )
        except ConversionError as error:
            self._error = error
        except OSError as error:
            error.filename = error.filename or str(path)
            self._error = error

    def _may_go_on(self) -> bool:
        with self._moved:
            self._moved.wait_for(lambda: self._stopped or self._done <= self._allowed)
            return not self._stopped
