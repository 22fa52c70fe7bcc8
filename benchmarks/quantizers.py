"""How fast weights are quantized, in memory and with nothing else to do; see `--help`."""

from __future__ import annotations

import time

import click
import numpy as np

from qllama.kernels.cores import default_n_threads
from qllama.kernels.quantize import quantize
from qllama.quant import QUANT_TYPES

_SHAPE = (4096, 4096)
_DEVIATION = 0.02


@click.command(epilog="Example: python benchmarks/quantizers.py q4 q8_0")
@click.argument("types", nargs=-1, required=True, type=click.Choice(sorted(QUANT_TYPES)))
@click.option("-t", "--threads", type=click.IntRange(1), help="All physical cores unless given.")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True)
def main(types: tuple[str, ...], threads: int | None, repetitions: int) -> None:
    """Quantize random weights to each of TYPES, and print the median speed.

    What `qllama convert` can reach at most, where the disk is faster.
    """
    n_threads = threads or default_n_threads()
    weights = np.random.default_rng(0).standard_normal(_SHAPE, np.float32) * np.float32(_DEVIATION)
    for name in types:
        # Not the compilation.
        quantize(name, weights[:16], n_threads)
        seconds = []
        for _ in range(repetitions):
            started = time.perf_counter()
            quantize(name, weights, n_threads)
            seconds.append(time.perf_counter() - started)
        speed = weights.size / float(np.median(seconds)) / 1e6
        click.echo(f"{name}: {speed:.0f} M weights/s on {n_threads} threads")


if __name__ == "__main__":
    main()
