"""A whole run of a script that compares engines: measure, print a table, write the document."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from harness.comparison import Case, Comparison, compare
from harness.document import new_document, write
from harness.engines import LlamaBench, Qllama
from harness.tables import comparison_table

__all__ = ["DuelSettings", "run_duel"]


@dataclass(frozen=True, slots=True)
class DuelSettings:
    """The values of `options.comparison_options`.

    Parameters
    ----------
    rivals : sequence of LlamaBench
    variants : sequence of str
        Settings to try with each rival.
    qllama_arguments : str
    rounds, repetitions : int
    """

    rivals: Sequence[LlamaBench]
    variants: Sequence[str]
    qllama_arguments: str
    rounds: int
    repetitions: int


def run_duel(benchmark: str, cases: Sequence[Case], settings: DuelSettings, output: Path) -> None:
    """Measure `cases`, print the table and write the document, anew after each case.

    An error or Ctrl-C leaves what was measured before that case.

    Parameters
    ----------
    benchmark : str
        The script's name.
    cases : sequence of Case
    settings : DuelSettings
    output : Path
        The document's file.
    """
    ours = Qllama(shlex.split(settings.qllama_arguments))
    told = asdict(settings) | {"rivals": [rival.told for rival in settings.rivals]}
    comparisons: list[Comparison] = []
    try:
        for number, case in enumerate(cases, 1):
            comparisons += compare(
                case,
                ours,
                settings.rivals,
                [shlex.split(text) for text in settings.variants] or [[]],
                settings.rounds,
                settings.repetitions,
                _say_turn,
            )
            results = {
                "is_complete": number == len(cases),
                "comparisons": comparisons,
                "limits": ours.limits,
            }
            write(new_document(benchmark, told, results), output)
    finally:
        if comparisons:
            click.echo(comparison_table(comparisons))


def _say_turn(case: Case, engine: str, number: int) -> None:
    tests = ", ".join(test.name for test in case.tests)
    click.echo(
        f"{case.model}: {tests}, {case.n_threads} threads: round {number + 1}, {engine}", err=True
    )
