"""The compiled search of `q4`, operation for operation that of `qllama.quant.q4`.

Knows the algorithm's steps only by repeating them; why they are what they are is
told there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels._jit import njit
from qllama.kernels.quantize_lanes import CHUNK_BLOCKS, LANES, load_chunk, store_nibbles
from qllama.quant import BLOCK, QUANT_TYPES, TILE_ROWS
from qllama.quant.q4 import (
    MAX_CODE,
    MAX_SCALE_CODE,
    NEIGHBOURS,
    REFITS,
    SMALLEST_SCALE,
    STARTS,
)

__all__ = ["quantize_q4"]

_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_N = np.float32(BLOCK)
_BLOCK_N_BYTES = QUANT_TYPES["q4"].tile_block_n_bytes
_CODE_N_BYTES = _BLOCK_N_BYTES - 2 * TILE_ROWS
_N_STARTS, _N_NEIGHBOURS = len(STARTS), len(NEIGHBOURS)


@njit
def _lanes() -> Any:
    return np.empty(LANES, np.float32)


@njit
def _inverse(scale: Any) -> Any:
    return _ONE / scale if scale >= SMALLEST_SCALE else _ZERO


@njit
def _code(x: Any, minimum: Any, inverse: Any) -> Any:
    code = np.rint((x + minimum) * inverse)
    code = code if code > _ZERO else _ZERO
    return code if code < MAX_CODE else MAX_CODE


@njit
def _error(x: Any, scale: Any, minimum: Any, inverse: Any, error: Any) -> None:
    """Fill `error` (64,) with the squared error of every lane of `x` (32, 64)."""
    for lane in range(LANES):
        inverse[lane] = _inverse(scale[lane])
        error[lane] = _ZERO
    for i in range(BLOCK):
        for lane in range(LANES):
            code = _code(x[i, lane], minimum[lane], inverse[lane])
            difference = (scale[lane] * code - minimum[lane]) - x[i, lane]
            error[lane] += difference * difference


@njit
def _refit(x: Any, sum_x: Any, scale: Any, minimum: Any, sums: Any) -> None:
    """Replace `scale` and `minimum` (64,) by their least-squares fit; `sums` (4, 64) is scratch."""
    inverse, sum_q, sum_qq, sum_xq = sums[0], sums[1], sums[2], sums[3]
    for lane in range(LANES):
        inverse[lane] = _inverse(scale[lane])
        sum_q[lane] = sum_qq[lane] = sum_xq[lane] = _ZERO
    for i in range(BLOCK):
        for lane in range(LANES):
            code = _code(x[i, lane], minimum[lane], inverse[lane])
            sum_q[lane] += code
            sum_qq[lane] += code * code
            sum_xq[lane] += x[i, lane] * code
    for lane in range(LANES):
        q, qq, xq = sum_q[lane], sum_qq[lane], sum_xq[lane]
        determinant = _N * qq - q * q
        if determinant > _ZERO:
            fitted_scale = (_N * xq - q * sum_x[lane]) / determinant
            fitted_minimum = (q * xq - qq * sum_x[lane]) / determinant
            if not fitted_minimum > _ZERO:
                fitted_scale = xq / qq
                fitted_minimum = _ZERO
            if fitted_scale > _ZERO:
                scale[lane] = fitted_scale
                minimum[lane] = fitted_minimum


@njit
def _search(x: Any, best_scale: Any, best_minimum: Any) -> None:
    """Step 1: fill `best_scale` and `best_minimum` (64,) from `x` (32, 64)."""
    sums = np.empty((4, LANES), np.float32)
    sum_x, least, span = _lanes(), _lanes(), _lanes()
    scale, minimum, error = _lanes(), _lanes(), _lanes()
    best_error = _lanes()
    for lane in range(LANES):
        sum_x[lane] = _ZERO
        least[lane] = span[lane] = x[0, lane]
        best_error[lane] = _INFINITY
        best_scale[lane] = best_minimum[lane] = _ZERO
    for i in range(BLOCK):
        for lane in range(LANES):
            value = x[i, lane]
            sum_x[lane] += value
            least[lane] = value if value < least[lane] else least[lane]
            span[lane] = value if value > span[lane] else span[lane]
    for lane in range(LANES):
        least[lane] = least[lane] if least[lane] < _ZERO else _ZERO
        difference = span[lane] - least[lane]
        span[lane] = difference if difference > _ZERO else _ZERO
    for start in range(_N_STARTS):
        for lane in range(LANES):
            scale[lane] = span[lane] / STARTS[start, 1]
            begin = scale[lane] * STARTS[start, 0] - least[lane]
            minimum[lane] = begin if begin > _ZERO else _ZERO
        for _ in range(REFITS):
            _refit(x, sum_x, scale, minimum, sums)
        _error(x, scale, minimum, sums[0], error)
        for lane in range(LANES):
            if error[lane] < best_error[lane]:
                best_error[lane] = error[lane]
                best_scale[lane] = scale[lane]
                best_minimum[lane] = minimum[lane]


@njit
def _row_codes(values: Any, factors: Any) -> None:
    """Fill `factors` (16,) from `values` (lanes of the tile,), which become whole codes."""
    factors[:] = _ZERO
    for lane in range(len(values)):
        r = lane % TILE_ROWS
        factors[r] = values[lane] if values[lane] > factors[r] else factors[r]
    for r in range(TILE_ROWS):
        factor = factors[r] / MAX_SCALE_CODE
        factors[r] = factor if factor >= SMALLEST_SCALE else _ZERO
    for lane in range(len(values)):
        factor = factors[lane % TILE_ROWS]
        code = np.rint(values[lane] / factor) if factor > _ZERO else _ZERO
        values[lane] = code if code < MAX_SCALE_CODE else MAX_SCALE_CODE


@njit
def _near(code: Any, step: Any) -> Any:
    moved = code + step
    moved = moved if moved > _ZERO else _ZERO
    return moved if moved < MAX_SCALE_CODE else MAX_SCALE_CODE


@njit
def _round(x: Any, sc: Any, mc: Any, d: Any, m: Any) -> None:
    """Step 2: replace `sc` and `mc` (64,) by their best neighbours for factors `d`, `m` (16,)."""
    start_sc, start_mc, best_error = _lanes(), _lanes(), _lanes()
    scale, minimum, error = _lanes(), _lanes(), _lanes()
    inverse = _lanes()
    for lane in range(LANES):
        start_sc[lane], start_mc[lane] = sc[lane], mc[lane]
        best_error[lane] = _INFINITY
    for step in range(_N_NEIGHBOURS):
        for lane in range(LANES):
            scale[lane] = d[lane % TILE_ROWS] * _near(start_sc[lane], NEIGHBOURS[step, 0])
            minimum[lane] = m[lane % TILE_ROWS] * _near(start_mc[lane], NEIGHBOURS[step, 1])
        _error(x, scale, minimum, inverse, error)
        for lane in range(LANES):
            if error[lane] < best_error[lane]:
                best_error[lane] = error[lane]
                sc[lane] = _near(start_sc[lane], NEIGHBOURS[step, 0])
                mc[lane] = _near(start_mc[lane], NEIGHBOURS[step, 1])


@njit
def quantize_q4(w: Any, tiles: Any) -> None:
    """Quantize float32 `w` (rows, k) into uint8 `tiles` (tiles, bytes of a tile)."""
    n_blocks = -(-w.shape[1] // BLOCK)
    n_lanes = -(-n_blocks // CHUNK_BLOCKS) * LANES
    x = np.empty((BLOCK, LANES), np.float32)
    codes = np.empty((BLOCK, LANES), np.uint8)
    scales, minimums = np.empty(n_lanes, np.float32), np.empty(n_lanes, np.float32)
    d_and_m = np.empty((2, TILE_ROWS), np.float32)
    d, m = d_and_m[0], d_and_m[1]
    for tile in range(len(tiles)):
        row = tile * TILE_ROWS
        for at in range(0, n_lanes, LANES):
            load_chunk(w, row, at // TILE_ROWS, x)
            _search(x, scales[at : at + LANES], minimums[at : at + LANES])
        _row_codes(scales, d)
        _row_codes(minimums, m)
        for at in range(0, n_lanes, LANES):
            sc, mc = scales[at : at + LANES], minimums[at : at + LANES]
            load_chunk(w, row, at // TILE_ROWS, x)
            _round(x, sc, mc, d, m)
            for i in range(BLOCK):
                for lane in range(LANES):
                    r = lane % TILE_ROWS
                    inverse = _inverse(d[r] * sc[lane])
                    codes[i, lane] = np.uint8(_code(x[i, lane], m[r] * mc[lane], inverse))
            first = at // TILE_ROWS
            for block in range(first, min(first + CHUNK_BLOCKS, n_blocks)):
                lane = (block - first) * TILE_ROWS
                stored = tiles[tile, block * _BLOCK_N_BYTES : (block + 1) * _BLOCK_N_BYTES]
                store_nibbles(codes, lane, stored)
                for r in range(TILE_ROWS):
                    stored[_CODE_N_BYTES + r] = np.uint8(sc[lane + r])
                    stored[_CODE_N_BYTES + TILE_ROWS + r] = np.uint8(mc[lane + r])
        tiles[tile, n_blocks * _BLOCK_N_BYTES :] = d_and_m.reshape(-1).view(np.uint8)
