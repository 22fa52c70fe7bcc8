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
    for i in range(half):
        c = v.load_scalar(cos + 4 * i)
        s = v.load_scalar(sin + 4 * i)
        first = v.load_scalar(head + 4 * i)
        second = v.load_scalar(head + 4 * (i + half))
        v.store_scalar(head + 4 * i, first * c - second * s)
        v.store_scalar(head + 4 * (i + half), second * c + first * s)
