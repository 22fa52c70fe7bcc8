"""Command line options that several scripts take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.engines import LlamaBench, Qllama

__all__ = ["comparison_options", "output_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _parse_rivals(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[LlamaBench]:
    rivals = [LlamaBench.parse(value) for value in values]
    names = [Qllama.name, *(rival.name for rival in rivals)]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"two rivals are called {name!r}", ctx, param)
    return rivals


def output_option(default: str) -> Callable[[_Command], _Command]:
    """Where the JSON document goes; `default` is its name."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        default=default,
        show_default=True,
        metavar="FILE",
        help="JSON document with all samples.",
    )


def comparison_options(rounds: int, repetitions: int) -> Callable[[_Command], _Command]:
    """Options of scripts that let engines take turns; the numbers are defaults."""
    options = [
        click.option(
            "--rival",
            "rivals",
            multiple=True,
            metavar="NAME=COMMAND",
            callback=_parse_rivals,
            help="An engine to measure beside qllama, as llama.cpp=/path/to/llama-bench. "
            "May be given again.",
        ),
        click.option(
            "--variant",
            "variants",
            multiple=True,
            metavar="ARGUMENTS",
            help="Settings to try with each rival, as '-fa 0': the first round takes the "
            "fastest of all variants for each test. May be given again.",
        ),
        click.option(
            "--qllama-arguments",
            default="",
            metavar="ARGUMENTS",
            help="Added to each `qllama bench`.",
        ),
        click.option(
            "--rounds", type=click.IntRange(min=1), default=rounds, show_default=True, metavar="N"
        ),
        click.option(
            "-r",
            "--repetitions",
            type=click.IntRange(min=1),
            default=repetitions,
            show_default=True,
            metavar="N",
            help="Samples that an engine takes in a round.",
        ),
    ]

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
