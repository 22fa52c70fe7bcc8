"""`q4`: 4-bit codes with a scale and a minimum a block of 32; 4.5 bits a weight.

weight = (d * sc) * code - (m * mc), all in float32: code in 0..15; sc and mc are
8-bit codes of the block; d and m are float32 factors of the row, never negative.
A block whose weights are all positive has minimum 0. Only the row factors are
floats, so they leave a kernel's inner loop, and any k serves: there are no
superblocks to fill.

Quantizing minimizes each block's squared error, in two steps:

1. Without rounding scale and minimum. Sixteen starts place the block's least weight
   at code `e` and its greatest at code `15 - f`, for e and f in `ENDS`; each is
   refitted twice (codes for the scale and minimum, then the least-squares scale
   and minimum for the codes, minimum >= 0). The start of least error is kept.
2. d = greatest scale of the row / 255, m = greatest minimum / 255. Of the nearest
   sc and mc and their neighbours the pair of least error is kept, its codes being
   clamp(rint((w + m * mc) * (1 / (d * sc))), 0, 15).

Scales below float32's smallest normal number count as 0: their inverse would
overflow. Weights are limited to 1e15 so that no sum of products overflows.

The search tolerates no reordering: a compiled version repeats these operations
one by one. Reference: `docs/quantization.md` for the measurements behind it,
`docs/format.md` section 3 for the storage.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.quant.codec import Codec
from qllama.quant.tile16 import (
    join_nibbles,
    split_nibbles,
    tile_codes,
    tile_per_block,
    untile_codes,
    untile_per_block,
)
from qllama.quant.types import BLOCK, QUANT_TYPES, TILE_ROWS

__all__ = [
    "MAX_CODE",
    "MAX_SCALE_CODE",
    "NEIGHBOURS",
    "REFITS",
    "SMALLEST_SCALE",
    "STARTS",
    "Q4Codec",
]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

MAX_CODE = np.float32(15)
MAX_SCALE_CODE = np.float32(255)
SMALLEST_SCALE = np.finfo(np.float32).smallest_normal

#: Where the extremes of a block start, in codes inside the range; 0 first, so that a
#: block which is already a grid of 16 levels is met exactly. Chosen on trained,
#: Gaussian and Student-t weights: within 0.3% of the error of 900 starts.
ENDS = (0.0, -0.4, 0.4, 1.0)

#: (16, 2): code of the least weight, and codes between the least and the greatest.
STARTS: Float32 = np.array([(e, 15.0 - f - e) for e in ENDS for f in ENDS], np.float32)

REFITS = 2

#: (9, 2): steps of sc and mc; no step first, so that it wins ties.
NEIGHBOURS: Float32 = np.array(
    sorted(((s, m) for s in (-1, 0, 1) for m in (-1, 0, 1)), key=lambda step: step != (0, 0)),
    np.float32,
)

_N_CODE_BYTES = BLOCK * TILE_ROWS // 2
_TILED_BYTES = (BLOCK // 8, TILE_ROWS, 4)


def _sum_block(terms: Float32) -> Float32:
    """Sum (32, n) over the block, element 0 first; numpy's own sum may pair terms."""
    total = np.zeros(terms.shape[1], np.float32)
    for term in terms:
        total += term
    return total


def _codes(x: Float32, scale: Float32, minimum: Float32) -> Float32:
    """Best codes, whole float32 (32, n), of blocks x (32, n) for scale and minimum (n,)."""
    usable = scale >= SMALLEST_SCALE
    inverse = np.where(usable, np.float32(1) / np.where(usable, scale, 1), np.float32(0))
    codes: Float32 = np.clip(np.rint((x + minimum) * inverse), np.float32(0), MAX_CODE)
    return codes


def _error(x: Float32, scale: Float32, minimum: Float32) -> Float32:
    """Squared error (n,) of blocks x (32, n) with their best codes."""
    difference = (scale * _codes(x, scale, minimum) - minimum) - x
    return _sum_block(difference * difference)


def _refit(x: Float32, sum_x: Float32, scale: Float32, minimum: Float32) -> tuple[Float32, Float32]:
    """Least-squares scale and minimum (n,) for the codes that the given ones lead to.

    Where all codes are equal, or the fit has no positive scale, the given ones stay.
    """
    q = _codes(x, scale, minimum)
    sum_q, sum_qq, sum_xq = _sum_block(q), _sum_block(q * q), _sum_block(x * q)
    determinant = np.float32(BLOCK) * sum_qq - sum_q * sum_q
    solvable = determinant > 0
    divisor = np.where(solvable, determinant, np.float32(1))
    fitted_scale = (np.float32(BLOCK) * sum_xq - sum_q * sum_x) / divisor
    fitted_minimum = (sum_q * sum_xq - sum_qq * sum_x) / divisor
    # The best fit without a minimum, where the free one would need a negative one.
    bare_scale = sum_xq / np.where(solvable, sum_qq, np.float32(1))
    has_minimum = fitted_minimum > 0
    fitted_scale = np.where(has_minimum, fitted_scale, bare_scale)
    fitted_minimum = np.where(has_minimum, fitted_minimum, np.float32(0))
    better = solvable & (fitted_scale > 0)
    return np.where(better, fitted_scale, scale), np.where(better, fitted_minimum, minimum)


