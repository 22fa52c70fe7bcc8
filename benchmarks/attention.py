"""Attention alone, on one core: a prompt's queries, and decoding from memory; see `--help`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import numpy as np

from qllama.kernels import attention as kernels
from qllama.kernels import kv_layout
from qllama.kernels._jit import njit
from qllama.kernels.linear import linear
from qllama.kernels.partials import partial_bytes

_CHUNKS = 8
_PROMPT_QUERIES = 192
# Normal numbers as halves, float32 and int8; subnormal ones are many times slower.
_FILL = 0x3C
# Past any second-level cache, so that decoding reads memory.
_MEMORY_BYTES = 128 * 2**20


class _Heads:
    """Key/value heads of 8 chunks, and queries that see all of them."""

    def __init__(self, kv_type: int, head_size: int, n_queries: int, n_heads: int) -> None:
        self._head_bytes = _CHUNKS * kv_layout.chunk_bytes(kv_type, head_size)
        self.n_bytes = 2 * n_heads * self._head_bytes
        self.n_operations = 4 * n_queries * n_heads * _CHUNKS * kv_layout.CHUNK * head_size
        self._kv_type, self._head_size, self._n_heads = kv_type, head_size, n_heads
        self._n_queries = n_queries
        self._memory = [
            np.full(size + 64, _FILL, np.uint8)
            for size in (
                n_heads * self._head_bytes,
                n_heads * self._head_bytes,
                n_queries * kernels.query_bytes(head_size),
                n_queries * partial_bytes(head_size),
                kernels.chunk_scratch_bytes(head_size),
            )
        ]
        seen = (0, _CHUNKS * kv_layout.CHUNK)
        self._seen = np.tile(np.array(seen, np.int32), n_queries)
        self._kernel = linear("q8_0").address

    def attend(self) -> None:
        """Attend to every chunk of every head."""
        keys, values, queries, merged, scratch = (
            a.ctypes.data + -a.ctypes.data % 64 for a in self._memory
        )
        _attend(
            self._kv_type,
            self._kernel,
            queries,
            self._n_queries,
            self._seen.ctypes.data,
            keys,
            values,
            self._n_heads,
            self._head_bytes,
            self._head_size,
            merged,
            scratch,
        )


@njit
def _attend(
    kv_type,
    kernel,
    queries,
    n_queries,
    seen,
    keys,
    values,
    n_heads,
    head_bytes,
    head_size,
    merged,
    scratch,
):
    size = partial_bytes(head_size)
    for head in range(n_heads):
        offset = head_bytes * head
        for chunk in range(_CHUNKS):
            kernels.attend_chunk(
                kv_type,
                kernel,
                queries,
                n_queries,
                seen,
                keys + offset,
                values + offset,
                chunk,
                head_size,
                merged,
                size,
                scratch,
            )


def _seconds(work: Callable[[], None], repetitions: int) -> float:
    work()
    samples = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


@click.command(epilog="Example: python benchmarks/attention.py --head-dim 128")
@click.option(
    "--head-dim",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Values of a head.",
)
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=9, show_default=True)
def main(head_dim: int, repetitions: int) -> None:
    """Time the attention kernel on one core, for each type of the key/value cache.

    `prompt` is 192 queries on one head of 2048 positions, in 10^9 float operations a
    second; the others are that many query heads of one token on heads that lie in memory,
    in GB/s of keys and values read.
    """
    head_size = -(-head_dim // 32) * 32
    counts = (1, 3, 4, 8)
    heads = " ".join(f"{f'{n} heads':>8}" for n in counts)
    click.echo(f"{'cache':<6} {'prompt':>8} {heads}")
    for kv_type, name in enumerate(kv_layout.KV_TYPES):
        prompt = _Heads(kv_type, head_size, _PROMPT_QUERIES, 1)
        cells = [prompt.n_operations / _seconds(prompt.attend, repetitions) / 1e9]
        for n_queries in counts:
            n_heads = _MEMORY_BYTES // (2 * _CHUNKS * kv_layout.chunk_bytes(kv_type, head_size))
            decode = _Heads(kv_type, head_size, n_queries, n_heads)
            cells.append(decode.n_bytes / _seconds(decode.attend, repetitions) / 1e9)
        click.echo(f"{name:<6} {cells[0]:8.0f} " + " ".join(f"{cell:8.1f}" for cell in cells[1:]))


if __name__ == "__main__":
    main()
