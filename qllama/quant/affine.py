"""`q4` and `q6`: codes with a scale and a minimum a block of 32; 4.5 and 6.5 bits a weight.

weight = (d * sc) * code - (m * mc), all in float32: code in 0..15 or 0..63; sc and mc
are 8-bit codes of the block; d and m are float32 factors of the row, never negative.
Codes of a block whose weights are all positive count from about 0. Only the row factors are
floats, so they leave a kernel's inner loop, and any k serves: there are no
superblocks to fill.

Quantizing minimizes each block's squared error, each weight's times the importance of its
column where that is given, in two steps; c is the greatest code:

1. Without rounding scale and minimum. Sixteen starts place the block's least weight
   at code `e` and its greatest at code `c - f`, for e and f in `ENDS`; each is
   refitted twice (codes for the scale and minimum, then the least-squares scale
   and minimum for the codes, minimum >= 0). The start of least error is kept.
2. d = greatest scale of the row / 255, m = greatest minimum / 255. Of the nearest
   sc and mc and their neighbours the pair of least error is kept, its codes being
   clamp(rint((w + m * mc) * (1 / (d * sc))), 0, c).

Scales below float32's smallest normal number count as 0: their inverse would
overflow. Weights are limited to 1e15 so that no sum of products overflows.

The search tolerates no reordering: a compiled version repeats these operations
one by one. Reference: `docs/quantization.md` for the measurements behind it,
`docs/format.md` section 3 for the storage.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.quant.block_sum import sum_block
from qllama.quant.codec import Codec
from qllama.quant.importance import blocks_of_columns
from qllama.quant.tile16 import (
    GROUP,
    join_nibbles,
    join_sixes,
    split_nibbles,
    split_sixes,
    tile_codes,
    tile_per_block,
    untile_codes,
    untile_per_block,
)
from qllama.quant.types import BLOCK, QUANT_TYPES, TILE_ROWS

__all__ = ["MAX_SCALE_CODE", "NEIGHBOURS", "REFITS", "SMALLEST_SCALE", "AffineCodec", "starts"]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

MAX_SCALE_CODE = np.float32(255)
SMALLEST_SCALE = np.finfo(np.float32).smallest_normal

#: Where the extremes of a block start, in codes inside the range, by the bits of a code; 0
#: first, so that a block which is already a grid of that many levels is met exactly. Chosen
#: on trained, Gaussian and Student-t weights: within 0.5% of the error of hundreds of starts.
ENDS = {4: (0.0, -0.4, 0.4, 1.0), 6: (0.0, 0.8, 1.8, 3.2)}

REFITS = 2

#: (9, 2): steps of sc and mc; no step first, so that it wins ties.
NEIGHBOURS: Float32 = np.array(
    sorted(((s, m) for s in (-1, 0, 1) for m in (-1, 0, 1)), key=lambda step: step != (0, 0)),
    np.float32,
)

_JOIN = {4: join_nibbles, 6: join_sixes}
_SPLIT = {4: split_nibbles, 6: split_sixes}


def starts(bits: int) -> Float32:
    """Where the search begins: code of a block's least weight, codes from there to the greatest.

    Parameters
    ----------
    bits : int
        Of a code: 4 or 6.

    Returns
    -------
    float32, (16, 2)
    """
    greatest = 2**bits - 1
    return np.array([(e, greatest - f - e) for e in ENDS[bits] for f in ENDS[bits]], np.float32)


def _codes(x: Float32, scale: Float32, minimum: Float32, bits: int) -> Float32:
    """Best codes, whole float32 (32, n), of blocks x (32, n) for scale and minimum (n,)."""
    usable = scale >= SMALLEST_SCALE
    inverse = np.where(usable, np.float32(1) / np.where(usable, scale, 1), np.float32(0))
    codes: Float32 = np.clip(
        np.rint((x + minimum) * inverse), np.float32(0), np.float32(2**bits - 1)
    )
    return codes


def _error(x: Float32, h: Float32, scale: Float32, minimum: Float32, bits: int) -> Float32:
    """Squared error (n,), weighted by h (32, n), of blocks x (32, n) with their best codes."""
    difference = (scale * _codes(x, scale, minimum, bits) - minimum) - x
    return sum_block(h * (difference * difference))


def _refit(
    x: Float32,
    h: Float32,
    sum_h: Float32,
    sum_x: Float32,
    scale: Float32,
    minimum: Float32,
    bits: int,
) -> tuple[Float32, Float32]:
    """Least-squares scale and minimum (n,) for the codes that the given ones lead to.

    Where all codes are equal, or the fit has no positive scale, the given ones stay.
    """
    q = _codes(x, scale, minimum, bits)
    hq = h * q
    sum_q, sum_qq, sum_xq = sum_block(hq), sum_block(hq * q), sum_block(hq * x)
    determinant = sum_h * sum_qq - sum_q * sum_q
    solvable = determinant > 0
    divisor = np.where(solvable, determinant, np.float32(1))
    fitted_scale = (sum_h * sum_xq - sum_q * sum_x) / divisor
    fitted_minimum = (sum_q * sum_xq - sum_qq * sum_x) / divisor
    # The best fit without a minimum, where the free one would need a negative one.
    bare_scale = sum_xq / np.where(solvable, sum_qq, np.float32(1))
    has_minimum = fitted_minimum > 0
    fitted_scale = np.where(has_minimum, fitted_scale, bare_scale)
    fitted_minimum = np.where(has_minimum, fitted_minimum, np.float32(0))
    better = solvable & (fitted_scale > 0)
    return np.where(better, fitted_scale, scale), np.where(better, fitted_minimum, minimum)


def _search(x: Float32, h: Float32, bits: int) -> tuple[Float32, Float32]:
    """Step 1: scale and minimum (n,) of blocks x (32, n), not yet rounded."""
    sum_h, sum_x = sum_block(h), sum_block(h * x)
    least = x.min(axis=0)
    least = np.where(least < 0, least, np.float32(0))
    span = x.max(axis=0) - least
    span = np.where(span > 0, span, np.float32(0))
    best = tuple(np.zeros_like(span) for _ in range(2))
    best_error = np.full_like(span, np.inf)
    for code_of_least, n_codes in starts(bits):
        scale = span / n_codes
        minimum = scale * code_of_least - least
        minimum = np.where(minimum > 0, minimum, np.float32(0))
        for _ in range(REFITS):
            scale, minimum = _refit(x, h, sum_h, sum_x, scale, minimum, bits)
        error = _error(x, h, scale, minimum, bits)
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


class AffineCodec(Codec):
    """The type `name`, whose blocks have a scale and a minimum.

    Parameters
    ----------
    name : str
        `q4` or `q6`.

    Attributes
    ----------
    bits : int
        Of a code.
    """

    def __init__(self, name: str) -> None:
        self.bits = {"q4": 4, "q6": 6}[name]
        super().__init__(QUANT_TYPES[name], 1e15)

    def _encode(self, w: Float32, h: Float32 | None) -> UInt8:
        rows, k = w.shape
        x = np.ascontiguousarray(w.reshape(-1, BLOCK).T)
        # Times 1 is exact, so that without importance the sums are those of the plain search.
        columns = blocks_of_columns(np.ones(k, np.float32) if h is None else h, rows)
        scales, minimums = (a.reshape(rows, -1) for a in _search(x, columns, self.bits))
        d, scale_codes = _row_codes(scales)
        m, minimum_codes = _row_codes(minimums)
        d_block, m_block = (np.repeat(a, k // BLOCK) for a in (d, m))
        start = scale_codes.reshape(-1), minimum_codes.reshape(-1)
        sc, mc = start
        best_error = np.full_like(sc, np.inf)
        for scale_step, minimum_step in NEIGHBOURS:
            near_sc = np.clip(start[0] + scale_step, np.float32(0), MAX_SCALE_CODE)
            near_mc = np.clip(start[1] + minimum_step, np.float32(0), MAX_SCALE_CODE)
            error = _error(x, columns, d_block * near_sc, m_block * near_mc, self.bits)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            sc, mc = np.where(better, near_sc, sc), np.where(better, near_mc, mc)
        codes = _codes(x, d_block * sc, m_block * mc, self.bits).T.reshape(rows, k)
        return self._store(codes, sc.reshape(rows, -1), mc.reshape(rows, -1), d, m)

    def _decode(self, tiles: UInt8) -> Float32:
        tail = np.ascontiguousarray(tiles[:, -8 * TILE_ROWS :]).view("<f4")
        d, m = tail[:, :TILE_ROWS].reshape(-1), tail[:, TILE_ROWS:].reshape(-1)
        blocks = tiles[:, : -8 * TILE_ROWS].reshape(len(tiles), -1, self.kind.tile_block_n_bytes)
        joined, sc_bytes, mc_bytes = np.split(blocks, [-2 * TILE_ROWS, -TILE_ROWS], axis=2)
        joined = joined.reshape(*blocks.shape[:2], self.bits, TILE_ROWS, GROUP)
        codes = untile_codes(_SPLIT[self.bits](joined)).astype(np.float32)
        sc, mc = (untile_per_block(a).astype(np.float32) for a in (sc_bytes, mc_bytes))
        scale, minimum = (d[:, None] * sc)[:, :, None], (m[:, None] * mc)[:, :, None]
        by_block = codes.reshape(*sc.shape, BLOCK)
        return (scale * by_block - minimum).reshape(codes.shape)

    def _store(self, codes: Float32, sc: Float32, mc: Float32, d: Float32, m: Float32) -> UInt8:
        """Tile16 storage of codes (rows, k), block codes (rows, blocks) and factors (rows,)."""
        joined = _JOIN[self.bits](tile_codes(codes.astype(np.uint8)))
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
