"""Prefill and decode speed of a model: a table, then one JSON document as the last line.

    python benchmarks/speed.py MODEL.qlm [--prompt 512] [--predict 128] [--depth 0] [--threads N]

Compilation and a first run are not counted. Decode evaluates one token at a time
and neither samples nor detokenizes.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable

import click
import llvmlite
import numba
import numpy as np

from qllama import __version__
from qllama.format import QlmFile
from qllama.kernels.isa import current_isa
from qllama.model.engine import Engine


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.option("--prompt", default=512, show_default=True, help="Tokens of the prefill test.")
@click.option("--predict", default=128, show_default=True, help="Tokens of the decode test.")
@click.option("--depth", default=0, show_default=True, help="Tokens held before either.")
@click.option("--repetitions", default=5, show_default=True, help="Runs of each test.")
@click.option("--threads", type=int, default=None, help="Default: the physical cores.")
def main(
    model: str, prompt: int, predict: int, depth: int, repetitions: int, threads: int | None
) -> None:
    """Measure MODEL, a .qlm file."""
    with QlmFile.open(model) as file:
        engine = Engine(file, n_ctx=depth + max(prompt, predict), n_threads=threads)
        tokens = np.random.default_rng(0).integers(0, file.config.vocab_size, engine.n_ctx).tolist()
        engine.evaluate(tokens, position=0)

        prefill = [
            prompt / seconds_of(lambda: engine.evaluate(tokens[:prompt], position=depth))
            for _ in range(repetitions)
        ]
        decode = [
            1 / seconds_of(lambda: engine.evaluate([tokens[0]], position=depth + i))  # noqa: B023
            for _ in range(repetitions)
            for i in range(predict)
        ]
        suffix = f" @ d{depth}" if depth else ""
        samples = {f"pp{prompt}{suffix}": prefill, f"tg{predict}{suffix}": decode}

        print(f"{'test':<16} {'median':>8} {'p10':>8} {'p90':>8}  tokens/s")
        for name, values in samples.items():
            deciles = statistics.quantiles(values, n=10)
            print(
                f"{name:<16} {statistics.median(values):8.1f} {deciles[0]:8.1f} {deciles[-1]:8.1f}"
            )
        document = {
            "schema": 1,
            "qllama": __version__,
            "model": file.provenance,
            "recipe": file.recipe,
            "isa": current_isa().name,
            "threads": engine.n_threads,
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numba": numba.__version__,
            "llvmlite": llvmlite.__version__,
            "samples": samples,
        }
        print(json.dumps(document))
        engine.close()


if __name__ == "__main__":
    main()
