"""What quantizers add up of their own errors, while weights and codes are at hand.

Owns the sums that `quantize_error` defines, for 16 rows in the lanes of vectors. In float64,
in which a product of two weights is exact and six digits do not tell in which order it was
added.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.quantize_error import N_SUMS
from qllama.quant import TILE_ROWS

__all__ = ["compared", "no_sums", "store_sums"]

_ZERO = np.float64(0)


@njit
def no_sums() -> Any:
    """Sums over nothing."""
    zero = v.wide_splat(_ZERO)
    return zero, zero, zero, zero, zero


@njit
def compared(sums: Any, weight: Any, stored: Any) -> Any:
    """Add to `sums` what each lane's `weight` and its `stored` value tell."""
    w, s = v.wide(weight), v.wide(stored)
    square = (w - s) * (w - s)
    ww, ss, ws, squares, largest = sums
    return (
        v.wide_fma(w, w, ww),
        v.wide_fma(s, s, ss),
        v.wide_fma(w, s, ws),
        squares + square,
        v.wide_larger(square, largest),
    )


@njit
def store_sums(sums: Any, out: Any) -> None:
    """Write the sums over a tile, from those of its rows, to float64 `out` (5,)."""
    rows = np.empty((N_SUMS, TILE_ROWS), np.float64)
    for i in range(N_SUMS):
        v.wide_store(rows[i].ctypes.data, sums[i])
    for i in range(N_SUMS - 1):
        out[i] = rows[i].sum()
    # The root of a square of float64 is the number itself.
    out[N_SUMS - 1] = np.sqrt(rows[N_SUMS - 1].max())
