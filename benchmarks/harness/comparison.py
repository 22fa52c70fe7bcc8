"""Engines taking turns: what is compared, in which order, and what comes out.

In every round each engine runs once, in an order that turns around from round to
round, so that a drift of the machine's speed hits all alike. A ratio is taken
within a round and never across rounds.

A rival may have several variants of its settings. The first round measures all of
them and keeps, for every test, the fastest.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from harness.engines import Engine, Run
from qllama.bench.plan import Test

__all__ = ["Case", "Comparison", "OnTurn", "Side", "compare"]

#: Called as (case, engine's name, round) before each process is started.
OnTurn = Callable[["Case", str, int], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A model in the files of each engine, and tests that one process can run.

    Parameters
    ----------
    model : str
        How tables call it.
    ours, theirs : Path
        qllama's file, and the one of the rivals.
    tests : tuple of Test
        All of one depth and one number of sequences.
    n_threads : int
    """

    model: str
    ours: Path
    theirs: Path
    tests: tuple[Test, ...]
    n_threads: int


@dataclass(slots=True)
class Side:
    """One engine's part in a comparison.

    Parameters
    ----------
    engine : str
    file : str
        Name of the model's file.
    arguments : str
        The variant of its settings that was fastest.
    rounds : list of list of float
        Tokens a second, a list a round.
    details : list of dict
        What the engine said beside them, one a round.
    tried : dict of str to list of float
        By variant: what the first round measured; empty where there was no choice.
    """

    engine: str
    file: str
    arguments: str = ""
    rounds: list[list[float]] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    tried: dict[str, list[float]] = field(default_factory=dict)

    @property
    def samples(self) -> list[float]:
        """Tokens a second of all rounds."""
        return [sample for samples in self.rounds for sample in samples]

    def detail(self, name: str) -> float | None:
        """Median of what the engine said under `name`; None where it said nothing."""
        found = [d[name] for d in self.details if d.get(name) is not None]
        return statistics.median(found) if found else None


@dataclass(slots=True)
class Comparison:
    """One test of one model: our figures and those of the rivals.

    Parameters
    ----------
    model : str
    test : Test
    n_threads : int
    ours : Side
    rivals : list of Side
    """

    model: str
    test: Test
    n_threads: int
    ours: Side
    rivals: list[Side]


def compare(
    case: Case,
    ours: Engine,
    rivals: Sequence[Engine],
    variants: Sequence[Sequence[str]],
    rounds: int,
    repetitions: int,
    on_turn: OnTurn,
) -> list[Comparison]:
    """Measure a case; returns a comparison for each of its tests.

    Parameters
    ----------
    case : Case
    ours : Engine
    rivals : sequence of Engine
    variants : sequence of sequence of str
        Settings to try with each rival: arguments of its command.
    rounds : int
    repetitions : int
        Samples that an engine takes in a round.
    on_turn : callable

    Raises
    ------
    click.ClickException
        An engine fails, or answers with other tests than it was asked for.
    """
    turns = [
        _Turn(case, ours, case.ours, [()]),
        *(_Turn(case, rival, case.theirs, variants) for rival in rivals),
    ]
    for number in range(rounds):
        for turn in turns if number % 2 == 0 else reversed(turns):
            on_turn(case, turn.engine.name, number)
            turn.take(repetitions)
    return [
        Comparison(
            case.model,
            test,
            case.n_threads,
            turns[0].sides[test],
            [turn.sides[test] for turn in turns[1:]],
        )
        for test in case.tests
    ]


class _Turn:
    """One engine on one case, round after round."""

    def __init__(
        self, case: Case, engine: Engine, file: Path, variants: Sequence[Sequence[str]]
    ) -> None:
        self.engine = engine
        self.sides = {test: Side(engine.name, file.name) for test in case.tests}
        self._case = case
        self._file = file
        self._variants = {shlex.join(variant): tuple(variant) for variant in variants}

    def take(self, repetitions: int) -> None:
        """Measure one round."""
        if any(side.rounds for side in self.sides.values()):
            self._repeat(repetitions)
        else:
            self._try_all(repetitions)

    def _try_all(self, repetitions: int) -> None:
        by_test: dict[Test, dict[str, Run]] = {test: {} for test in self.sides}
        for name, arguments in self._variants.items():
            for run in self._measure(list(self.sides), repetitions, arguments):
                by_test[run.test][name] = run
        for test, runs in by_test.items():
            side = self.sides[test]
            side.arguments = max(runs, key=lambda name: statistics.median(runs[name].samples))
            if len(runs) > 1:
                side.tried = {name: run.samples for name, run in runs.items()}
            self._keep(runs[side.arguments])

    def _repeat(self, repetitions: int) -> None:
        for name, arguments in self._variants.items():
            tests = [test for test, side in self.sides.items() if side.arguments == name]
            if tests:
                for run in self._measure(tests, repetitions, arguments):
                    self._keep(run)

    def _measure(self, tests: list[Test], repetitions: int, arguments: Sequence[str]) -> list[Run]:
        runs = self.engine.measure(self._file, tests, self._case.n_threads, repetitions, arguments)
        asked, found = ([test.name for test in each] for each in (tests, [r.test for r in runs]))
        if sorted(found) != sorted(asked):
            raise click.ClickException(
                f"{self.engine.name}: expected results of {', '.join(asked)}, "
                f"found {', '.join(found) or 'none'}"
            )
        return runs

    def _keep(self, run: Run) -> None:
        self.sides[run.test].rounds.append(run.samples)
        self.sides[run.test].details.append(run.details)
