"""How answers in the making are ended from outside: cancelled, or out of time.

Owns the flag and the deadline. Who computes calls `check` as often as he can.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager

from qllama.generation.results import FinishReason

__all__ = ["EndedEarly", "Interrupt"]


class EndedEarly(Exception):
    """Unwinds an evaluation.

    Parameters
    ----------
    reason : str
        `cancelled` or `timeout`.
    """

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason)
        self.reason: FinishReason = reason


class Interrupt:
    """May end one call, from any thread.

    Parameters
    ----------
    timeout : float or None
        Seconds from now; None is no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._cancelled = False

    def cancel(self) -> None:
        """Have the next `check` raise."""
        self._cancelled = True

    def check(self) -> None:
        """Raise `EndedEarly` where the call is to end."""
        if self._cancelled:
            raise EndedEarly("cancelled")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise EndedEarly("timeout")

    def turn(self, lock: threading.Lock) -> AbstractContextManager[object]:
        """Return what holds `lock`; past the deadline it ends without, and `check` raises."""
        return lock if self._deadline is None else _Turn(lock, self._deadline)


class _Turn(AbstractContextManager[None]):
    def __init__(self, lock: threading.Lock, deadline: float) -> None:
        self._lock = lock
        self._deadline = deadline
        self._holds = False

    def __enter__(self) -> None:
        left = max(0.0, self._deadline - time.monotonic())
        self._holds = self._lock.acquire(timeout=min(left, threading.TIMEOUT_MAX))

    def __exit__(self, *error: object) -> None:
        if self._holds:
            self._lock.release()
