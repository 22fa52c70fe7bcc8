"""The compiled search of `q8_0` and `q4_0`, operation for operation `qllama.quant.scale_search`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels._jit import njit
from qllama.kernels.quantize_lanes import (
    CHUNK_BLOCKS,
    LANES,
    half_bits,
    half_value,
    load_chunk,
    load_importance,
    store_bytes,
    store_nibbles,
    weighted,
)
from qllama.quant import BLOCK, TILE_ROWS
from qllama.quant.scale_search import LARGEST_HALF

__all__ = ["quantize_scaled"]

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
def _search(
    x: Any, h: Any, starts: Any, least: Any, greatest: Any, codes: Any, best_scale: Any
) -> None:
    """Fill `best_scale` (64,) and uint8 `codes` (32, 64), counted from `least`.

    `x` is float32 (32, 64), and so is `h` unless it is None; `starts` are float32 (n,),
    `least` and `greatest` float32.
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
                hq = weighted(code, h, i, lane)
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
                error[lane] += weighted(difference * difference, h, i, lane)
        for lane in range(LANES):
            if error[lane] < best_error[lane]:
                best_error[lane] = error[lane]
                best_scale[lane] = scale[lane]
    _invert(best_scale, inverse)
    for i in range(BLOCK):
        for lane in range(LANES):
            code = _code(x[i, lane], inverse[lane], least, greatest)
            codes[i, lane] = np.uint8(code - least)


@njit
def _store_scales(scale: Any, lane: int, out: Any) -> None:
    """Store the scales (64,) of the 16 lanes from `lane` on as 32 bytes of float16."""
    bits, halves = scale.view(np.uint32), out.view(np.uint16)
    for r in range(TILE_ROWS):
        halves[r] = half_bits(bits[lane + r])


@njit
def quantize_scaled(bits: Any, starts: Any, w: Any, tiles: Any, h: Any) -> None:
    """Quantize float32 `w` (rows, k) into uint8 `tiles` (tiles, bytes of a tile).

    `bits` are those of a code, 4 or 8, `starts` float32 (n,) those of the codec, and `h` is
    float32 (k padded,), as `block_importance` gives it, or None.
    """
    greatest = np.float32((1 << (bits - 1)) - 1)
    least = -greatest - _ONE
    code_n_bytes = bits * BLOCK * TILE_ROWS // 8
    block_n_bytes = code_n_bytes + 2 * TILE_ROWS
    n_blocks = -(-w.shape[1] // BLOCK)
    x, codes = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.uint8)
    chunk_h = None if h is None else np.empty((BLOCK, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    for tile in range(len(tiles)):
        for first in range(0, n_blocks, CHUNK_BLOCKS):
            load_chunk(w, tile * TILE_ROWS, first, x)
            load_importance(h, first, chunk_h)
            _search(x, chunk_h, starts, least, greatest, codes, scale)
            for block in range(first, min(first + CHUNK_BLOCKS, n_blocks)):
                lane = (block - first) * TILE_ROWS
                stored = tiles[tile, block * block_n_bytes : (block + 1) * block_n_bytes]
                if bits == 4:
                    store_nibbles(codes, lane, stored)
                else:
                    store_bytes(codes, lane, stored)
                _store_scales(scale, lane, stored[code_n_bytes:])
