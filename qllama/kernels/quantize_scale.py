"""The compiled search for a float16 scale, operation for operation `qllama.quant.scale_search`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels._jit import njit
from qllama.kernels.quantize_lanes import LANES, half_bits, half_value
from qllama.quant import BLOCK
from qllama.quant.scale_search import LARGEST_HALF

__all__ = ["search_scale"]

_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


@njit
def _code(x: Any, inverse: Any, least: Any, greatest: Any) -> Any:
    code = np.rint(x * inverse)
    code = code if code > least else least
    return code if code < greatest else greatest


@njit
def _invert(scale: Any, inverse: Any) -> None:
    for lane in range(LANES):
        usable = abs(scale[lane]) >= _SMALLEST_NORMAL
        inverse[lane] = _ONE / scale[lane] if usable else _ZERO


@njit
def _round_to_halves(scale: Any) -> None:
    bits = scale.view(np.uint32)
    for lane in range(LANES):
        scale[lane] = min(max(scale[lane], -LARGEST_HALF), LARGEST_HALF)
        scale[lane] = half_value(half_bits(bits[lane]))


@njit
def search_scale(
    x: Any, h: Any, starts: Any, least: Any, greatest: Any, codes: Any, best_scale: Any
) -> None:
    """Fill `best_scale` (64,) and uint8 `codes` (32, 64), counted from `least`.

    `x` and `h` are float32 (32, 64), `starts` float32 (16,), `least` and `greatest` float32.
    """
    largest, scale, inverse = best_scale.copy(), best_scale.copy(), best_scale.copy()
    sum_xq, sum_qq = best_scale.copy(), best_scale.copy()
    error, best_error = best_scale.copy(), best_scale.copy()
    largest[:] = x[0]
    for i in range(BLOCK):
        for lane in range(LANES):
            value, before = x[i, lane], largest[lane]
            largest[lane] = value if abs(value) > abs(before) else before
    best_error[:] = _INFINITY
    best_scale[:] = _ZERO
    for start in starts:
        for lane in range(LANES):
            scale[lane] = largest[lane] / start
            sum_xq[lane] = sum_qq[lane] = error[lane] = _ZERO
        _invert(scale, inverse)
        for i in range(BLOCK):
            for lane in range(LANES):
                code = _code(x[i, lane], inverse[lane], least, greatest)
                hq = h[i, lane] * code
                sum_xq[lane] += hq * x[i, lane]
                sum_qq[lane] += hq * code
        for lane in range(LANES):
            if sum_qq[lane] > _ZERO:
                scale[lane] = sum_xq[lane] / sum_qq[lane]
        _round_to_halves(scale)
        _invert(scale, inverse)
        for i in range(BLOCK):
            for lane in range(LANES):
                code = _code(x[i, lane], inverse[lane], least, greatest)
                difference = scale[lane] * code - x[i, lane]
                error[lane] += h[i, lane] * (difference * difference)
        for lane in range(LANES):
            if error[lane] < best_error[lane]:
                best_error[lane] = error[lane]
                best_scale[lane] = scale[lane]
    _invert(best_scale, inverse)
    for i in range(BLOCK):
        for lane in range(LANES):
            code = _code(x[i, lane], inverse[lane], least, greatest)
            codes[i, lane] = np.uint8(code - least)
