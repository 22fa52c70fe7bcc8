"""Root mean square norm of one row. Definition: `reference.rms_norm`."""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit

__all__ = ["rms_norm"]


@njit
def rms_norm(x, weight, out, n, n_padded, eps):
    """Write `weight * x / sqrt(mean(x**2) + eps)` to address `out`.

    Parameters
    ----------
    x, weight, out : int64
        Addresses of float32, (n_padded,), zero from element n on; `out` may be `x`.
    n, n_padded : int64
        Elements, and elements rounded up to a multiple of 16.
    eps : float32
    """
    squares = v.splat(np.float32(0.0))
    for i in range(0, 4 * n_padded, 64):
        values = v.load(x + i)
        squares = v.fma(values, values, squares)
    mean = v.reduce_add(squares) / np.float32(n)
    factor = v.splat(np.float32(1.0) / np.sqrt(mean + eps))
    for i in range(0, 4 * n_padded, 64):
        v.store(out + i, v.load(x + i) * factor * v.load(weight + i))
