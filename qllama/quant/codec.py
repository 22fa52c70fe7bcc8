"""What every codec offers, and the checks they share.

Owns the base class and the refusal of weights that a type cannot hold. Each
weight type is a subclass in a file of its own; `registry` finds them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.errors import BadTensorError, ConversionError
from qllama.quant.importance import block_importance
from qllama.quant.tile16 import pad_matrix
from qllama.quant.types import TILE_ROWS, QuantType, matrix_n_bytes, padded_shape

__all__ = ["BlockCodec", "Codec", "Grid"]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class Codec(ABC):
    """One weight type: float32 matrices to tile16 bytes and back.

    This is the definition. Compiled code must give the same bits, so a subclass
    fixes every float32 operation and its order; sums start at 0 and take the 32
    elements of a block in order.

    Parameters
    ----------
    kind : QuantType
    max_magnitude : float
        The largest |weight| the type can hold; larger ones are refused.
    """

    def __init__(self, kind: QuantType, max_magnitude: float) -> None:
        self.kind = kind
        self.max_magnitude = max_magnitude

    def check_weights(self, w: Float32) -> None:
        """Refuse what cannot be quantized to this type.

        Parameters
        ----------
        w : float32, (rows, k)

        Raises
        ------
        ConversionError
            When `w` is not a float32 matrix, or holds a NaN, an infinity or a weight
            beyond `max_magnitude`; names the first such weight.
        """
        if w.dtype != np.float32 or w.ndim != 2:
            raise ConversionError(
                f"weights for {self.kind.name}: expected float32 (rows, k), "
                f"found {w.dtype} {w.shape}"
            )
        if w.size == 0:
            raise ConversionError(
                f"weights for {self.kind.name}: expected at least one, found {w.shape}"
            )
        # NaN makes both comparisons false; two reductions need no temporary array.
        if w.max() <= self.max_magnitude and w.min() >= -self.max_magnitude:
            return
        row, column = np.argwhere(~(np.abs(w) <= self.max_magnitude))[0]
        found = w[row, column]
        advice = "choose bf16 or f32" if np.isfinite(found) else "the checkpoint is damaged"
        raise ConversionError(
            f"weight [{row}, {column}]: expected a finite number of magnitude at most "
            f"{self.max_magnitude:g} for {self.kind.name}, found {found}; {advice}"
        )

    def quantize(
        self, w: Float32, importance: Float32 | None = None, *, fast: bool = False
    ) -> UInt8:
        """Quantize a matrix to its tile16 storage.

        Parameters
        ----------
        w : float32, (rows, k)
        importance : float32, (k,), or None
            Weights of the squared errors in each column, where the type has a choice: only
            their ratios inside a block of 32 count. None weights all alike.
        fast : bool
            Whether to take the first start of a search, whatever others would give.

        Returns
        -------
        uint8, (matrix_n_bytes(kind.name, rows, k),)
            Padding holds what zero weights quantize to. A slab of a multiple of 16 rows
            gives exactly the bytes of its tiles, so slabs concatenate.

        Raises
        ------
        ConversionError
            As `check_weights`, and as `block_importance`.
        """
        self.check_weights(w)
        h = None if importance is None else block_importance(importance, w.shape[1])
        return np.ascontiguousarray(self._encode(pad_matrix(w, 0), h, fast)).reshape(-1)

    def dequantize(self, data: UInt8, rows: int, k: int) -> Float32:
        """Decode the tile16 storage of a matrix.

        Parameters
        ----------
        data : uint8, (matrix_n_bytes(kind.name, rows, k),)
        rows, k : int
            Without padding.

        Returns
        -------
        float32, (rows, k)

        Raises
        ------
        BadTensorError
            When `data` is not of the size that the shape gives.
        """
        return np.ascontiguousarray(self._decode(self.tiles(data, rows, k))[:rows, :k])

    def tiles(self, data: UInt8, rows: int, k: int) -> UInt8:
        """View the storage of a (rows, k) matrix tile by tile.

        Parameters
        ----------
        data : uint8, (matrix_n_bytes(kind.name, rows, k),)
        rows, k : int
            Without padding.

        Returns
        -------
        uint8, (tiles, bytes of a tile)
            Shares memory with `data`.

        Raises
        ------
        BadTensorError
            When `data` is not of the size that the shape gives.
        """
        expected = matrix_n_bytes(self.kind.name, rows, k)
        if data.dtype != np.uint8 or data.shape != (expected,):
            raise BadTensorError(
                f"{self.kind.name} matrix of {rows} x {k}: expected {expected} bytes, "
                f"found {data.dtype} {data.shape}"
            )
        return data.reshape(padded_shape(rows, k)[0] // TILE_ROWS, -1)

    @abstractmethod
    def _encode(self, w: Float32, h: Float32 | None, fast: bool) -> npt.NDArray[Any]:
        """Encode padded, checked weights; the bytes in order, in any shape.

        Parameters
        ----------
        w : float32, (rows, k)
        h : float32, (k,), or None
            As `block_importance` gives it.
        fast : bool
        """

    @abstractmethod
    def _decode(self, tiles: UInt8) -> Float32:
        """Decode uint8 (tiles, bytes of a tile) to float32, padding included."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that the weights of a quantized matrix could have had.

    Parameters
    ----------
    scales, offsets : float32, (blocks, rows)
        A weight is scale * code - offset, of its row's block.
    greatest : int
        Codes are 0 to it.
    """

    scales: Float32
    offsets: Float32
    greatest: int


class BlockCodec(Codec):
    """A type whose weights are codes on a grid for each block of 32."""

    @abstractmethod
    def grid(self, data: UInt8, rows: int, k: int) -> Grid:
        """Read the grids of a quantized matrix.

        Parameters
        ----------
        data : uint8, (matrix_n_bytes(kind.name, rows, k),)
        rows, k : int
            Without padding.
        """

    @abstractmethod
    def with_codes(self, data: UInt8, codes: UInt8) -> UInt8:
        """Store other codes on the same grids.

        Parameters
        ----------
        data : uint8, (matrix_n_bytes(kind.name, rows, k),)
            The grids.
        codes : uint8, (rows, k)
            As `Grid` counts them.

        Returns
        -------
        uint8, (matrix_n_bytes(kind.name, rows, k),)
        """
