"""Each matrix kernel against the limit of what it does; see `--help`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from harness.document import new_document, write
from harness.kernel_rows import Row, kernel_table
from harness.matrices import HEAD, Matrices, MatrixBench
from harness.options import output_option
from qllama.bench.limits import Limits, stream_memory
from qllama.cli.numbers import Numbers
from qllama.format import QlmFile
from qllama.kernels.cores import default_n_threads
from qllama.kernels.probes import compile_probes


@click.command(epilog="Example: python benchmarks/kernels.py 1b-q4_0.qlm 1b-q8_0.qlm")
@click.argument(
    "models",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    nargs=-1,
    required=True,
    metavar="MODEL...",
)
@click.option(
    "-n",
    "--tokens",
    type=Numbers(1),
    default="1,512",
    show_default=True,
    help="Tokens multiplied together; those of one token are counted in GB/s.",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1),
    default=default_n_threads(),
    show_default=True,
    metavar="N",
)
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@output_option("kernels.json")
def main(
    models: tuple[Path, ...],
    tokens: tuple[int, ...],
    threads: int,
    repetitions: int,
    output: Path,
) -> None:
    """Time the matrix products of each MODEL alone, and the limit of each beside it.

    All matrices of one kind are multiplied, layer after layer: with one token the weights
    come from memory, and the limit is reading it; with many the limit is the peak of the
    byte dot products. Limits are measured just before each sample.
    """
    compile_probes()
    limits = Limits(threads, stream_memory())
    rows = []
    settings = {"threads": threads, "repetitions": repetitions}
    for number, model in enumerate(models, 1):
        with (
            QlmFile.open(model) as file,
            closing(MatrixBench(file, threads, max(tokens))) as bench,
        ):
            for matrices in bench.kinds():
                for n_tokens in tokens:
                    if n_tokens > 1 and matrices.name == HEAD:
                        continue
                    click.echo(f"{model.stem}: {matrices.work}, {n_tokens} tokens", err=True)
                    rows.append(_measure(bench, model, matrices, n_tokens, limits, repetitions))
        results = {"kernels": rows, "is_complete": number == len(models)}
        write(new_document("kernels", settings, results), output)
    limits.close()
    click.echo(kernel_table(rows))


def _measure(
    bench: MatrixBench,
    model: Path,
    matrices: Matrices,
    n_tokens: int,
    limits: Limits,
    repetitions: int,
) -> Row:
    bench.seconds(matrices, n_tokens)
    row = Row(
        model=model.stem,
        type=matrices.type,
        work=matrices.work,
        n_tokens=n_tokens,
        unit="GB/s" if n_tokens == 1 else "GOP/s",
        values=[],
        limits=[],
    )
    for _ in range(repetitions):
        limits.sample()
        seconds = bench.seconds(matrices, n_tokens)
        if n_tokens == 1:
            row.values.append(matrices.n_bytes / seconds / 1e9)
            row.limits.append(max(limits.read_gb_s[-1], limits.read_ahead_gb_s[-1]))
        else:
            row.values.append(matrices.n_ops(n_tokens) / seconds / 1e9)
            row.limits.append(limits.dot4_gop_s[-1])
    return row


if __name__ == "__main__":
    main()
