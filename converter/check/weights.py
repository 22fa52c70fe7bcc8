"""Weights in float32, a slab of rows at a time: of the source, and of the file made from it.

Owns the reading. No matrix is mapped, so that memory stays at a slab.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from converter.in_order import in_order
from converter.sources.base import SourceTensor
from qllama.config import ModelConfig
from qllama.format import QlmFile
from qllama.kernels.cores import default_n_threads
from qllama.kernels.quantize_error import decode_rows
from qllama.quant import TILE_ROWS

__all__ = ["SourceWeights", "StoredWeights", "Weights", "of_any_weights", "on_own_threads"]

F32 = npt.NDArray[np.float32]
_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")
# 2 MiB as float32: stays in cache from where it is decoded to where it is multiplied.
_SLAB_VALUES = 1 << 19
# Where weights are damaged, infinities and NaNs are what the caller looks for.
of_any_weights = np.errstate(over="ignore", invalid="ignore")


def on_own_threads(function: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """Have BLAS multiply on the thread that calls it, while `function` runs.

    Its own threads wait for more by spinning, on the cores that those that decode need; and
    where others work on them too, each product waits until its last thread had its turn.
    """

    @wraps(function)
    def limited(*args: _Given.args, **kwargs: _Given.kwargs) -> _Returned:
        with _blas().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


class Weights(ABC):
    """A model's tensors.

    Parameters
    ----------
    config : ModelConfig
    shapes : mapping
        Of every tensor, by its name.
    """

    def __init__(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.config = config
        self.shapes = shapes

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> F32:
        """Decode rows `start` to `stop` - 1 of a matrix, `start` a multiple of 16.

        Returns
        -------
        float32, (stop - start, k)
        """

    @abstractmethod
    def vector(self, name: str) -> F32:
        """Decode a vector, float32 (n,)."""

    def rows(self, name: str, ids: Sequence[int]) -> F32:
        """Decode single rows of a matrix, float32 (len(ids), k)."""
        n_rows = self.shapes[name][0]
        values = np.empty((len(ids), self.shapes[name][1]), np.float32)
        for i, row in enumerate(ids):
            first = row - row % TILE_ROWS
            values[i] = self.read(name, first, min(first + TILE_ROWS, n_rows))[row - first]
        return values

    def slabs(self, name: str) -> Iterator[tuple[int, F32]]:
        """Decode a matrix: yield the number of the first row, and float32 (rows, k)."""
        for first, last in self._bounds(name):
            yield first, self.read(name, first, last)

    def _bounds(self, name: str) -> Iterator[tuple[int, int]]:
        rows, k = self.shapes[name]
        step = max(1, _SLAB_VALUES // (TILE_ROWS * k)) * TILE_ROWS
        for first in range(0, rows, step):
            yield first, min(first + step, rows)

    def linear(self, x: F32, name: str) -> F32:
        """Multiply by a matrix: `x @ w.T`, with its bias where the model has one.

        On several threads, of which each should multiply alone: see `on_own_threads`.

        Parameters
        ----------
        x : float32, (n, k)
        name : str
            Without `.weight`.

        Returns
        -------
        float32, (n, rows)
        """
        matrix = name + ".weight"
        out = np.empty((len(x), self.shapes[matrix][0]), np.float32)

        @of_any_weights
        def multiply(first: int, last: int) -> None:
            np.matmul(x, self.read(matrix, first, last).T, out=out[:, first:last])

        jobs = (partial(multiply, *bounds) for bounds in self._bounds(matrix))
        for _ in in_order(jobs, default_n_threads()):
            pass
        if name + ".bias" in self.shapes:
            out += self.vector(name + ".bias")
        return out


class SourceWeights(Weights):
    """Tensors of a checkpoint, before quantizing; see `Weights`."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> None:
        super().__init__(config, {name: t.shape for name, t in tensors.items()})
        self._tensors = tensors

    def read(self, name: str, start: int, stop: int) -> F32:
        """Decode rows; see `Weights.read`."""
        return self._tensors[name].read(start, stop)

    def vector(self, name: str) -> F32:
        """Decode a vector; see `Weights.vector`."""
        return self._tensors[name].read(0, self.shapes[name][0])


class StoredWeights(Weights):
    """Tensors of a `.qlm` file; see `Weights`."""

    def __init__(self, file: QlmFile) -> None:
        super().__init__(file.config, {name: t.shape for name, t in file.tensors.items()})
        self._file = file

    def read(self, name: str, start: int, stop: int) -> F32:
        """Decode rows; see `Weights.read`."""
        info = self._file.tensors[name]
        rows, k = info.shape
        tile_bytes = info.n_bytes // math.ceil(rows / TILE_ROWS)
        first, n_tiles = start // TILE_ROWS, math.ceil((stop - start) / TILE_ROWS)
        # Read, since pages of a mapping would count as this process' memory.
        data = np.fromfile(
            self._file.path,
            np.uint8,
            count=n_tiles * tile_bytes,
            offset=self._file.data_offset + info.offset + first * tile_bytes,
        )
        return decode_rows(info.type, data, stop - start, k)

    def vector(self, name: str) -> F32:
        """Decode a vector; see `Weights.vector`."""
        return self._file.vector(name)
