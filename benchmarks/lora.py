"""Speed of a model beside that of the same model with LoRA adapters; see `--help`."""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from qllama.bench.markdown import table
from qllama.config import ModelConfig
from qllama.format import QlmFile
from qllama.model.adapter import Adapter
from qllama.model.engine import Engine
from qllama.tensors import expected_shapes

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES = {
    "r=8, q and v": (8, ("q_proj", "v_proj")),
    "r=16, all": (16, EVERY),
    "r=64, all": (64, EVERY),
}
_START = 16


def random_adapter(config: ModelConfig, rank: int, modules: tuple[str, ...]) -> Adapter:
    """Make an adapter of small random values."""
    random = np.random.default_rng(0)
    updates = {}
    for name, shape in expected_shapes(config).items():
        if len(shape) == 2 and any(module in name for module in modules):
            left, right = (
                0.01 * random.standard_normal(size, np.float32)
                for size in ((shape[0], rank), (rank, shape[1]))
            )
            updates[name] = [(left, right)]
    return Adapter(updates)


def speeds(engine: Engine, n_prompt: int, n_tokens: int) -> tuple[float, float]:
    """Return tokens/s of a prompt, and of one token after the other."""
    started = time.perf_counter()
    engine.evaluate(list(range(n_prompt)), position=0)
    prompt = time.perf_counter() - started
    started = time.perf_counter()
    for i in range(n_tokens):
        engine.evaluate([i], position=_START + i)
    return n_prompt / prompt, n_tokens / (time.perf_counter() - started)


@click.command(epilog="Example: python benchmarks/lora.py llama-3.2-1b-q4.qlm -t 2")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-p", "--n-prompt", default=512, help="Tokens of the prompt.")
@click.option("-n", "--n-gen", default=24, help="Tokens decoded.")
@click.option("-r", "--rounds", default=3, help="Rounds; the cases take turns, the best counts.")
@click.option("-t", "--threads", type=int, help="Default: physical cores.")
def main(model: Path, n_prompt: int, n_gen: int, rounds: int, threads: int | None) -> None:
    """Print tokens/s of MODEL plain and with random adapters computed beside it."""
    with QlmFile.open(model) as file:
        engine = Engine(file, n_ctx=n_prompt + n_gen + _START, n_threads=threads)
        cases = {name: random_adapter(file.config, *case) for name, case in CASES.items()}
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for name, adapter in {"plain": None, **cases}.items():
                engine.adapt(adapter)
                speeds(engine, _START, 1)
                found.setdefault(name, []).append(speeds(engine, n_prompt, n_gen))
        engine.close()
    rows = []
    for name, pairs in found.items():
        n_bytes = cases[name].n_bytes if name in cases else 0
        prompt, decoded = (max(column) for column in zip(*pairs, strict=True))
        rows.append((name, f"{n_bytes / 1e6:.0f}", f"{prompt:.0f}", f"{decoded:.1f}"))
    header = ("adapter", "MB", "prompt, tokens/s", "decoded, tokens/s")
    click.echo(table(header, rows, words=("adapter",)), nl=False)


if __name__ == "__main__":
    main()
