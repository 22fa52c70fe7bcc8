"""The one thread that computes for coroutines: they queue without blocking their loops."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Worker"]


class Worker:
    """A thread that starts when it is first asked for."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._executor: Executor | None = None

    def executor(self) -> Executor:
        """Return what runs functions on it, one after the other."""
        from concurrent.futures import ThreadPoolExecutor

        with self._starting:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="qllama")
            return self._executor

    def close(self) -> None:
        """Let go of the thread; asking again starts another."""
        with self._starting:
            if self._executor is not None:
                self._executor.shutdown(wait=False)
                self._executor = None
