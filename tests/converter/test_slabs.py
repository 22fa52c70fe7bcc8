"""Slabs on their way from a source to the writer: how many there are at once."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

from converter import slabs
from converter.slabs import encoded, slabs_of
from converter.sources.base import SourceTensor
from qllama.format.spec import TensorSpec
from qllama.kernels.quantize import quantize_measured

ROWS, COLUMNS, N_SLABS = 32, 64, 40


class Alive:
    """Counts arrays until nobody holds them, and keeps the most there were."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def watch(self, array: np.ndarray) -> np.ndarray:
        self._add(1)
        weakref.finalize(array, self._add, -1)
        return array

    def _add(self, n: int) -> None:
        with self._lock:
            self.now += n
            self.most = max(self.most, self.now)


class Watched(SourceTensor):
    """A matrix of zeros whose slabs are counted as they are handed out."""

    def __init__(self, alive: Alive) -> None:
        self._alive = alive
        self.where = "zeros"
        self.shape = (ROWS * N_SLABS, COLUMNS)
        self.source_type = "F32"
        self.n_bytes = ROWS * N_SLABS * COLUMNS * 4

    def read(self, start: int, stop: int) -> np.ndarray:
        assert stop - start == ROWS
        return self._alive.watch(np.zeros((ROWS, COLUMNS), np.float32))


@pytest.mark.parametrize("type_name", ["q4", "q8_0", "f32"])
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_encoded_holds_few_slabs_however_many_there_are(monkeypatch, type_name, n_threads):
    read, made = Alive(), Alive()
    monkeypatch.setattr(slabs, "_SLAB_VALUES", ROWS * COLUMNS)

    def measured(*args, **fast):
        data, errors = quantize_measured(*args, **fast)
        return made.watch(data), errors

    monkeypatch.setattr(slabs, "quantize_measured", measured)
    tensor = Watched(read)
    stream = encoded(slabs_of(tensor, TensorSpec("a", type_name, tensor.shape)), n_threads)
    assert sum(1 for _ in stream) == N_SLABS
    # What was made of a slab waits with that of twice as many as threads, and one more, while
    # the caller still has the one before.
    assert read.most <= n_threads
    assert made.most <= 2 * n_threads + 2
    assert (read.now, made.now) == (0, 0)
