"""`q4`, `q5` and `q6`: codes with a scale and a minimum a block of 32.

weight = (d * sc) * code - (m * mc), all in float32: code of 4, 5 or 6 bits; sc and mc are
codes of the block, 8 bits each, 6 in `q5`; d and m are factors of the row, never negative,
float32, in `q5` of bfloat16's precision. So a weight takes 4.5, 5.375 or 6.5 bits.
Codes of a block whose weights are all positive count from about 0. Only the row factors are
floats, so they leave a kernel's inner loop, and any k serves: there are no
superblocks to fill.

Quantizing minimizes each block's squared error, each weight's times the importance of its
column where that is given, in two steps; c is the greatest code:

1. Without rounding scale and minimum. Sixteen starts place the block's least weight
   at code `e` and its greatest at code `c - f`, for e and f in `ENDS`; each is
   refitted twice (codes for the scale and minimum, then the least-squares scale
   and minimum for the codes, minimum >= 0). The fit of least error with its codes, which
   the sums of the fit give without another look at the weights, is kept.
2. d = greatest scale of the row / greatest sc (255; 63 in `q5`, whose d and m keep the 8 bits
   of a bfloat16), and m likewise. Four pairs are tried, and that of least error is kept: the
   nearest sc and mc; and the nearest sc and its neighbours with the mc for which the mean of
   the block stays where step 1 had it. The codes are
   clamp(rint((w + m * mc) * (1 / (d * sc))), 0, c).

Fast, only the first start and the first pair are taken.

Scales below float32's smallest normal number count as 0: their inverse would
overflow. Weights are limited to 1e15 so that no sum of products overflows.

The search tolerates no reordering: a compiled version repeats these operations
one by one. Reference: `docs/quantization.md` for the measurements behind it,
`docs/format.md` section 3 for the storage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qllama.quant.block_sum import sum_block
from qllama.quant.codec import BlockCodec, Grid
from qllama.quant.importance import blocks_of_columns
from qllama.quant.tile16 import (
    GROUP,
    join_fives,
    join_nibbles,
    join_pairs,
    join_sixes,
    split_fives,
    split_nibbles,
    split_pairs,
    split_sixes,
    tile_codes,
    tile_per_block,
    untile_codes,
    untile_per_block,
)
from qllama.quant.types import BLOCK, QUANT_TYPES, TILE_ROWS

__all__ = [
    "REFITS",
    "SCALE_BITS",
    "SCALE_STEPS",
    "SMALLEST_SCALE",
    "SPLITTER",
    "AffineCodec",
    "starts",
]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

#: Of sc and of mc, by the bits of a code.
SCALE_BITS = {4: 8, 5: 6, 6: 8}
#: x * 65537 - (x * 65537 - x) is x to the 8 bits of bfloat16 (Dekker 1971, "A floating-point
#: technique for extending the available precision", section 5).
SPLITTER = np.float32(2**16 + 1)
SMALLEST_SCALE = np.finfo(np.float32).smallest_normal

#: Where the extremes of a block start, in codes inside the range, by the bits of a code; 0
#: first, so that a block which is already a grid of that many levels is met exactly. Chosen
#: on trained, Gaussian and Student-t weights: within 0.5% of the error of hundreds of starts.
ENDS = {4: (0.0, -0.4, 0.4, 1.0), 5: (0.0, 0.4, 1.0, 1.8), 6: (0.0, 0.8, 1.8, 3.2)}

REFITS = 2

#: Steps from the nearest sc whose best mc is tried.
SCALE_STEPS: Float32 = np.array([0, -1, 1], np.float32)

_JOIN = {4: join_nibbles, 5: join_fives, 6: join_sixes}
_SPLIT = {4: split_nibbles, 5: split_fives, 6: split_sixes}


def starts(bits: int) -> Float32:
    """Where the search begins: code of a block's least weight, codes from there to the greatest.

    Parameters
    ----------
    bits : int
        Of a code: 4, 5 or 6.

    Returns
    -------
    float32, (16, 2)
    """
    greatest = 2**bits - 1
    return np.array([(e, greatest - f - e) for e in ENDS[bits] for f in ENDS[bits]], np.float32)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks x (32, n), their importance h (32, n), and weighted sums (n,) over each."""

    x: Float32
    h: Float32
    bits: int
    sum_h: Float32
    sum_x: Float32
    sum_xx: Float32

    @classmethod
    def of(cls, x: Float32, h: Float32, bits: int) -> _Blocks:
        hx = h * x
        return cls(x, h, bits, sum_block(h), sum_block(hx), sum_block(hx * x))

    def codes(self, scale: Float32, minimum: Float32) -> Float32:
        """Best codes, whole float32 (32, n), for scale and minimum (n,)."""
        usable = scale >= SMALLEST_SCALE
        inverse = np.where(usable, np.float32(1) / np.where(usable, scale, 1), np.float32(0))
        codes: Float32 = np.clip(
            np.rint((self.x + minimum) * inverse), np.float32(0), np.float32(2**self.bits - 1)
        )
        return codes

    def error(self, scale: Float32, minimum: Float32) -> Float32:
        """Weighted squared error (n,) with the best codes."""
        difference = (scale * self.codes(scale, minimum) - minimum) - self.x
        return sum_block(self.h * (difference * difference))

    def refit(self, scale: Float32, minimum: Float32) -> tuple[Float32, Float32, Float32]:
        """Least-squares scale and minimum (n,) for the codes that the given ones lead to.

        Where all codes are equal, or the fit has no positive scale, the given ones stay. The
        third is their weighted squared error (n,) with these codes.
        """
        q = self.codes(scale, minimum)
        hq = self.h * q
        sum_q, sum_qq, sum_xq = sum_block(hq), sum_block(hq * q), sum_block(hq * self.x)
        determinant = self.sum_h * sum_qq - sum_q * sum_q
        solvable = determinant > 0
        divisor = np.where(solvable, determinant, np.float32(1))
        fitted_scale = (self.sum_h * sum_xq - sum_q * self.sum_x) / divisor
        fitted_minimum = (sum_q * sum_xq - sum_qq * self.sum_x) / divisor
        # The best fit without a minimum, where the free one would need a negative one.
        bare_scale = sum_xq / np.where(solvable, sum_qq, np.float32(1))
        has_minimum = fitted_minimum > 0
        fitted_scale = np.where(has_minimum, fitted_scale, bare_scale)
        fitted_minimum = np.where(has_minimum, fitted_minimum, np.float32(0))
        better = solvable & (fitted_scale > 0)
        s = np.where(better, fitted_scale, scale)
        m = np.where(better, fitted_minimum, minimum)
        two = np.float32(2)
        of_scale = s * (two * sum_xq - s * sum_qq)
        of_minimum = m * ((two * self.sum_x - two * s * sum_q) + m * self.sum_h)
        return s, m, (self.sum_xx - of_scale) + of_minimum

    def search(self, starts: Float32) -> tuple[Float32, Float32]:
        """Step 1: scale and minimum (n,), not yet rounded."""
        least = self.x.min(axis=0)
        least = np.where(least < 0, least, np.float32(0))
        span = self.x.max(axis=0) - least
        span = np.where(span > 0, span, np.float32(0))
        best = tuple(np.zeros_like(span) for _ in range(2))
        best_error = np.full_like(span, np.inf)
        for code_of_least, n_codes in starts:
            scale = span / n_codes
            minimum = scale * code_of_least - least
            minimum = np.where(minimum > 0, minimum, np.float32(0))
            for _ in range(REFITS):
                scale, minimum, error = self.refit(scale, minimum)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best = np.where(better, scale, best[0]), np.where(better, minimum, best[1])
        return best

    def mean_code(self, scale: Float32, minimum: Float32) -> Float32:
        """The mean (n,) of codes which least squares lead to this scale and minimum."""
        greatest = np.float32(2**self.bits - 1)
        total = self.sum_x / self.sum_h + minimum
        is_inside = (total < scale * greatest) & (scale >= SMALLEST_SCALE)
        mean = np.where(is_inside, total / np.where(is_inside, scale, np.float32(1)), greatest)
        return np.where(mean > 0, mean, np.float32(0))


