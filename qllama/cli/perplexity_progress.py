"""The running estimate of `qllama perplexity`, and how far it is.

Estimates are llama.cpp's, `[1]8.1,[2]8.3,`: on one growing line of stdout, or, where
stdout is the terminal on which the bar moves, beside the bar and on stdout at its end.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

from qllama.cli.progress import draws_bars, notice

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["PerplexityProgress"]


class PerplexityProgress:
    """Shows each window's estimate while its `with` block runs.

    Parameters
    ----------
    stage : str
        What is being done.
    n_windows : int
    prints : bool
        Whether the estimates belong on stdout.
    """

    def __init__(self, stage: str, n_windows: int, prints: bool) -> None:
        self._stage = stage
        self._n_windows = n_windows
        self._prints = prints
        self._bar: Progress | None = None
        self._held_back: list[str] = []
        self._printed = False

    def __enter__(self) -> PerplexityProgress:
        if draws_bars():
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._stage, total=self._n_windows)
        else:
            notice(f"qllama: {self._stage}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._held_back:
            self._print("".join(self._held_back))
        if self._printed:
            click.echo()

    def report(self, estimate: str) -> None:
        """Say that one more window is done; `estimate` is of all until it."""
        if self._bar is not None:
            description = f"{self._stage} {estimate.rstrip(',')}"
            self._bar.update(self._task, description=description, advance=1)
        if not self._prints:
            return
        if self._bar is not None and sys.stdout.isatty():
            self._held_back.append(estimate)
        else:
            self._print(estimate)

    def _print(self, text: str) -> None:
        click.echo(text, nl=False)
        self._printed = True


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    # markup=False: estimates and file names have brackets. stdout may be a pipe beside it.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
        transient=True,
    )
