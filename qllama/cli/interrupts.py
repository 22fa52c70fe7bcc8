"""What signals do: Ctrl-C while an answer is made, and the end of a session."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qllama.generation.loop import Stream

__all__ = ["ctrl_c_cancels", "leaving_in_order"]


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """Have SIGTERM and a closed terminal unwind what runs, as an exception.

    So that what is half written is removed and the terminal put back, where the system
    would end the process on the spot.
    """

    def leave(signal_number: int, frame: object) -> None:
        raise SystemExit(128 + signal_number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), leave) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


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
