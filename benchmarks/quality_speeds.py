"""Adds speeds to what quality.py measured; see `--help`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.document import read, write
from harness.engines import LlamaBench, Qllama
from harness.quality_rows import WEIGHTED, QualityRow, quality_table
from qllama.bench.plan import Test
from qllama.kernels.cores import default_n_threads

_TESTS = [Test(512, 0), Test(0, 64)]


@click.command(
    epilog="Example: python benchmarks/quality_speeds.py quality.json made "
    "--llama llama.cpp/build/bin"
)
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("made", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--llama",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Where llama-bench is.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N")
def main(document: Path, made: Path, llama: Path, rounds: int) -> None:
    """Measure how fast the models of DOCUMENT, which lie in MADE, read and generate.

    A fresh process of each in every round, in an order that turns around from round to
    round; llama-bench with flash attention. Types made with importance are left out: they
    are as fast as without.
    """
    found = read(document)
    rows = [QualityRow(**row) for row in found["rows"]]
    rival = LlamaBench("llama.cpp", [str(llama / "llama-bench"), "-fa", "1"])
    engines = {"qllama": Qllama(), "llama.cpp": rival}
    n_threads = default_n_threads()
    plain = [row for row in rows if WEIGHTED not in row.type]
    for row in plain:
        row.speeds = {}
    for number in range(rounds):
        for row in plain[:: -1 if number % 2 else 1]:
            click.echo(f"round {number + 1}: {row.file}", err=True)
            for run in engines[row.engine].measure(made / row.file, _TESTS, n_threads, 1):
                row.speeds.setdefault(run.test.name, []).extend(run.samples)
    settings = {**found["settings"], "rounds": rounds, "repetitions": 1, "threads": n_threads}
    write({**found, "settings": settings, "rows": rows}, document)
    click.echo(quality_table(rows))


if __name__ == "__main__":
    main()
