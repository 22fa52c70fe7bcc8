"""What the compiled quantizers share: weights into lanes, codes and scales out of them.

A chunk is 16 rows x 4 blocks of 32 k, held as float32 (32, 64): element i of the
block is the first index, and row r of the chunk's block b is lane 16 b + r. Loops
over lanes become SIMD code, and each lane's sums still run in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels._jit import njit
from qllama.quant import BLOCK, TILE_ROWS

__all__ = [
    "CHUNK_BLOCKS",
    "LANES",
    "half_bits",
    "half_value",
    "load_chunk",
    "load_importance",
    "store_bytes",
    "store_nibbles",
    "store_sixes",
    "weighted",
]

CHUNK_BLOCKS = 4
LANES = CHUNK_BLOCKS * TILE_ROWS

_ZERO = np.float32(0)


@njit
def load_chunk(w: Any, row: int, block: int, x: Any) -> None:
    """Fill `x` (32, 64) with 16 rows x 4 blocks of `w` from (row, block) on, zeros outside."""
    rows, k = w.shape
    for b in range(CHUNK_BLOCKS):
        column = (block + b) * BLOCK
        lane = b * TILE_ROWS
        if row + TILE_ROWS <= rows and column + BLOCK <= k:
            # Constant bounds: LLVM makes this loop nest a vector transposition.
            for i in range(BLOCK):
                for r in range(TILE_ROWS):
                    x[i, lane + r] = w[row + r, column + i]
        else:
            x[:, lane : lane + TILE_ROWS] = _ZERO
            for r in range(min(TILE_ROWS, rows - row)):
                for i in range(min(BLOCK, k - column)):
                    x[i, lane + r] = w[row + r, column + i]


@njit
def load_importance(h: Any, block: int, out: Any) -> None:
    """Fill `out` (32, 64) with `h` (k,) of 4 blocks from `block` on, or nothing if `h` is None."""
    if h is not None:
        for b in range(CHUNK_BLOCKS):
            column = (block + b) * BLOCK
            for i in range(BLOCK):
                value = h[column + i] if column < len(h) else _ZERO
                for r in range(TILE_ROWS):
                    out[i, b * TILE_ROWS + r] = value


@njit
def weighted(value: Any, h: Any, i: int, lane: int) -> Any:
    """Multiply `value` by `h` (32, 64) at (`i`, `lane`); None, known when compiling, is 1."""
    return value if h is None else h[i, lane] * value


@njit
def store_bytes(codes: Any, lane: int, out: Any) -> None:
    """Store the 8-bit `codes` (32, 64) of 16 lanes from `lane` on as 512 bytes of `out`."""
    for g in range(8):
        for r in range(TILE_ROWS):
            for j in range(4):
                out[(g * TILE_ROWS + r) * 4 + j] = codes[4 * g + j, lane + r]


@njit
def store_nibbles(codes: Any, lane: int, out: Any) -> None:
    """Store the 4-bit `codes` (32, 64) of 16 lanes from `lane` on as 256 bytes of `out`."""
    for g in range(4):
        for r in range(TILE_ROWS):
            for j in range(4):
                low, high = codes[4 * g + j, lane + r], codes[16 + 4 * g + j, lane + r]
                out[(g * TILE_ROWS + r) * 4 + j] = low | (high << np.uint8(4))


@njit
def store_sixes(codes: Any, lane: int, out: Any) -> None:
    """Store the 6-bit `codes` (32, 64) of 16 lanes from `lane` on as 384 bytes of `out`."""
    for half in range(2):
        for i in range(3):
            for r in range(TILE_ROWS):
                for j in range(4):
                    low = codes[16 * half + 4 * i + j, lane + r]
                    pair = codes[16 * half + 12 + j, lane + r] >> np.uint8(2 * i)
                    byte = low | (pair << np.uint8(6))
                    out[((3 * half + i) * TILE_ROWS + r) * 4 + j] = byte


@njit
def half_bits(bits: int) -> int:
    """Round the bits of a float32 to those of the nearest float16, ties to even.

    The number must be finite and its magnitude at most 65504.
    """
    magnitude = bits & 0x7FFFFFFF
    exponent = magnitude >> 23
    # A float16 subnormal is a multiple of 2**-24: shift the whole significand there.
    # Beyond 25 places nothing is left to round up.
    shift = 13 if exponent >= 113 else min(126 - exponent, 25)
    value = magnitude - (112 << 23) if exponent >= 113 else magnitude & 0x7FFFFF | 0x800000
    value += (1 << (shift - 1)) - 1 + ((value >> shift) & 1)
    return ((bits >> 16) & 0x8000) | (value >> shift)


@njit
def half_value(bits: int) -> Any:
    """Return the float32 that the bits of a finite float16 stand for."""
    exponent, significand = (bits >> 10) & 0x1F, bits & 0x3FF
    value = np.float32(significand) if exponent == 0 else np.float32(significand | 0x400)
    value *= np.float32(2.0) ** np.float32(max(exponent, 1) - 25)
    return -value if bits & 0x8000 else value
