"""Products with the matrices of a model, taken out of the forward pass and timed alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qllama.format import QlmFile
from qllama.kernels import vector as v
from qllama.kernels._jit import carray
from qllama.kernels.team import barrier, team_function
from qllama.model.engine import Engine
from qllama.model.projections import multiply
from qllama.model.records import DOWN, LINEAR, MATRICES, MODEL
from qllama.quant.types import TILE_ROWS
from qllama.tensors import EMBEDDING
from qllama.tensors import HEAD as LM_HEAD

__all__ = ["HEAD", "Matrices", "MatrixBench"]

#: The output head among the kinds of matrices.
HEAD = "head"
#: All matrices of one kind, one after the other: what a team computes in one call.
_JOB = np.dtype(
    [
        (name, np.int64)
        for name in ("model", "linears", "n_linears", "n_tokens", "is_hidden", "out", "columns")
    ]
)


def _multiply_all(address, thread):  # type: ignore[no-untyped-def]
    """Multiply every matrix of a job with the packed activations, whatever those are."""
    job = carray(v.pointer(address), 1, _JOB)[0]
    model = carray(v.pointer(job.model), 1, MODEL)[0]
    linears = carray(v.pointer(job.linears), job.n_linears, LINEAR)
    for i in range(job.n_linears):
        barrier(model.team, model.n_threads)
        multiply(
            model, job.n_tokens, linears[i], job.is_hidden != 0, job.out, job.columns, 0, thread
        )
    barrier(model.team, model.n_threads)


@dataclass(frozen=True, slots=True)
class Matrices:
    """All matrices of one kind.

    Parameters
    ----------
    name : str
        As in MATRICES, or `head`.
    type : str
        Their weight type.
    rows, columns : int
    linears : LINEAR records, (n,)
    is_hidden : bool
        Whether their input is that between the feed-forward layer's matrices.
    """

    name: str
    type: str
    rows: int
    columns: int
    linears: Any
    is_hidden: bool

    @property
    def n_bytes(self) -> int:
        """Of the weights, as they are stored."""
        return int((self.linears["n_tiles"] * self.linears["tile_bytes"]).sum())

    @property
    def work(self) -> str:
        """How tables call it."""
        return f"{self.name.rpartition('.')[2]} {self.rows} x {self.columns}"

    def n_ops(self, n_tokens: int) -> int:
        """Multiplications and additions."""
        return 2 * n_tokens * self.rows * self.columns * len(self.linears)


class MatrixBench:
    """Times matrices of an open model.

    Parameters
    ----------
    file : QlmFile
    n_threads : int
    n_batch : int
        Most tokens of a product.
    """

    def __init__(self, file: QlmFile, n_threads: int, n_batch: int) -> None:
        self._file = file
        self._engine = Engine(file, n_ctx=n_batch, n_batch=n_batch, n_threads=n_threads)
        self._function = team_function(_multiply_all).address
        # The head's many rows are only ever wanted of one token.
        tiles = self._engine._weights.linears["n_tiles"]
        n_values = TILE_ROWS * max(n_batch * int(tiles[:-1].max()), int(tiles[-1].max()))
        self._out = np.zeros(n_values, np.float32)

    def kinds(self) -> Iterator[Matrices]:
        """Yield the matrices of the model, kind after kind."""
        linears = self._engine._weights.linears
        for index, matrix in enumerate(MATRICES):
            yield self._matrices(matrix, linears[:-1, index], f"model.layers.0.{matrix}.weight")
        is_tied = self._file.config.tie_word_embeddings
        yield self._matrices(HEAD, linears[-1:, 1], EMBEDDING if is_tied else LM_HEAD)

    def _matrices(self, name: str, linears: Any, tensor: str) -> Matrices:
        entry = self._file.tensors[tensor]
        rows, columns = entry.shape
        is_hidden = name == MATRICES[DOWN]
        return Matrices(name, entry.type, rows, columns, np.ascontiguousarray(linears), is_hidden)

    def seconds(self, matrices: Matrices, n_tokens: int) -> float:
        """Multiply all of `matrices` with `n_tokens` tokens once; the head with one only."""
        columns = TILE_ROWS * int(matrices.linears["n_tiles"].max())
        if n_tokens * columns > len(self._out):
            raise ValueError(f"{matrices.name}: {n_tokens} tokens are too many")
        job = np.zeros(1, _JOB)
        job[0] = (
            self._engine._buffers.model.ctypes.data,
            matrices.linears.ctypes.data,
            len(matrices.linears),
            n_tokens,
            matrices.is_hidden,
            self._out.ctypes.data,
            columns,
        )
        start = time.perf_counter()
        self._engine._team.run(self._function, job.ctypes.data)
        return time.perf_counter() - start

    def close(self) -> None:
        """Stop the threads."""
        self._engine.close()
