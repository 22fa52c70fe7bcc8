"""qllama end to end over models and lengths; see `--help`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.comparison import Case
from harness.duel import DuelSettings, run_duel
from harness.options import output_option
from qllama.bench import plan
from qllama.cli.numbers import Numbers
from qllama.kernels.cores import default_n_threads


@click.command(epilog="Example: python benchmarks/grid.py q4.qlm q8.qlm -p 16,128,512,2048")
@click.argument(
    "models",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    nargs=-1,
    required=True,
    metavar="MODEL...",
)
@click.option("-p", "--n-prompt", type=Numbers(0), default="16,128,512,1024", show_default=True)
@click.option("-n", "--n-gen", type=Numbers(0), default="64", show_default=True)
@click.option(
    "-t", "--threads", type=Numbers(1), default=str(default_n_threads()), show_default=True
)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--qllama-arguments", default="", metavar="ARGUMENTS", help="Added to each `qllama bench`."
)
@output_option("grid.json")
def main(
    models: tuple[Path, ...],
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    threads: tuple[int, ...],
    rounds: int,
    repetitions: int,
    qllama_arguments: str,
    output: Path,
) -> None:
    """Measure every MODEL with prompts and answers of several lengths, a fresh process a round."""
    tests = tuple(plan.grid(n_prompt, n_gen))
    cases = [Case(model.stem, model, model, tests, n) for model in models for n in threads]
    settings = DuelSettings((), (), qllama_arguments, rounds, repetitions)
    run_duel("grid", cases, settings, output)


if __name__ == "__main__":
    main()
