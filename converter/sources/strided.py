"""Matrices that are views into larger ones, as they lie in files.

Owns the reading of rows or columns that lie apart; knows no checkpoint format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.sources.base import SourceTensor
from converter.sources.reading import fill

__all__ = ["StridedArray"]


class StridedArray(SourceTensor):
    """A matrix whose rows, or whose columns, lie in one piece each and apart from each other.

    Parameters
    ----------
    where : str
        See `SourceTensor`.
    path : Path
        The file; it must not change while the array is in use.
    dtype : numpy dtype
        Little-endian.
    shape : (rows, k)
    strides : (int, int)
        Elements from a row to the next, and from a column to the next; one of them is 1.
    offset : int
        Byte of element (0, 0) in the file.
    """

    def __init__(
        self,
        where: str,
        path: Path,
        dtype: npt.DTypeLike,
        shape: tuple[int, int],
        strides: tuple[int, ...],
        offset: int,
    ) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._strides = strides
        self._offset = offset
        self.where = where
        self.shape = shape
        self.source_type = self._dtype.name
        self.n_bytes = shape[0] * shape[1] * self._dtype.itemsize

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        row, column = self._strides
        if column == 1:
            values = self._runs(start * row, row, stop - start, self.shape[1])
        else:
            values = self._runs(start, column, self.shape[1], stop - start).T
        return np.ascontiguousarray(values, np.float32)

    def _runs(self, first: int, stride: int, n: int, length: int) -> npt.NDArray[np.generic]:
        """Read `n` runs of `length` elements, `stride` elements apart."""
        size = self._dtype.itemsize
        values = np.empty((n, length), self._dtype)
        places = (self._offset + (first + i * stride) * size for i in range(n))
        runs = (run.data for run in values.view(np.uint8))
        fill(self.where, self._path, zip(places, runs, strict=True))
        return values
