"""Speed against threads, depth and sequences together; see `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.comparison import Case
from harness.duel import DuelSettings, run_duel
from harness.options import comparison_options, output_option
from qllama.bench.plan import Test
from qllama.cli.numbers import Numbers
from qllama.kernels.cores import default_n_threads

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    epilog="Example: python benchmarks/scaling.py model.qlm model.gguf "
    "--rival llama.cpp=llama.cpp/bin/llama-bench --depths 0,2048 --parallel 1,8"
)
@click.argument("model", type=_FILE)
@click.argument("rivals_model", type=_FILE, required=False)
@click.option(
    "-t",
    "--threads",
    type=Numbers(1),
    default=",".join(str(n + 1) for n in range(default_n_threads())),
    show_default=True,
    help="Depth and sequences are measured with the most of them.",
)
@click.option("--depths", type=Numbers(0), default="0,512,1024,2048,4096", show_default=True)
@click.option("--parallel", type=Numbers(1), default="1,2,4,8,16", show_default=True)
@click.option("-p", "--n-prompt", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("-n", "--n-gen", type=click.IntRange(min=1), default=32, show_default=True)
@comparison_options(rounds=2, repetitions=1)
@output_option("scaling.json")
def main(
    model: Path,
    rivals_model: Path | None,
    threads: tuple[int, ...],
    depths: tuple[int, ...],
    parallel: tuple[int, ...],
    n_prompt: int,
    n_gen: int,
    output: Path,
    **settings: Any,
) -> None:
    """Measure how the speed of MODEL changes with threads, with depth and with more sequences.

    RIVALS_MODEL is the same model in the file of the rivals, if there are any.
    """
    if settings["rivals"] and rivals_model is None:
        raise click.UsageError("The rivals need a model: give RIVALS_MODEL.")
    prompt, answer = Test(n_prompt, 0), Test(0, n_gen)
    most = max(threads)
    plan: list[tuple[tuple[Test, ...], int]] = [((prompt, answer), n) for n in threads]
    plan += [((Test(0, n_gen, depth=depth),), most) for depth in depths if depth]
    plan += [((Test(0, n_gen, n_parallel=many),), most) for many in parallel if many > 1]
    theirs = rivals_model or model
    cases = [Case(model.stem, model, theirs, tests, n) for tests, n in plan]
    run_duel("scaling", cases, DuelSettings(**settings), output)


if __name__ == "__main__":
    main()
