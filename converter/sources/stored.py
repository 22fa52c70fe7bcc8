"""Arrays as they lie in files, row by row.

Owns the reading of plain numbers; knows no checkpoint format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.sources.base import SourceTensor
from converter.sources.reading import fill
from qllama.errors import ConversionError

__all__ = ["Extent", "StoredArray"]


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `offset` .. `offset + n_bytes - 1` of a file."""

    offset: int
    n_bytes: int


class StoredArray(SourceTensor):
    """A C-contiguous array in one file, in one piece or in several that follow each other.

    Parameters
    ----------
    where : str
        See `SourceTensor`.
    path : Path
        The file; it must not change while the array is in use.
    dtype : numpy dtype
        Little-endian; `ml_dtypes.bfloat16` too.
    shape : tuple of int
        One or two dimensions.
    extents : sequence of Extent
        Where the bytes lie, in order; a piece may end inside a row. Together they have
        exactly the bytes of the shape.

    Raises
    ------
    ConversionError
        When they have not.
    """

    def __init__(
        self,
        where: str,
        path: Path,
        dtype: npt.DTypeLike,
        shape: tuple[int, ...],
        extents: Sequence[Extent],
    ) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._extents = tuple(extents)
        self.where = where
        self.shape = shape
        self.source_type = self._dtype.name
        self.n_bytes = sum(e.n_bytes for e in extents)
        expected = math.prod(shape) * self._dtype.itemsize
        if self.n_bytes != expected:
            raise ConversionError(
                f"{where}: expected {expected} bytes for {self.source_type} {shape}, "
                f"found {self.n_bytes}"
            )

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        stored = self.read_stored(start, stop)
        if stored.dtype == np.float16:
            from qllama.kernels.halves import halves_to_floats

            return halves_to_floats(stored.view(np.float16))
        return stored.astype(np.float32)

    def read_stored(self, start: int, stop: int) -> npt.NDArray[np.generic]:
        """Read rows `start` to `stop` - 1 in the type they are stored in.

        Returns
        -------
        array of the stored dtype, (stop - start, *shape[1:])
        """
        row = math.prod(self.shape[1:]) * self._dtype.itemsize
        raw = np.empty((stop - start) * row, np.uint8)
        fill(self.where, self._path, self._pieces(start * row, raw.data))
        return raw.view(self._dtype).reshape(stop - start, *self.shape[1:])

    def _pieces(self, start: int, wanted: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield where the array's bytes from `start` on lie in the file, piece by piece."""
        for extent in self._extents:
            begin = min(start, extent.n_bytes)
            start -= begin
            n_bytes = min(len(wanted), extent.n_bytes - begin)
            yield extent.offset + begin, wanted[:n_bytes]
            wanted = wanted[n_bytes:]
        assert not wanted, "rows past the end"
