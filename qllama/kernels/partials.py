"""Partial results of attention: what the queries found in some of the positions they see.

A partial is float32: a head's output over those positions (head_size,), not yet divided
by the sum of the weights; their greatest score; and that sum. It stands at an address.
Partials are merged in order of position: Dao 2023, "FlashAttention-2", eq. 2-4.
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import inlined, njit
from qllama.quant.types import TILE_ROWS

__all__ = ["merge_partial", "partial_bytes", "reset_partial", "write_output"]

_FLOAT = 4


@inlined
def partial_bytes(head_size):
    """Bytes of a partial: float32 output (head_size,), then maximum and sum of weights."""
    return _FLOAT * (head_size + TILE_ROWS)


@njit
def reset_partial(partial, head_size):
    """Make the partial at this address that of no positions."""
    v.store_scalar(partial + _FLOAT * (head_size + 1), np.float32(0.0))


@njit
def merge_partial(merged, partial, head_size):
    """Merge the partial of the next positions into that of all before, by address."""
    summary, other = merged + _FLOAT * head_size, partial + _FLOAT * head_size
    total = v.load_scalar(summary + _FLOAT)
    other_total = v.load_scalar(other + _FLOAT)
    if other_total == 0:
        return
    if total == 0:
        for i in range(0, partial_bytes(head_size), 64):
            v.store(merged + i, v.load(partial + i))
        return
    maximum, other_maximum = v.load_scalar(summary), v.load_scalar(other)
    largest = max(maximum, other_maximum)
    keep = v.exp(v.splat(maximum - largest))
    add = v.exp(v.splat(other_maximum - largest))
    for i in range(0, _FLOAT * head_size, 64):
        v.store(merged + i, v.load(merged + i) * keep + v.load(partial + i) * add)
    v.store_scalar(summary, largest)
    rescaled = v.splat(total) * keep + v.splat(other_total) * add
    v.store_scalar(summary + _FLOAT, v.reduce_max(rescaled))


@njit
def write_output(partial, out, head_dim, head_size):
    """Write the attention output of a merged partial: float32, (head_dim,), to `out`."""
    factor = np.float32(1.0) / v.load_scalar(partial + _FLOAT * (head_size + 1))
    whole = head_dim // v.LANES * v.LANES
    for i in range(0, _FLOAT * whole, 64):
        v.store(out + i, v.load(partial + i) * v.splat(factor))
    for i in range(whole, head_dim):
        v.store_scalar(out + _FLOAT * i, v.load_scalar(partial + _FLOAT * i) * factor)
