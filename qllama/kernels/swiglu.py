"""Gated activation of the feed-forward layer. Definition: `reference.swiglu`."""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit

__all__ = ["swiglu"]


@njit
def swiglu(gate, up, out):
    """Write `silu(gate) * up` of 16 float32 each, by address; `out` may be either."""
    one = v.splat(np.float32(1.0))
    g = v.load(gate)
    denominator = one + v.exp(v.splat(np.float32(0.0)) - g)
    v.store(out, g / denominator * v.load(up))
