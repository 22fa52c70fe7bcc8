"""What storing a matrix in a weight type costs: sums over the differences.

Owns the comparison of weights with what their stored tiles stand for. Reads tiles through
`embedding`, which is bit-equal to the codecs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.kernels._jit import njit
from qllama.kernels.embedding import embed_row
from qllama.kernels.weight_kernels import WEIGHT_KERNELS
from qllama.quant import BLOCK, TILE_ROWS, codec

__all__ = ["N_SUMS", "decode_rows", "quantization_error"]

N_SUMS = 5
_INDEX = {kernel.name: index for index, kernel in enumerate(WEIGHT_KERNELS)}
_ZERO = np.float64(0)


def quantization_error(
    type_name: str, w: npt.NDArray[np.float32], data: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """Compare a matrix with its storage, tile by tile.

    Parameters
    ----------
    type_name : str
        One of `qllama.quant.QUANT_TYPES`.
    w : float32, (rows, k)
        What was stored; finite.
    data : uint8, (matrix_n_bytes(type_name, rows, k),)
        How it was stored.

    Returns
    -------
    float64, (rows / 16 rounded up, 5)
        Of each tile, with v the stored values: the sums of w w, v v, w v and (w - v)**2,
        and the largest |w - v|.
    """
    tiles = _read_only(codec(type_name).tiles(data, *w.shape))
    sums = np.zeros((len(tiles), N_SUMS))
    _error_sums(_INDEX[type_name], _read_only(np.ascontiguousarray(w)), tiles, sums)
    return sums


def decode_rows(
    type_name: str, data: npt.NDArray[np.uint8], rows: int, k: int
) -> npt.NDArray[np.float32]:
    """Decode a matrix as its codec's `dequantize` does, faster.

    Parameters
    ----------
    type_name : str
        One of `qllama.quant.QUANT_TYPES`.
    data : uint8, (matrix_n_bytes(type_name, rows, k),)
        Its storage, or that of some tiles of a larger one.
    rows, k : int
        Without padding.

    Returns
    -------
    float32, (rows, k)
    """
    tiles = _read_only(codec(type_name).tiles(data, rows, k))
    padded = np.empty((rows, -(-k // BLOCK) * BLOCK), np.float32)
    _decode(_INDEX[type_name], tiles, padded)
    return np.ascontiguousarray(padded[:, :k])


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # numba compiles anew for every combination of flags: let there be only one.
    array = array.view()
    array.flags.writeable = False
    return array


@njit
def _decode(kernel_index: Any, tiles: Any, out: Any) -> None:
    """Write the rows of `tiles` (tiles, bytes of a tile) to float32 `out` (rows, k padded)."""
    for row in range(len(out)):
        _decode_row(kernel_index, tiles, row, out[row])


@njit
def _decode_row(kernel_index: Any, tiles: Any, row: Any, out: Any) -> None:
    tile = tiles.ctypes.data + row // TILE_ROWS * tiles.shape[1]
    embed_row(kernel_index, tile, row % TILE_ROWS, len(out) // BLOCK, out.ctypes.data)


@njit
def _error_sums(kernel_index: Any, w: Any, tiles: Any, sums: Any) -> None:
    rows, k = w.shape
    decoded = np.empty(-(-k // BLOCK) * BLOCK, np.float32)
    # Sums of every 32nd column side by side, which becomes SIMD code.
    lanes = np.empty((N_SUMS, BLOCK), np.float64)
    for row in range(rows):
        _decode_row(kernel_index, tiles, row, decoded)
        lanes[:] = _ZERO
        for first in range(0, k - k % BLOCK, BLOCK):
            for i in range(BLOCK):
                _add(lanes, i, np.float64(w[row, first + i]), np.float64(decoded[first + i]))
        for i in range(k % BLOCK):
            column = k - k % BLOCK + i
            _add(lanes, i, np.float64(w[row, column]), np.float64(decoded[column]))
        of_tile = sums[row // TILE_ROWS]
        for i in range(BLOCK):
            for s in range(N_SUMS - 1):
                of_tile[s] += lanes[s, i]
            of_tile[N_SUMS - 1] = max(of_tile[N_SUMS - 1], lanes[N_SUMS - 1, i])


@njit
def _add(lanes: Any, i: Any, w: Any, v: Any) -> None:
    difference = abs(w - v)
    lanes[0, i] += w * w
    lanes[1, i] += v * v
    lanes[2, i] += w * v
    lanes[3, i] += difference * difference
    lanes[4, i] = difference if difference > lanes[4, i] else lanes[4, i]
