"""The compiled search of `q4`, `q5` and `q6`, step by step that of `qllama.quant.affine`.

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
    CHUNK_ROW,
    LANES,
    importance_of,
    load_chunk,
    rounded,
    store_factors,
    store_fives,
    store_nibbles,
    store_pairs,
    store_sixes,
    weighted,
)
from qllama.kernels.quantize_sums import compared, no_sums, store_sums
from qllama.quant import BLOCK, TILE_ROWS
from qllama.quant.affine import REFITS, SCALE_STEPS, SMALLEST_SCALE, SPLITTER

__all__ = ["quantize_affine"]

_ZERO, _ONE, _TWO, _INFINITY = (np.float32(n) for n in (0, 1, 2, np.inf))
_FLOAT = 4


@njit
def _inverse(scale: Any) -> Any:
    return v.where_less(scale, v.splat(SMALLEST_SCALE), v.splat(_ZERO), v.splat(_ONE) / scale)


@njit
def _code(value: Any, minimum: Any, inverse: Any, max_code: Any) -> Any:
    # Between whole bounds it is all one whether numbers are rounded or clamped first.
    scaled = v.larger((value + minimum) * inverse, v.splat(_ZERO))
    return rounded(v.smaller(scaled, max_code))


@njit
def _error(x: Any, h: Any, scale: Any, minimum: Any, max_code: Any) -> Any:
    """Weighted squared error."""
    inverse = _inverse(scale)
    error = v.splat(_ZERO)
    for i in range(BLOCK):
        value = v.load(x + CHUNK_ROW * i)
        difference = (scale * _code(value, minimum, inverse, max_code) - minimum) - value
        error = error + weighted(difference * difference, h, i)
    return error


@njit
def _sums(x: Any, h: Any) -> Any:
    """Weighted sums of 1, of the weights and of their squares."""
    one, zero = v.splat(_ONE), v.splat(_ZERO)
    sum_h, sum_x, sum_xx = zero, zero, zero
    for i in range(BLOCK):
        value = v.load(x + CHUNK_ROW * i)
        hx = weighted(value, h, i)
        sum_h, sum_x, sum_xx = sum_h + weighted(one, h, i), sum_x + hx, sum_xx + hx * value
    return sum_h, sum_x, sum_xx


@njit
def _refit(x: Any, h: Any, sums: Any, scale: Any, minimum: Any, max_code: Any) -> Any:
    """Least-squares scale and minimum, and their error with the codes they are for."""
    sum_h, sum_x, sum_xx = sums
    zero, two, inverse = v.splat(_ZERO), v.splat(_TWO), _inverse(scale)
    q, qq, xq = zero, zero, zero
    for i in range(BLOCK):
        value = v.load(x + CHUNK_ROW * i)
        code = _code(value, minimum, inverse, max_code)
        hq = weighted(code, h, i)
        q, qq, xq = q + hq, qq + hq * code, xq + hq * value
    determinant = sum_h * qq - q * q
    free_scale = (sum_h * xq - q * sum_x) / determinant
    free_minimum = (q * xq - qq * sum_x) / determinant
    fitted_scale = v.where_less(zero, free_minimum, free_scale, xq / qq)
    fitted_minimum = v.where_less(zero, free_minimum, free_minimum, zero)
    fitted_scale = v.where_less(zero, determinant, fitted_scale, zero)
    s = v.where_less(zero, fitted_scale, fitted_scale, scale)
    m = v.where_less(zero, fitted_scale, fitted_minimum, minimum)
    of_scale = s * (two * xq - s * qq)
    of_minimum = m * ((two * sum_x - two * s * q) + m * sum_h)
    return s, m, (sum_xx - of_scale) + of_minimum


@njit
def _search(x: Any, h: Any, sums: Any, starts: Any, max_code: Any) -> Any:
    """Step 1: scale and minimum."""
    zero = v.splat(_ZERO)
    least = greatest = v.load(x)
    for i in range(BLOCK):
        value = v.load(x + CHUNK_ROW * i)
        least, greatest = v.smaller(value, least), v.larger(value, greatest)
    least = v.smaller(least, zero)
    span = v.larger(greatest - least, zero)
    best_scale, best_minimum, best_error = zero, zero, v.splat(_INFINITY)
    for start in range(len(starts)):
        scale, error = span / v.splat(starts[start, 1]), best_error
        minimum = v.larger(scale * v.splat(starts[start, 0]) - least, zero)
        for _ in range(REFITS):
            scale, minimum, error = _refit(x, h, sums, scale, minimum, max_code)
        best_scale = v.where_less(error, best_error, scale, best_scale)
        best_minimum = v.where_less(error, best_error, minimum, best_minimum)
        best_error = v.smaller(error, best_error)
    return best_scale, best_minimum


@njit
def _row_factor(values: Any, pair_bits: Any, greatest: Any) -> Any:
    """Factors of the rows for the numbers of their blocks, float32 `values` (blocks, 16)."""
    zero = v.splat(_ZERO)
    factor = zero
    for of_block in values:
        factor = v.larger(v.load(of_block.ctypes.data), factor)
    factor = factor / greatest
    if pair_bits == 6:
        far = factor * v.splat(SPLITTER)
        factor = far - (far - factor)
    return v.where_less(factor, v.splat(SMALLEST_SCALE), zero, factor)


@njit
def _nearest(value: Any, factor: Any, greatest: Any) -> Any:
    """Codes of numbers in units of factors."""
    zero = v.splat(_ZERO)
    code = rounded(v.smaller(v.larger(value, zero) / factor, greatest))
    return v.where_less(zero, factor, code, zero)


@njit
def _mean_code(mean: Any, scale: Any, minimum: Any, max_code: Any) -> Any:
    """The mean of codes which least squares lead to this scale and minimum."""
    zero, total = v.splat(_ZERO), mean + minimum
    inside = v.where_less(total, scale * max_code, total / scale, max_code)
    return v.larger(v.where_less(scale, v.splat(SMALLEST_SCALE), max_code, inside), zero)


@njit
def _round(
    x: Any,
    h: Any,
    sums: Any,
    scale: Any,
    minimum: Any,
    d: Any,
    m: Any,
    n_steps: Any,
    max_code: Any,
    greatest: Any,
) -> Any:
    """Step 2: codes of the scale and minimum for the row factors `d` and `m`."""
    nearest = _nearest(scale, d, greatest)
    best_sc, best_mc = nearest, _nearest(minimum, m, greatest)
    best_error = _error(x, h, d * best_sc, m * best_mc, max_code)
    mean = sums[1] / sums[0]
    mean_code = _mean_code(mean, scale, minimum, max_code)
    for step in range(n_steps):
        moved = v.larger(nearest + v.splat(SCALE_STEPS[step]), v.splat(_ZERO))
        sc = v.smaller(moved, greatest)
        mc = _nearest((d * sc) * mean_code - mean, m, greatest)
        error = _error(x, h, d * sc, m * mc, max_code)
        best_sc = v.where_less(error, best_error, sc, best_sc)
        best_mc = v.where_less(error, best_error, mc, best_mc)
        best_error = v.smaller(error, best_error)
    return best_sc, best_mc


@njit
def quantize_affine(bits: Any, starts: Any, w: Any, tiles: Any, h: Any, errors: Any) -> None:
    """Quantize float32 `w` (rows, k) into uint8 `tiles` (tiles, bytes of a tile).

    `bits` are those of a code, 4, 5 or 6, `starts` (n, 2) those of `qllama.quant.affine`, or the
    first alone to be fast, and `h` is float32 (k padded,), as `block_importance` gives it,
    or None. `errors`, float64 (tiles, 5), gets the sums of `quantize_error`.
    """
    max_code = v.splat(np.float32((1 << bits) - 1))
    n_steps = 0 if len(starts) == 1 else len(SCALE_STEPS)
    code_n_bytes = bits * BLOCK * TILE_ROWS // 8
    pair_bits = 6 if bits == 5 else 8
    greatest = v.splat(np.float32((1 << pair_bits) - 1))
    block_n_bytes = code_n_bytes + 2 * TILE_ROWS * pair_bits // 8
    n_blocks = -(-w.shape[1] // BLOCK)
    chunk, codes = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.uint8)
    x_chunk, code_chunk = chunk.ctypes.data, codes.ctypes.data
    # Arrays all the way: what only addresses are left of, numba frees at once.
    scales = np.empty((n_blocks, TILE_ROWS), np.float32)
    minimums = np.empty((n_blocks, TILE_ROWS), np.float32)
    pairs, factors = np.empty((2, TILE_ROWS), np.uint8), np.empty((2, TILE_ROWS), np.float32)
    for tile in range(len(tiles)):
        row = tile * TILE_ROWS
        for block in range(n_blocks):
            lane = block % CHUNK_BLOCKS * TILE_ROWS
            if lane == 0:
                load_chunk(w, row, block, chunk)
            x, h_block = x_chunk + _FLOAT * lane, importance_of(h, block)
            scale, minimum = _search(x, h_block, _sums(x, h_block), starts, max_code)
            v.store(scales[block].ctypes.data, scale)
            v.store(minimums[block].ctypes.data, minimum)
        d = _row_factor(scales, pair_bits, greatest)
        m = _row_factor(minimums, pair_bits, greatest)
        sums = no_sums()
        for block in range(n_blocks):
            lane = block % CHUNK_BLOCKS * TILE_ROWS
            if lane == 0:
                load_chunk(w, row, block, chunk)
            x, h_block = x_chunk + _FLOAT * lane, importance_of(h, block)
            scale, minimum = v.load(scales[block].ctypes.data), v.load(minimums[block].ctypes.data)
            of_block = _sums(x, h_block)
            sc, mc = _round(x, h_block, of_block, scale, minimum, d, m, n_steps, max_code, greatest)
            scale, minimum = d * sc, m * mc
            inverse, n_columns = _inverse(scale), w.shape[1] - block * BLOCK
            for i in range(BLOCK):
                value = v.load(x + CHUNK_ROW * i)
                code = _code(value, minimum, inverse, max_code)
                v.store_bytes(code_chunk + LANES * i + lane, code)
                # The padding's value need not be 0.
                decoded = scale * code - minimum if i < n_columns else value
                sums = compared(sums, value, decoded)
            stored = tiles[tile, block * block_n_bytes : (block + 1) * block_n_bytes]
            if bits == 4:
                store_nibbles(codes, lane, stored)
            elif bits == 5:
                store_fives(codes, lane, stored)
            else:
                store_sixes(codes, lane, stored)
            v.store_bytes(pairs[0].ctypes.data, sc)
            v.store_bytes(pairs[1].ctypes.data, mc)
            store_pairs(pairs, pair_bits, stored[code_n_bytes:])
        v.store(factors[0].ctypes.data, d)
        v.store(factors[1].ctypes.data, m)
        store_factors(factors, pair_bits - 4, tiles[tile, n_blocks * block_n_bytes :])
        store_sums(sums, errors[tile])
