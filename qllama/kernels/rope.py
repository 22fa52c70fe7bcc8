"""Rotary embedding of one head, in place. Definition: `reference.rope`."""

from __future__ import annotations

from qllama.kernels import vector as v
from qllama.kernels._jit import njit

__all__ = ["rope"]


@njit
def rope(head, cos, sin, head_dim):
    """Turn pair (i, i + head_dim / 2) of the float32 head at address `head` by angle i.

    `cos` and `sin` are addresses of float32, (head_dim / 2,).
    """
    half = head_dim // 2
    other = head + 4 * half
    whole = half // v.LANES * v.LANES
    for i in range(0, 4 * whole, 4 * v.LANES):
        c, s = v.load(cos + i), v.load(sin + i)
        first, second = v.load(head + i), v.load(other + i)
        v.store(head + i, first * c - second * s)
        v.store(other + i, second * c + first * s)
    for i in range(4 * whole, 4 * half, 4):
        c, s = v.load_scalar(cos + i), v.load_scalar(sin + i)
        first, second = v.load_scalar(head + i), v.load_scalar(other + i)
        v.store_scalar(head + i, first * c - second * s)
        v.store_scalar(other + i, second * c + first * s)
