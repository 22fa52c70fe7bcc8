"""qllama and its rivals in turns on the same weights; see `--help`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from harness.comparison import Case
from harness.duel import DuelSettings, run_duel
from harness.options import comparison_options, output_option
from qllama.bench.plan import grid
from qllama.cli.numbers import Numbers
from qllama.kernels.cores import default_n_threads

#: What docs/benchmarks.md compares: (model, our file, the rivals' file), as make_models.py
#: and the README's commands write them.
PAIRS = (
    ("1B Q4_0", "1b-q4_0.qlm", "1b-Q4_0.gguf"),
    ("1B Q8_0", "1b-q8_0.qlm", "1b-Q8_0.gguf"),
    ("1B q4 : Q4_K_M", "1b-q4.qlm", "1b-Q4_K_M.gguf"),
    ("3B Q4_0", "3b-q4_0.qlm", "3b-Q4_0.gguf"),
    ("3B Q8_0", "3b-q8_0.qlm", "3b-Q8_0.gguf"),
    ("SmolLM2-135M q4 : Q4_1", "smollm2-q4.qlm", "SmolLM2-135M-Instruct.Q4_1.gguf"),
)
#: Whose decode speed is also measured after this many tokens.
DEEP_MODEL, DEPTH = "1B Q4_0", 2048


_Command = TypeVar("_Command", bound=Callable[..., Any])


class Pair(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """`OURS.qlm=THEIRS.gguf`, two files."""

    name = "OURS=THEIRS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Path, Path]:
        """Parse a string; a tuple is taken as it is."""
        if isinstance(value, tuple):
            return value
        ours, _, theirs = value.partition("=")
        for path in (ours, theirs):
            if not Path(path).is_file():
                self.fail(f"expected two files as OURS.qlm=THEIRS.gguf, found no {path!r}", param)
        return Path(ours), Path(theirs)


def _pairs_option(
    short: str, long: str, least: int, default: str, text: str
) -> Callable[[_Command], _Command]:
    """Make a list of numbers that says how each --pair is measured."""
    return click.option(
        short,
        long,
        type=Numbers(least),
        default=default,
        show_default=True,
        help=f"Of --pair: {text}",
    )


@click.command(
    epilog="Example: python benchmarks/side_by_side.py --pair model.qlm=model.gguf "
    "--rival llama.cpp=llama.cpp/bin/llama-bench --variant '-fa 1' --variant '-fa 0'"
)
@click.option(
    "--pair",
    "pairs",
    type=Pair(),
    multiple=True,
    help="One model in qllama's file and the rivals'. May be given again.",
)
@click.option(
    "--plan",
    "models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Compare what docs/benchmarks.md compares, with the models of make_models.py in DIR; "
    "those that are not there are left out.",
)
@click.option(
    "--model",
    "chosen",
    multiple=True,
    type=click.Choice([model for model, *_ in PAIRS]),
    help="Of the plan, only this model. May be given again.",
)
@_pairs_option("-p", "--n-prompt", 0, "512", "Tokens of the prompts to read; 0 is none.")
@_pairs_option("-n", "--n-gen", 0, "64", "Tokens to generate; 0 is none.")
@_pairs_option("-d", "--n-depth", 0, "0", "Tokens held before.")
@_pairs_option("-np", "--parallel", 1, "1", "Sequences that generate together.")
@click.option(
    "-t", "--threads", type=Numbers(1), default=str(default_n_threads()), show_default=True
)
@comparison_options(rounds=5, repetitions=1)
@output_option("side_by_side.json")
@click.pass_context
def main(
    ctx: click.Context,
    pairs: tuple[tuple[Path, Path], ...],
    models: Path | None,
    chosen: tuple[str, ...],
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: tuple[int, ...],
    parallel: tuple[int, ...],
    threads: tuple[int, ...],
    output: Path,
    **settings: Any,
) -> None:
    """Measure qllama and its rivals in turns and print speeds, and ratios with their spread.

    Every round starts one process of each engine for each model, in an order that
    turns around; a ratio compares medians of one round, and the table has the median,
    the least and the greatest ratio of all rounds. Tests are named as llama-bench names
    them. GB/s and GOP/s are shares of the limits that `qllama bench` measures in the same
    process. Rivals answer to llama-bench's options; sequences together (-np) are
    measured by the llama-batched-bench beside it.
    """
    _refuse_what_is_not_used(ctx)
    cases = []
    named = [(f"{ours.stem} : {theirs.stem}", ours, theirs) for ours, theirs in pairs]
    for model, ours, theirs in named:
        for depth in n_depth:
            for many in parallel:
                tests = grid(
                    n_prompt if many == 1 else (), n_gen, depths=(depth,), parallel=(many,)
                )
                cases += [Case(model, ours, theirs, tuple(tests), n) for n in threads if tests]
    if models is not None:
        cases += planned_cases(models, chosen, threads)
    if not cases:
        raise click.UsageError("Nothing to compare: give --pair, or a --plan with models in it.")
    run_duel("side_by_side", cases, DuelSettings(**settings), output)


def _refuse_what_is_not_used(ctx: click.Context) -> None:
    values = ctx.params
    if values["chosen"] and values["models"] is None:
        raise click.UsageError("--model chooses from a --plan: give one.")
    if values["pairs"] or values["models"] is None:
        return
    for option in ctx.command.params:
        is_given = ctx.get_parameter_source(option.name or "") == ParameterSource.COMMANDLINE
        if option.name in ("n_prompt", "n_gen", "n_depth", "parallel") and is_given:
            raise click.UsageError(f"--plan has tests of its own: leave out {option.opts[0]}.")


def planned_cases(models: Path, chosen: tuple[str, ...], threads: tuple[int, ...]) -> list[Case]:
    """List the cases of docs/benchmarks.md.

    Parameters
    ----------
    models : Path
        Directory of the models of `PAIRS`.
    chosen : tuple of str
        Names of those to take; none is all.
    threads : tuple of int
    """
    cases = []
    for model, our_name, their_name in PAIRS:
        ours, theirs = models / our_name, models / their_name
        if model in (chosen or [model]) and ours.is_file() and theirs.is_file():
            depths = (0, DEPTH) if model == DEEP_MODEL else (0,)
            for depth in depths:
                tests = grid((512,) if depth == 0 else (), (64,), depths=(depth,))
                cases += [Case(model, ours, theirs, tuple(tests), n) for n in threads]
    return cases


if __name__ == "__main__":
    main()
