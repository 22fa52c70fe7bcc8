"""The compiled search of `q8_0` and `q4_0`, operation for operation `qllama.quant.scale_search`.

As in `quantize_affine`, one value here is a number for each of 16 blocks side by side, and `x`
and `h` are the addresses of their weights and of their columns' importance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.quantize_lanes import (
    CHUNK_BLOCKS,
    CHUNK_ROW,
    LANES,
    importance_of,
    load_chunk,
    rounded,
    store_eights,
    store_nibbles,
    weighted,
)
from qllama.kernels.quantize_sums import compared, no_sums, store_sums
from qllama.quant import BLOCK, TILE_ROWS

__all__ = ["quantize_scaled"]

_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
_FLOAT, _HALF = 4, 2


@njit
def _inverse(scale: Any) -> Any:
    is_small = v.splat(_SMALLEST_NORMAL)
    return v.where_less(v.absolute(scale), is_small, v.splat(_ZERO), v.splat(_ONE) / scale)


@njit
def _code(value: Any, inverse: Any, least: Any, greatest: Any) -> Any:
    # Between whole bounds it is all one whether numbers are rounded or clamped first.
    return rounded(v.smaller(v.larger(value * inverse, least), greatest))


@njit
def _search(x: Any, h: Any, starts: Any, least: Any, greatest: Any) -> Any:
    """The best scale."""
    zero = v.splat(_ZERO)
    largest = v.load(x)
    for i in range(BLOCK):
        value = v.load(x + CHUNK_ROW * i)
        largest = v.where_less(v.absolute(largest), v.absolute(value), value, largest)
    best_scale, best_error = zero, v.splat(_INFINITY)
    for start in range(len(starts)):
        scale = largest / v.splat(starts[start])
        inverse = _inverse(scale)
        xq, qq, error = zero, zero, zero
        for i in range(BLOCK):
            value = v.load(x + CHUNK_ROW * i)
            code = _code(value, inverse, least, greatest)
            hq = weighted(code, h, i)
            xq, qq = xq + hq * value, qq + hq * code
        scale = v.rounded_to_half(v.where_less(zero, qq, xq / qq, scale))
        inverse = _inverse(scale)
        for i in range(BLOCK):
            value = v.load(x + CHUNK_ROW * i)
            difference = scale * _code(value, inverse, least, greatest) - value
            error = error + weighted(difference * difference, h, i)
        best_scale = v.where_less(error, best_error, scale, best_scale)
        best_error = v.smaller(error, best_error)
    return best_scale


@njit
def quantize_scaled(bits: Any, starts: Any, w: Any, tiles: Any, h: Any, errors: Any) -> None:
    """Quantize float32 `w` (rows, k) into uint8 `tiles` (tiles, bytes of a tile).

    `bits` are those of a code, 4 or 8, `starts` float32 (n,) those of the codec, and `h` is
    float32 (k padded,), as `block_importance` gives it, or None. `errors`, float64 (tiles, 5),
    gets the sums of `quantize_error`.
    """
    greatest = v.splat(np.float32((1 << (bits - 1)) - 1))
    least = v.splat(-np.float32(1 << (bits - 1)))
    code_n_bytes = bits * BLOCK * TILE_ROWS // 8
    block_n_bytes = code_n_bytes + _HALF * TILE_ROWS
    n_blocks = -(-w.shape[1] // BLOCK)
    chunk, codes = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.uint8)
    scales = np.empty(TILE_ROWS, np.float32)
    for tile in range(len(tiles)):
        sums = no_sums()
        for block in range(n_blocks):
            lane = block % CHUNK_BLOCKS * TILE_ROWS
            if lane == 0:
                load_chunk(w, tile * TILE_ROWS, block, chunk)
            x = chunk.ctypes.data + _FLOAT * lane
            scale = _search(x, importance_of(h, block), starts, least, greatest)
            inverse = _inverse(scale)
            for i in range(BLOCK):
                value = v.load(x + CHUNK_ROW * i)
                code = _code(value, inverse, least, greatest)
                v.store_bytes(codes.ctypes.data + LANES * i + lane, code - least)
                sums = compared(sums, value, scale * code)
            stored = tiles[tile, block * block_n_bytes : (block + 1) * block_n_bytes]
            if bits == 4:
                store_nibbles(codes, lane, stored)
            else:
                store_eights(codes, lane, stored)
            v.store(scales.ctypes.data, scale)
            for r in range(TILE_ROWS):
                v.store_f16(stored.ctypes.data + code_n_bytes + _HALF * r, scales[r])
        store_sums(sums, errors[tile])
