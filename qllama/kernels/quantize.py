"""Compiled quantizers: the codecs of `qllama.quant`, bit for bit, in parallel.

Owns speed and nothing else: what a weight type is, its codec defines, and every
function here repeats that codec's float32 operations one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.kernels._jit import njit
from qllama.kernels.quantize_affine import quantize_affine
from qllama.kernels.quantize_error import N_SUMS, quantization_error
from qllama.kernels.quantize_scale import quantize_scaled
from qllama.quant import TILE_ROWS, FloatCodec, codec, matrix_n_bytes
from qllama.quant.affine import starts as affine_starts
from qllama.quant.importance import block_importance
from qllama.quant.q4_0 import Q4_0Codec
from qllama.quant.q8_0 import Q8_0Codec

__all__ = ["quantize", "quantize_measured"]


def quantize(
    type_name: str,
    w: npt.NDArray[np.float32],
    n_threads: int,
    importance: npt.NDArray[np.float32] | None = None,
    *,
    fast: bool = False,
) -> npt.NDArray[np.uint8]:
    """Quantize a matrix to its tile16 storage, as `codec(type_name).quantize` does.

    Parameters
    ----------
    type_name : str
        One of `qllama.quant.QUANT_TYPES`.
    w : float32, (rows, k)
        C-contiguous; may be read-only.
    n_threads : int
        At most this many threads work; the result does not depend on it.
    importance : float32, (k,), or None
        As the codec's `quantize` takes it.
    fast : bool
        As there.

    Returns
    -------
    uint8, (matrix_n_bytes(type_name, rows, k),)

    Raises
    ------
    ConversionError
        When a weight is NaN, infinite or too large for the type, or `importance` is not
        what `block_importance` takes.
    UnsupportedModelError
        When there is no such type.
    """
    return _quantized(type_name, w, n_threads, importance, fast)[0]


def quantize_measured(
    type_name: str,
    w: npt.NDArray[np.float32],
    n_threads: int,
    importance: npt.NDArray[np.float32] | None = None,
    *,
    fast: bool = False,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Quantize a matrix, and tell what that costs, which a search knows as it ends.

    Parameters
    ----------
    type_name, n_threads, fast
        As for `quantize`.
    w : float32, (rows, k)
        As there.
    importance : float32, (k,), or None
        As there.

    Returns
    -------
    data : uint8, (matrix_n_bytes(type_name, rows, k),)
    errors : float64, (rows / 16 rounded up, 5)
        As `quantization_error` gives them, but for the order of sums.

    Raises
    ------
    ConversionError, UnsupportedModelError
        As `quantize`.
    """
    data, errors = _quantized(type_name, w, n_threads, importance, fast)
    if isinstance(codec(type_name), FloatCodec):
        errors = quantization_error(type_name, w, data)
    return data, errors


def _quantized(
    type_name: str,
    w: npt.NDArray[np.float32],
    n_threads: int,
    importance: npt.NDArray[np.float32] | None,
    fast: bool,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Do what `quantize_measured` does; the float types leave their errors as they are."""
    found = codec(type_name)
    found.check_weights(w)
    h = None if importance is None else block_importance(importance, w.shape[1])
    w = np.ascontiguousarray(w).view()
    # numba compiles anew for every combination of flags: let there be only one.
    w.flags.writeable = False
    # The float types write no padding.
    new = np.zeros if isinstance(found, FloatCodec) else np.empty
    tiles = found.tiles(new(matrix_n_bytes(type_name, *w.shape), np.uint8), *w.shape)
    errors = np.empty((len(tiles), N_SUMS))
    n_parts = max(1, min(n_threads, len(tiles)))
    bounds = [len(tiles) * part // n_parts for part in range(n_parts + 1)]

    def work(part: int) -> None:
        first, last = bounds[part], bounds[part + 1]
        slab = w[first * TILE_ROWS : last * TILE_ROWS]
        if isinstance(found, FloatCodec):
            bits = f"u{found.dtype.itemsize}"
            _interleave(slab.astype(found.dtype).view(bits), tiles[first:last].view(bits))
        else:
            kernel, n_bits, starts = _SEARCHES[type_name]
            starts = starts[:1] if fast else starts
            kernel(n_bits, starts, slab, tiles[first:last], h, errors[first:last])

    if n_parts == 1:
        work(0)
    else:
        with ThreadPoolExecutor(n_parts) as pool:
            list(pool.map(work, range(n_parts)))
    return tiles.reshape(-1), errors


@njit
def _interleave(values: Any, tiles: Any) -> None:
    """Put `values` (rows, k) of any type side by side in tiles (tiles, 16 k padded)."""
    for row in range(len(values)):
        for column in range(values.shape[1]):
            at = column * TILE_ROWS + row % TILE_ROWS
            tiles[row // TILE_ROWS, at] = values[row, column]


#: Of each type the kernel, the bits of a code, and the starts of the search.
_SEARCHES: dict[str, tuple[Callable[..., None], int, npt.NDArray[np.float32]]] = {
    "q8_0": (quantize_scaled, 8, Q8_0Codec.starts),
    "q4_0": (quantize_scaled, 4, Q4_0Codec.starts),
    "q4": (quantize_affine, 4, affine_starts(4)),
    "q5": (quantize_affine, 5, affine_starts(5)),
    "q6": (quantize_affine, 6, affine_starts(6)),
}
