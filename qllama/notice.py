"""One-line notices on stderr, for callers that show no progress of their own."""

from __future__ import annotations

import sys
import time

__all__ = ["CompileNotice", "StageNotice", "notice"]


class CompileNotice:
    """Says on stderr that kernels are being compiled, once it has taken a while.

    Loading them from the cache reports the same stages, but is over at once.
    """

    PATIENCE_SECONDS = 1.0

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._said = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Hear of a stage.

        Parameters
        ----------
        stage : str
            What comes next.
        done, total : int
            Stages done, and in all.
        """
        if self._said or done == total:
            return
        if time.monotonic() - self._started > self.PATIENCE_SECONDS:
            self._said = True
            notice("compiling kernels for this CPU, once; `qllama warmup` does it ahead")


class StageNotice:
    """Says on stderr what is being done, one line a stage."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Hear of progress.

        Parameters
        ----------
        stage : str
            What is being done.
        done, total : int
            Bytes of it, and in all; 0 where that is unknown.
        """
        if stage != self._stage:
            self._stage = stage
            notice(f"{stage} ({total / 1e6:.0f} MB)" if total else stage)


def notice(text: str) -> None:
    """Print one line on stderr, under qllama's name.

    Parameters
    ----------
    text : str
    """
    print(f"qllama: {text}", file=sys.stderr)