def _row_factors(values: Float32, bits: int) -> Float32:
    """Factor (rows,) of non-negative values (rows, blocks): the greatest has the greatest code."""
    factor = values.max(axis=1) / np.float32(2 ** SCALE_BITS[bits] - 1)
    if SCALE_BITS[bits] == 6:
        far = factor * SPLITTER
        factor = far - (far - factor)
    usable: Float32 = np.where(factor >= SMALLEST_SCALE, factor, np.float32(0))
    return usable


def _nearest(values: Float32, factor: Float32, greatest: np.float32) -> Float32:
    """Whole float32 codes (n,) of values (n,) in units of factor (n,); 0 where that is 0."""
    usable = factor > 0
    positive = np.where(values > 0, values, np.float32(0))
    codes = np.rint(positive / np.where(usable, factor, np.float32(1)))
    limited: Float32 = np.where(usable, np.minimum(codes, greatest), np.float32(0))
    return limited


class AffineCodec(BlockCodec):
    """The type `name`, whose blocks have a scale and a minimum.

    Parameters
    ----------
    name : str
        `q4`, `q5` or `q6`.

    Attributes
    ----------
    bits : int
        Of a code.
    scale_bits : int
        Of the codes of a scale and a minimum.
    """

    def __init__(self, name: str) -> None:
        self.bits = {"q4": 4, "q5": 5, "q6": 6}[name]
        self.scale_bits = SCALE_BITS[self.bits]
        super().__init__(QUANT_TYPES[name], 1e15)

    def _encode(self, w: Float32, h: Float32 | None, fast: bool) -> UInt8:
        rows, k = w.shape
        x = np.ascontiguousarray(w.reshape(-1, BLOCK).T)
        # Times 1 is exact, so that without importance the sums are those of the plain search.
        columns = blocks_of_columns(np.ones(k, np.float32) if h is None else h, rows)
        blocks = _Blocks.of(x, columns, self.bits)
        scale, minimum = blocks.search(starts(self.bits)[: 1 if fast else None])
        d, m = (_row_factors(a.reshape(rows, -1), self.bits) for a in (scale, minimum))
        d_block, m_block = (np.repeat(a, k // BLOCK) for a in (d, m))
        greatest = np.float32(2**self.scale_bits - 1)
        nearest_sc = _nearest(scale, d_block, greatest)
        pairs = [(nearest_sc, _nearest(minimum, m_block, greatest))]
        mean, mean_code = blocks.sum_x / blocks.sum_h, blocks.mean_code(scale, minimum)
        for step in SCALE_STEPS[: 0 if fast else None]:
            near_sc = np.clip(nearest_sc + step, np.float32(0), greatest)
            wanted = (d_block * near_sc) * mean_code - mean
            pairs.append((near_sc, _nearest(wanted, m_block, greatest)))
        sc, mc = pairs[0]
        best_error = np.full_like(sc, np.inf)
        for near_sc, near_mc in pairs:
            error = blocks.error(d_block * near_sc, m_block * near_mc)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            sc, mc = np.where(better, near_sc, sc), np.where(better, near_mc, mc)
        codes = blocks.codes(d_block * sc, m_block * mc).T.reshape(rows, k)
        return self._store(codes, sc.reshape(rows, -1), mc.reshape(rows, -1), d, m)

    def grid(self, data: UInt8, rows: int, k: int) -> Grid:
        """Read the grids of a quantized matrix; see `BlockCodec.grid`."""
        _, sc, mc, d, m = self._parts(self.tiles(data, rows, k))
        scales, minimums = (d[:, None] * sc)[:rows].T, (m[:, None] * mc)[:rows].T
        return Grid(np.ascontiguousarray(scales), np.ascontiguousarray(minimums), 2**self.bits - 1)

    def with_codes(self, data: UInt8, codes: UInt8) -> UInt8:
        """Store other codes on the same grids; see `BlockCodec.with_codes`."""
        rows, k = codes.shape
        before, *grids = self._parts(self.tiles(data, rows, k))
        before[:rows, :k] = codes
        return self._store(before, *grids).reshape(-1)

    def _decode(self, tiles: UInt8) -> Float32:
        codes, sc, mc, d, m = self._parts(tiles)
        scale, minimum = (d[:, None] * sc)[:, :, None], (m[:, None] * mc)[:, :, None]
        by_block = codes.reshape(*sc.shape, BLOCK)
        return (scale * by_block - minimum).reshape(codes.shape)

    def _parts(self, tiles: UInt8) -> tuple[Float32, Float32, Float32, Float32, Float32]:
        """What `_store` takes."""
        n_tail = self.kind.tile_tail_n_bytes
        tail = np.ascontiguousarray(tiles[:, -n_tail:]).view(f"<u{n_tail // (2 * TILE_ROWS)}")
        # Of bfloat16's precision, the high half of a float32 is all of it.
        factors = (tail.astype("<u4") << (32 - 8 * tail.itemsize)).view("<f4")
        d, m = (a.reshape(-1) for a in np.split(factors, 2, axis=1))
        blocks = tiles[:, :-n_tail].reshape(len(tiles), -1, self.kind.tile_block_n_bytes)
        joined, pairs = np.split(blocks, [self.bits * BLOCK * TILE_ROWS // 8], axis=2)
        joined = joined.reshape(*blocks.shape[:2], self.bits, TILE_ROWS, GROUP)
        codes = untile_codes(_SPLIT[self.bits](joined)).astype(np.float32)
        split = split_pairs(pairs, self.scale_bits)
        sc, mc = (untile_per_block(a).astype(np.float32) for a in split)
        return codes, sc, mc, d, m

    def _store(self, codes: Float32, sc: Float32, mc: Float32, d: Float32, m: Float32) -> UInt8:
        """Tile16 storage of codes (rows, k), block codes (rows, blocks) and factors (rows,)."""
        joined = _JOIN[self.bits](tile_codes(codes.astype(np.uint8)))
        n_tiles, n_blocks = joined.shape[:2]
        first, second = (tile_per_block(a.astype(np.uint8)) for a in (sc, mc))
        pairs = join_pairs(first, second, self.scale_bits)
        blocks = np.concatenate([joined.reshape(n_tiles, n_blocks, -1), pairs], axis=2)
        factors = np.concatenate([a.reshape(n_tiles, TILE_ROWS) for a in (d, m)], axis=1)
        n_bytes = self.kind.tile_tail_n_bytes // (2 * TILE_ROWS)
        tail = factors.astype("<f4").view("<u4") >> (32 - 8 * n_bytes)
        tail_bytes = np.ascontiguousarray(tail.astype(f"<u{n_bytes}")).view(np.uint8)
        return np.concatenate([blocks.reshape(n_tiles, -1), tail_bytes], axis=1)
