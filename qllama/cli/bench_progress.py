"""One line on stderr that says what is being measured.

Drawn only between measurements: a display that refreshes itself would take its share
of the cores that are being measured.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from qllama.cli.progress import draws_bars, notice

if TYPE_CHECKING:
    from rich.progress import Progress

    from qllama.bench.results import Row

__all__ = ["BenchProgress"]


class BenchProgress:
    """Shows each test and its latest result, on a terminal as a bar over all of them.

    Parameters
    ----------
    n_rows : int
        Tests in all.
    repetitions : int
        Timed runs of each.
    """

    def __init__(self, n_rows: int, repetitions: int) -> None:
        self._n_rows = n_rows
        self._runs = repetitions + 1
        self._bar: Progress | None = None
        self._n_begun = 0
        self._row: Row | None = None

    def __enter__(self) -> BenchProgress:
        if draws_bars():
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task("", total=self._n_rows * self._runs)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, row: Row, done: int) -> None:
        """Say that `done` repetitions of `row` are measured, and which test comes next."""
        is_new = row is not self._row
        self._row = row
        self._n_begun += is_new
        stage = f"{row.model.name}, {row.n_threads} thread(s), {row.test.name}"
        if self._bar is None:
            if is_new:
                notice(f"qllama: measuring {self._n_begun} of {self._n_rows}: {stage}")
            return
        if row.seconds:
            stage += f": {row.mean:.2f} t/s"
        runs = (self._n_begun - 1) * self._runs + (0 if is_new else done + 1)
        self._bar.update(self._task, description=stage, completed=runs)
        self._bar.refresh()


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # markup=False: a model's name may have brackets.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
