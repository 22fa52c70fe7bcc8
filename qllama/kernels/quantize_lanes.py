"""What the compiled quantizers share: weights into lanes, codes and scales out of them.

A chunk is 16 rows x 4 blocks of 32 k, held as float32 (32, 64): element i of the
block is the first index, and row r of the chunk's block b is lane 16 b + r. So 16
lanes are a vector of one block of each row, and each lane's sums run in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.quant import BLOCK, TILE_ROWS

__all__ = [
    "CHUNK_BLOCKS",
    "CHUNK_ROW",
    "LANES",
    "importance_of",
    "load_chunk",
    "rounded",
    "store_eights",
    "store_factors",
    "store_fives",
    "store_nibbles",
    "store_pairs",
    "store_sixes",
    "weighted",
]

CHUNK_BLOCKS = 4
LANES = CHUNK_BLOCKS * TILE_ROWS
#: Bytes from one element of a chunk's blocks to the next.
CHUNK_ROW = 4 * LANES

_ZERO = np.float32(0)
#: The unit of this number is 1: adding it and taking it away rounds what is below 2**22.
_ROUNDER = np.float32(1.5 * 2**23)


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
def rounded(x: Any) -> Any:
    """Round vector `x` of numbers below 2**22 to the nearest whole ones, ties to even."""
    rounder = v.splat(_ROUNDER)
    return (x + rounder) - rounder


@njit
def importance_of(h: Any, block: Any) -> Any:
    """Address of what `h` (k padded,) has of the columns of `block`, or None if it is None."""
    return None if h is None else h.ctypes.data + 4 * BLOCK * block


@njit
def weighted(value: Any, h: Any, i: Any) -> Any:
    """Multiply vector `value` by number `i` at address `h`; None, known when compiling, is 1."""
    return value if h is None else v.splat(v.load_scalar(h + 4 * i)) * value


@njit
def store_eights(codes: Any, lane: int, out: Any) -> None:
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
def store_fives(codes: Any, lane: int, out: Any) -> None:
    """Store the 5-bit `codes` (32, 64) of 16 lanes from `lane` on as 320 bytes of `out`."""
    for r in range(TILE_ROWS):
        for j in range(4):
            plane = np.uint8(0)
            for g in range(4):
                low, high = codes[4 * g + j, lane + r], codes[16 + 4 * g + j, lane + r]
                byte = (low & np.uint8(15)) | (high << np.uint8(4))
                out[(g * TILE_ROWS + r) * 4 + j] = byte
                plane |= (low >> np.uint8(4)) << np.uint8(g)
                plane |= (high >> np.uint8(4)) << np.uint8(g + 4)
            out[(4 * TILE_ROWS + r) * 4 + j] = plane


@njit
def store_pairs(pairs: Any, bits: int, out: Any) -> None:
    """Store uint8 `pairs` (2, 16) of 8 or 6 `bits` as 32 or 24 bytes of `out`."""
    half = TILE_ROWS // 2
    for r in range(TILE_ROWS):
        if bits == 8:
            out[r], out[TILE_ROWS + r] = pairs[0, r], pairs[1, r]
        else:
            out[r] = pairs[0, r] | (pairs[1, r] << np.uint8(6))
            if r < half:
                high = (pairs[1, r + half] >> np.uint8(2)) << np.uint8(4)
                out[TILE_ROWS + r] = (pairs[1, r] >> np.uint8(2)) | high


@njit
def store_factors(factors: Any, n_bytes: int, out: Any) -> None:
    """Store the upper `n_bytes`, 4 or 2, of float32 `factors` (2, 16) one after the other."""
    bits = factors.reshape(-1).view(np.uint32)
    for i in range(len(bits)):
        for byte in range(n_bytes):
            out[n_bytes * i + byte] = np.uint8(bits[i] >> np.uint32(8 * (4 - n_bytes + byte)) & 255)
