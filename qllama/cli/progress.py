"""Progress of long work on stderr: bars on a terminal, single lines elsewhere.

Owns how progress looks and when it is worth showing. Loads rich only when there
is something to draw, since most commands are done before there is.
"""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

__all__ = ["ProgressReport", "PromptProgress", "draws_bars", "notice"]

# Stages count kernels or bytes, and no more than their total tells which.
_FEWEST_BYTES = 1 << 20


def notice(text: str) -> None:
    """Print `text` to stderr, where it cannot mix with an answer; a terminal tears no word."""
    if sys.stderr is not None and sys.stderr.isatty():
        # It brings a part of rich, which pipes do without.
        from qllama.cli.terminal_text import wrapped

        text = wrapped(text)
    click.echo(text, err=True)


def draws_bars() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class ProgressReport:
    """Shows how far each of several stages is, while its `with` block runs.

    Its `report` is what the slow functions of the lower layers take as `on_progress`.

    Parameters
    ----------
    patience : float
        Seconds of work before anything is shown: what is done sooner, as loading
        kernels that are already compiled, needs no telling.
    """

    def __init__(self, patience: float = 0.5) -> None:
        # The timer shows what there is even while the first stage says no more.
        self._timer = threading.Timer(patience, self.show)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._stages: dict[str, tuple[int, int]] = {}
        self._shown = False
        self._closed = False
        self._told: set[str] = set()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Show no more: done at the end of the `with` block, or before."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bars is not None:
                self._bars.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Say that `done` of `total` units of `stage` are finished.

        Parameters
        ----------
        stage : str
            What is being done, as `converting model.gguf`; each has its bar or line.
        done, total : int
            In any unit; a `total` of 0 is not known yet.
        """
        with self._lock:
            if not self._stages:
                self._timer.start()
            self._stages[stage] = (done, total)
            if self._shown:
                self._draw(stage)

    def show(self) -> None:
        """Show all stages so far, and from now on each as it is reported."""
        with self._lock:
            self._shown = True
            for stage in self._stages:
                self._draw(stage)

    def _draw(self, stage: str) -> None:
        if self._closed:  # the timer was up as the block ended: nobody would stop the bars
            return
        done, total = self._stages[stage]
        if not draws_bars():
            if stage not in self._told:
                self._told.add(stage)
                notice(f"qllama: {stage}")
            return
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)


class PromptProgress(ProgressReport):
    """Shows how far a long prompt is read, until its answer begins and it is closed."""

    _STAGE = "reading the prompt"

    def __init__(self) -> None:
        super().__init__()
        self._total = 0

    def read(self, done: int, total: int) -> None:
        """Say that `done` of `total` tokens are read."""
        self._total = total
        self.report(self._STAGE, done, total)

    def finish(self) -> None:
        """Say that the rest is read too, and show no more."""
        if self._total:
            self.report(self._STAGE, self._total, self._total)
            self._total = 0
        self.close()


def _new_bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class ByteRateColumn(TransferSpeedColumn):
        """Bytes a second; empty for a stage that counts something else."""

        def render(self, task: Task) -> Text:
            return super().render(task) if (task.total or 0) >= _FEWEST_BYTES else Text("")

    # markup=False: a stage may hold a file name with brackets.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        ByteRateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
