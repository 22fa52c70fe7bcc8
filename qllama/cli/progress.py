"""Progress of long work on stderr: bars on a terminal, single lines elsewhere.

Owns how progress looks. Loads rich only when there is something to draw, since
most commands finish before there is.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressReport", "notice"]


def notice(text: str) -> None:
    """Print `text` to stderr, where it cannot mix with an answer."""
    click.echo(text, err=True)


def _draws_bars() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class ProgressReport:
    """Shows how far each of several stages is, while its `with` block runs.

    `report` is what the slow functions of the lower layers take as `on_progress`.
    """

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._announced: set[str] = set()

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
        """Finish the bars; a later report starts new ones."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks.clear()

    def report(self, stage: str, done: int, total: int) -> None:
        """Say that `done` of `total` units of `stage` are finished.

        Parameters
        ----------
        stage : str
            What is being done, as `converting SmolLM2`; every stage has a bar or line.
        done, total : int
            In any unit; a `total` of 0 is not known yet.
        """
        if _draws_bars():
            self._draw(stage, done, total)
        elif stage not in self._announced:
            self._announced.add(stage)
            notice(f"qllama: {stage}")

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)


def _new_bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    # markup=False: a stage may hold a file name with brackets.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
