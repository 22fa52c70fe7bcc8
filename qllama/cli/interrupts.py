"""What Ctrl-C does while an answer is made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qllama.generation.loop import Stream

__all__ = ["ctrl_c_cancels"]


@contextmanager
def ctrl_c_cancels(stream: Stream) -> Iterator[None]:
    """Have Ctrl-C end `stream` at its next step; a second one interrupts at once.

    A cancelled stream ends between two steps of the engine, with its last piece and
    timings, where an exception would strike anywhere. Off the main thread, where
    Python handles no signals, Ctrl-C is left as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None is a handler that Python did not install and so cannot put back.
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def cancel(signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stream.cancel()

    try:
        signal.signal(signal.SIGINT, cancel)
        yield
    finally:
        signal.signal(signal.SIGINT, before)
