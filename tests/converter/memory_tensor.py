"""A source tensor over an array in memory."""

from __future__ import annotations

import numpy as np

from converter.sources.base import SourceTensor


class MemoryTensor(SourceTensor):
    def __init__(self, where: str, values: np.ndarray) -> None:
        self._values = values
        self.where = where
        self.shape = values.shape
        self.source_type = values.dtype.name
        self.n_bytes = values.nbytes

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= self.shape[0]
        return np.array(self._values[start:stop], np.float32)