def _search(x: Float32) -> tuple[Float32, Float32]:
    """Step 1: scale and minimum (n,) of blocks x (32, n), not yet rounded."""
    sum_x = _sum_block(x)
    least = x.min(axis=0)
    least = np.where(least < 0, least, np.float32(0))
    span = x.max(axis=0) - least
    span = np.where(span > 0, span, np.float32(0))
    best = tuple(np.zeros_like(span) for _ in range(2))
    best_error = np.full_like(span, np.inf)
    for code_of_least, n_codes in STARTS:
        scale = span / n_codes
        minimum = scale * code_of_least - least
        minimum = np.where(minimum > 0, minimum, np.float32(0))
        for _ in range(REFITS):
            scale, minimum = _refit(x, sum_x, scale, minimum)
        error = _error(x, scale, minimum)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = np.where(better, scale, best[0]), np.where(better, minimum, best[1])
    return best


def _row_codes(values: Float32) -> tuple[Float32, Float32]:
    """Factor (rows,) and whole float32 codes (rows, blocks) of non-negative values."""
    factor = values.max(axis=1) / MAX_SCALE_CODE
    usable = factor >= SMALLEST_SCALE
    codes = np.rint(values / np.where(usable, factor, np.float32(1))[:, None])
    codes = np.where(usable[:, None], np.minimum(codes, MAX_SCALE_CODE), np.float32(0))
    return np.where(usable, factor, np.float32(0)), codes


class Q4Codec(Codec):
    """Codec of `q4`."""

    def __init__(self) -> None:
        super().__init__(QUANT_TYPES["q4"], 1e15)

    def _encode(self, w: Float32) -> UInt8:
        rows, k = w.shape
        x = np.ascontiguousarray(w.reshape(-1, BLOCK).T)
        scales, minimums = (a.reshape(rows, -1) for a in _search(x))
        d, scale_codes = _row_codes(scales)
        m, minimum_codes = _row_codes(minimums)
        d_block, m_block = (np.repeat(a, k // BLOCK) for a in (d, m))
        start = scale_codes.reshape(-1), minimum_codes.reshape(-1)
        sc, mc = start
        best_error = np.full_like(sc, np.inf)
        for scale_step, minimum_step in NEIGHBOURS:
            near_sc = np.clip(start[0] + scale_step, np.float32(0), MAX_SCALE_CODE)
            near_mc = np.clip(start[1] + minimum_step, np.float32(0), MAX_SCALE_CODE)
            error = _error(x, d_block * near_sc, m_block * near_mc)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            sc, mc = np.where(better, near_sc, sc), np.where(better, near_mc, mc)
        codes = _codes(x, d_block * sc, m_block * mc).T.reshape(rows, k)
        return _store(codes, sc.reshape(rows, -1), mc.reshape(rows, -1), d, m)

    def _decode(self, tiles: UInt8) -> Float32:
        tail = np.ascontiguousarray(tiles[:, -8 * TILE_ROWS :]).view("<f4")
        d, m = tail[:, :TILE_ROWS].reshape(-1), tail[:, TILE_ROWS:].reshape(-1)
        blocks = tiles[:, : -8 * TILE_ROWS].reshape(len(tiles), -1, _N_CODE_BYTES + 2 * TILE_ROWS)
        joined = blocks[:, :, :_N_CODE_BYTES].reshape(*blocks.shape[:2], *_TILED_BYTES)
        codes = untile_codes(split_nibbles(joined)).astype(np.float32)
        sc, mc = (
            untile_per_block(blocks[:, :, at : at + TILE_ROWS]).astype(np.float32)
            for at in (_N_CODE_BYTES, _N_CODE_BYTES + TILE_ROWS)
        )
        scale, minimum = (d[:, None] * sc)[:, :, None], (m[:, None] * mc)[:, :, None]
        by_block = codes.reshape(*sc.shape, BLOCK)
        return (scale * by_block - minimum).reshape(codes.shape)


def _store(codes: Float32, sc: Float32, mc: Float32, d: Float32, m: Float32) -> UInt8:
    """Tile16 storage of codes (rows, k), block codes (rows, blocks) and factors (rows,)."""
    joined = join_nibbles(tile_codes(codes.astype(np.uint8)))
    n_tiles, n_blocks = joined.shape[:2]
    blocks = np.concatenate(
        [
            joined.reshape(n_tiles, n_blocks, -1),
            tile_per_block(sc.astype(np.uint8)),
            tile_per_block(mc.astype(np.uint8)),
        ],
        axis=2,
    )
    tail = np.concatenate([a.reshape(n_tiles, TILE_ROWS) for a in (d, m)], axis=1)
    tail_bytes = np.ascontiguousarray(tail.astype("<f4")).view(np.uint8)
    return np.concatenate([blocks.reshape(n_tiles, -1), tail_bytes], axis=1)
