"""The compiled search of `q4` and `q6`, operation for operation that of `qllama.quant.affine`.

Knows the algorithm's steps only by repeating them; why they are what they are is
told there. The 16 rows of a tile lie in the lanes of a vector, so one value here is a number
for each of 16 blocks side by side: `x` is the address of their weights, float32 [32][16] with
`CHUNK_ROW` bytes from element to element, and `h` that of their columns' importance,
float32 [32], or None, known when compiling, where all count alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.quantize_lanes import (
    CHUNK_BLOCKS,
    LANES,
    load_chunk,
    store_nibbles,
    store_sixes,
)
from qllama.quant import BLOCK, TILE_ROWS
from qllama.quant.affine import MAX_SCALE_CODE, NEIGHBOURS, REFITS, SMALLEST_SCALE

__all__ = ["quantize_affine"]

_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_N_NEIGHBOURS = len(NEIGHBOURS)
_FLOAT, _VECTOR = 4, 4 * TILE_ROWS
_CHUNK_ROW = _FLOAT * LANES
#: The unit of this number is 1: adding it and taking it away rounds what is below 2**22.
_ROUNDER = np.float32(1.5 * 2**23)


@njit
def _rounded(x: Any) -> Any:
    rounder = v.splat(_ROUNDER)
    return (x + rounder) - rounder


@njit
def _inverse(scale: Any) -> Any:
    return v.where_less(scale, v.splat(SMALLEST_SCALE), v.splat(_ZERO), v.splat(_ONE) / scale)


@njit
def _code(value: Any, minimum: Any, inverse: Any, max_code: Any) -> Any:
    # Between whole bounds it is all one whether numbers are rounded or clamped first.
    scaled = v.larger((value + minimum) * inverse, v.splat(_ZERO))
    return _rounded(v.smaller(scaled, max_code))


@njit
def _weighted(value: Any, h: Any, i: Any) -> Any:
    return value if h is None else v.splat(v.load_scalar(h + _FLOAT * i)) * value


@njit
def _error(x: Any, h: Any, scale: Any, minimum: Any, max_code: Any) -> Any:
    """Weighted squared error."""
    inverse = _inverse(scale)
    error = v.splat(_ZERO)
    for i in range(BLOCK):
        value = v.load(x + _CHUNK_ROW * i)
        difference = (scale * _code(value, minimum, inverse, max_code) - minimum) - value
        error = error + _weighted(difference * difference, h, i)
    return error


@njit
def _refit(x: Any, h: Any, sum_h: Any, sum_x: Any, scale: Any, minimum: Any, max_code: Any) -> Any:
    """Least-squares scale and minimum."""
    zero, inverse = v.splat(_ZERO), _inverse(scale)
    q, qq, xq = zero, zero, zero
    for i in range(BLOCK):
        value = v.load(x + _CHUNK_ROW * i)
        code = _code(value, minimum, inverse, max_code)
        hq = _weighted(code, h, i)
        q, qq, xq = q + hq, qq + hq * code, xq + hq * value
    determinant = sum_h * qq - q * q
    free_scale = (sum_h * xq - q * sum_x) / determinant
    free_minimum = (q * xq - qq * sum_x) / determinant
    fitted_scale = v.where_less(zero, free_minimum, free_scale, xq / qq)
    fitted_minimum = v.where_less(zero, free_minimum, free_minimum, zero)
    fitted_scale = v.where_less(zero, determinant, fitted_scale, zero)
    return (
        v.where_less(zero, fitted_scale, fitted_scale, scale),
        v.where_less(zero, fitted_scale, fitted_minimum, minimum),
    )


@njit
def _search(x: Any, h: Any, starts: Any, max_code: Any) -> Any:
    """Step 1: scale and minimum."""
    zero = v.splat(_ZERO)
    sum_h, sum_x = zero, zero
    least = greatest = v.load(x)
    for i in range(BLOCK):
        value = v.load(x + _CHUNK_ROW * i)
        sum_h = sum_h + _weighted(v.splat(_ONE), h, i)
        sum_x = sum_x + _weighted(value, h, i)
        least, greatest = v.smaller(value, least), v.larger(value, greatest)
    least = v.smaller(least, zero)
    span = v.larger(greatest - least, zero)
    best_scale, best_minimum, best_error = zero, zero, v.splat(_INFINITY)
    for start in range(len(starts)):
        scale = span / v.splat(starts[start, 1])
        minimum = v.larger(scale * v.splat(starts[start, 0]) - least, zero)
        for _ in range(REFITS):
            scale, minimum = _refit(x, h, sum_h, sum_x, scale, minimum, max_code)
        error = _error(x, h, scale, minimum, max_code)
        best_scale = v.where_less(error, best_error, scale, best_scale)
        best_minimum = v.where_less(error, best_error, minimum, best_minimum)
        best_error = v.smaller(error, best_error)
    return best_scale, best_minimum


@njit
def _row_codes(values: Any, n_blocks: Any) -> Any:
    """Factors of the rows; the values, at address `values`, become whole codes."""
    zero, max_code = v.splat(_ZERO), v.splat(MAX_SCALE_CODE)
    factor = zero
    for block in range(n_blocks):
        factor = v.larger(v.load(values + _VECTOR * block), factor)
    factor = factor / max_code
    factor = v.where_less(factor, v.splat(SMALLEST_SCALE), zero, factor)
    for block in range(n_blocks):
        # Where the factor is 0, 0 / 0 is no number, and not greater than 0.
        codes = v.larger(v.load(values + _VECTOR * block) / factor, zero)
        codes = v.where_less(zero, factor, _rounded(v.smaller(codes, max_code)), zero)
        v.store(values + _VECTOR * block, codes)
    return factor


@njit
def _near(code: Any, step: Any) -> Any:
    return v.smaller(v.larger(code + v.splat(step), v.splat(_ZERO)), v.splat(MAX_SCALE_CODE))


@njit
def _round(x: Any, h: Any, sc: Any, mc: Any, d: Any, m: Any, max_code: Any) -> Any:
    """Step 2: the best neighbours of `sc` and `mc` for the row factors `d` and `m`."""
    best_sc, best_mc, best_error = sc, mc, v.splat(_INFINITY)
    for step in range(_N_NEIGHBOURS):
        near_sc, near_mc = _near(sc, NEIGHBOURS[step, 0]), _near(mc, NEIGHBOURS[step, 1])
        error = _error(x, h, d * near_sc, m * near_mc, max_code)
        best_sc = v.where_less(error, best_error, near_sc, best_sc)
        best_mc = v.where_less(error, best_error, near_mc, best_mc)
        best_error = v.smaller(error, best_error)
    return best_sc, best_mc


@njit
def _importance_of(h: Any, block: Any) -> Any:
    return None if h is None else h.ctypes.data + _FLOAT * BLOCK * block


@njit
def quantize_affine(bits: Any, starts: Any, w: Any, tiles: Any, h: Any) -> None:
    """Quantize float32 `w` (rows, k) into uint8 `tiles` (tiles, bytes of a tile).

    `bits` are those of a code, 4 or 6, `starts` (16, 2) those of `qllama.quant.affine`, and
    `h` is float32 (k padded,), as `block_importance` gives it, or None.
    """
    max_code = v.splat(np.float32((1 << bits) - 1))
    code_n_bytes = bits * BLOCK * TILE_ROWS // 8
    block_n_bytes = code_n_bytes + 2 * TILE_ROWS
    n_blocks = -(-w.shape[1] // BLOCK)
    chunk, codes = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.uint8)
    x_chunk, code_chunk = chunk.ctypes.data, codes.ctypes.data
    both = np.empty((2, n_blocks, TILE_ROWS), np.float32)
    scales, minimums = both[0].ctypes.data, both[1].ctypes.data
    for tile in range(len(tiles)):
        row, out = tile * TILE_ROWS, tiles[tile].ctypes.data
        for block in range(n_blocks):
            lane = block % CHUNK_BLOCKS * TILE_ROWS
            if lane == 0:
                load_chunk(w, row, block, chunk)
            h_block = _importance_of(h, block)
            scale, minimum = _search(x_chunk + _FLOAT * lane, h_block, starts, max_code)
            v.store(scales + _VECTOR * block, scale)
            v.store(minimums + _VECTOR * block, minimum)
        d, m = _row_codes(scales, n_blocks), _row_codes(minimums, n_blocks)
        for block in range(n_blocks):
            lane = block % CHUNK_BLOCKS * TILE_ROWS
            if lane == 0:
                load_chunk(w, row, block, chunk)
            x, h_block = x_chunk + _FLOAT * lane, _importance_of(h, block)
            sc, mc = v.load(scales + _VECTOR * block), v.load(minimums + _VECTOR * block)
            sc, mc = _round(x, h_block, sc, mc, d, m, max_code)
            minimum, inverse = m * mc, _inverse(d * sc)
            for i in range(BLOCK):
                code = _code(v.load(x + _CHUNK_ROW * i), minimum, inverse, max_code)
                v.store_bytes(code_chunk + LANES * i + lane, code)
            stored = tiles[tile, block * block_n_bytes : (block + 1) * block_n_bytes]
            if bits == 4:
                store_nibbles(codes, lane, stored)
            else:
                store_sixes(codes, lane, stored)
            pair = out + block * block_n_bytes + code_n_bytes
            v.store_bytes(pair, sc)
            v.store_bytes(pair + TILE_ROWS, mc)
        factors = out + n_blocks * block_n_bytes
        v.store(factors, d)
        v.store(factors + _VECTOR, m)
