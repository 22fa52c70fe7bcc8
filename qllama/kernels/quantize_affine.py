"""The compiled search of `q4` and `q6`, operation for operation that of `qllama.quant.affine`.

Knows the algorithm's steps only by repeating them; why they are what they are is
told there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels._jit import njit
from qllama.kernels.quantize_lanes import (
    CHUNK_BLOCKS,
    LANES,
    load_chunk,
    load_importance,
    store_nibbles,
    store_sixes,
    weighted,
)
from qllama.quant import BLOCK, TILE_ROWS
from qllama.quant.affine import MAX_SCALE_CODE, NEIGHBOURS, REFITS, SMALLEST_SCALE

__all__ = ["quantize_affine"]

_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_N_NEIGHBOURS = len(NEIGHBOURS)


@njit
def _lanes() -> Any:
    return np.empty(LANES, np.float32)


@njit
def _inverse(scale: Any) -> Any:
    return _ONE / scale if scale >= SMALLEST_SCALE else _ZERO


@njit
def _code(x: Any, minimum: Any, inverse: Any, max_code: Any) -> Any:
    code = np.rint((x + minimum) * inverse)
    code = code if code > _ZERO else _ZERO
    return code if code < max_code else max_code


@njit
def _error(
    x: Any, h: Any, scale: Any, minimum: Any, inverse: Any, error: Any, max_code: Any
) -> None:
    """Fill `error` (64,) with the weighted squared error of every lane of `x` (32, 64)."""
    for lane in range(LANES):
        inverse[lane] = _inverse(scale[lane])
        error[lane] = _ZERO
    for i in range(BLOCK):
        for lane in range(LANES):
            code = _code(x[i, lane], minimum[lane], inverse[lane], max_code)
            difference = (scale[lane] * code - minimum[lane]) - x[i, lane]
            error[lane] += weighted(difference * difference, h, i, lane)


@njit
def _refit(
    x: Any, h: Any, sum_h: Any, sum_x: Any, scale: Any, minimum: Any, sums: Any, max_code: Any
) -> None:
    """Replace `scale` and `minimum` (64,) by their least-squares fit; `sums` (4, 64) is scratch."""
    inverse, sum_q, sum_qq, sum_xq = sums[0], sums[1], sums[2], sums[3]
    for lane in range(LANES):
        inverse[lane] = _inverse(scale[lane])
        sum_q[lane] = sum_qq[lane] = sum_xq[lane] = _ZERO
    for i in range(BLOCK):
        for lane in range(LANES):
            code = _code(x[i, lane], minimum[lane], inverse[lane], max_code)
            hq = weighted(code, h, i, lane)
            sum_q[lane] += hq
            sum_qq[lane] += hq * code
            sum_xq[lane] += hq * x[i, lane]
    for lane in range(LANES):
        q, qq, xq = sum_q[lane], sum_qq[lane], sum_xq[lane]
        determinant = sum_h[lane] * qq - q * q
        if determinant > _ZERO:
            fitted_scale = (sum_h[lane] * xq - q * sum_x[lane]) / determinant
            fitted_minimum = (q * xq - qq * sum_x[lane]) / determinant
            if not fitted_minimum > _ZERO:
                fitted_scale = xq / qq
                fitted_minimum = _ZERO
            if fitted_scale > _ZERO:
                scale[lane] = fitted_scale
                minimum[lane] = fitted_minimum


@njit
def _search(x: Any, h: Any, best_scale: Any, best_minimum: Any, starts: Any, max_code: Any) -> None:
    """Step 1: fill `best_scale` and `best_minimum` (64,) from `x` and `h` (32, 64)."""
    sums = np.empty((4, LANES), np.float32)
    sum_h, sum_x, least, span = _lanes(), _lanes(), _lanes(), _lanes()
    scale, minimum, error = _lanes(), _lanes(), _lanes()
    best_error = _lanes()
    for lane in range(LANES):
        sum_h[lane] = sum_x[lane] = _ZERO
        least[lane] = span[lane] = x[0, lane]
        best_error[lane] = _INFINITY
        best_scale[lane] = best_minimum[lane] = _ZERO
    for i in range(BLOCK):
        for lane in range(LANES):
            value = x[i, lane]
            sum_h[lane] += weighted(_ONE, h, i, lane)
            sum_x[lane] += weighted(value, h, i, lane)
            least[lane] = value if value < least[lane] else least[lane]
            span[lane] = value if value > span[lane] else span[lane]
    for lane in range(LANES):
        least[lane] = least[lane] if least[lane] < _ZERO else _ZERO
        difference = span[lane] - least[lane]
        span[lane] = difference if difference > _ZERO else _ZERO
    for start in range(len(starts)):
        for lane in range(LANES):
            scale[lane] = span[lane] / starts[start, 1]
            begin = scale[lane] * starts[start, 0] - least[lane]
            minimum[lane] = begin if begin > _ZERO else _ZERO
        for _ in range(REFITS):
            _refit(x, h, sum_h, sum_x, scale, minimum, sums, max_code)
        _error(x, h, scale, minimum, sums[0], error, max_code)
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
def _round(x: Any, h: Any, sc: Any, mc: Any, d: Any, m: Any, max_code: Any) -> None:
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
        _error(x, h, scale, minimum, inverse, error, max_code)
        for lane in range(LANES):
            if error[lane] < best_error[lane]:
                best_error[lane] = error[lane]
                sc[lane] = _near(start_sc[lane], NEIGHBOURS[step, 0])
                mc[lane] = _near(start_mc[lane], NEIGHBOURS[step, 1])


@njit
def quantize_affine(bits: Any, starts: Any, w: Any, tiles: Any, h: Any) -> None:
    """Quantize float32 `w` (rows, k) into uint8 `tiles` (tiles, bytes of a tile).

    `bits` are those of a code, 4 or 6, `starts` (16, 2) those of `qllama.quant.affine`, and
    `h` is float32 (k padded,), as `block_importance` gives it, or None.
    """
    max_code = np.float32((1 << bits) - 1)
    code_n_bytes = bits * BLOCK * TILE_ROWS // 8
    block_n_bytes = code_n_bytes + 2 * TILE_ROWS
    n_blocks = -(-w.shape[1] // BLOCK)
    n_lanes = -(-n_blocks // CHUNK_BLOCKS) * LANES
    x = np.empty((BLOCK, LANES), np.float32)
    codes = np.empty((BLOCK, LANES), np.uint8)
    chunk_h = None if h is None else np.empty((BLOCK, LANES), np.float32)
    scales, minimums = np.empty(n_lanes, np.float32), np.empty(n_lanes, np.float32)
    d_and_m = np.empty((2, TILE_ROWS), np.float32)
    d, m = d_and_m[0], d_and_m[1]
    for tile in range(len(tiles)):
        row = tile * TILE_ROWS
        for at in range(0, n_lanes, LANES):
            load_chunk(w, row, at // TILE_ROWS, x)
            load_importance(h, at // TILE_ROWS, chunk_h)
            sc, mc = scales[at : at + LANES], minimums[at : at + LANES]
            _search(x, chunk_h, sc, mc, starts, max_code)
        _row_codes(scales, d)
        _row_codes(minimums, m)
        for at in range(0, n_lanes, LANES):
            sc, mc = scales[at : at + LANES], minimums[at : at + LANES]
            load_chunk(w, row, at // TILE_ROWS, x)
            load_importance(h, at // TILE_ROWS, chunk_h)
            _round(x, chunk_h, sc, mc, d, m, max_code)
            for i in range(BLOCK):
                for lane in range(LANES):
                    r = lane % TILE_ROWS
                    inverse = _inverse(d[r] * sc[lane])
                    code = _code(x[i, lane], m[r] * mc[lane], inverse, max_code)
                    codes[i, lane] = np.uint8(code)
            first = at // TILE_ROWS
            for block in range(first, min(first + CHUNK_BLOCKS, n_blocks)):
                lane = (block - first) * TILE_ROWS
                stored = tiles[tile, block * block_n_bytes : (block + 1) * block_n_bytes]
                if bits == 4:
                    store_nibbles(codes, lane, stored)
                else:
                    store_sixes(codes, lane, stored)
                for r in range(TILE_ROWS):
                    stored[code_n_bytes + r] = np.uint8(sc[lane + r])
                    stored[code_n_bytes + TILE_ROWS + r] = np.uint8(mc[lane + r])
        tiles[tile, n_blocks * block_n_bytes :] = d_and_m.reshape(-1).view(np.uint8)
