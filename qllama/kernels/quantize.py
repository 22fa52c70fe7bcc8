"""Compiled quantizers: the codecs of `qllama.quant`, bit for bit, in parallel.

Owns speed and nothing else: what a weight type is, its codec defines, and every
function here repeats that codec's float32 operations one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.kernels._jit import njit
from qllama.kernels.quantize_affine import quantize_affine
from qllama.kernels.quantize_lanes import (
    CHUNK_BLOCKS,
    LANES,
    half_bits,
    load_chunk,
    load_importance,
    store_bytes,
    store_nibbles,
)
from qllama.kernels.quantize_scale import search_scale
from qllama.quant import BLOCK, QUANT_TYPES, TILE_ROWS, FloatCodec, codec, matrix_n_bytes
from qllama.quant.affine import starts
from qllama.quant.importance import block_importance
from qllama.quant.q4_0 import Q4_0Codec
from qllama.quant.q8_0 import Q8_0Codec

__all__ = ["quantize"]

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_MAX_FLOAT = np.finfo(np.float32).max
_Q8_0_N_BYTES = QUANT_TYPES["q8_0"].tile_block_n_bytes
_Q4_0_N_BYTES = QUANT_TYPES["q4_0"].tile_block_n_bytes
_SCALES_N_BYTES = 2 * TILE_ROWS
_Q8_0_STARTS, _Q4_0_STARTS = Q8_0Codec.starts, Q4_0Codec.starts
_Q8_0_RANGE = np.float32(Q8_0Codec.least), np.float32(Q8_0Codec.greatest)
_Q4_0_RANGE = np.float32(Q4_0Codec.least), np.float32(Q4_0Codec.greatest)


def quantize(
    type_name: str,
    w: npt.NDArray[np.float32],
    n_threads: int,
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """Quantize a matrix to its tile16 storage, as `codec(type_name).quantize` does.

    Parameters
    ----------
    type_name : str
        One of `qllama.quant.QUANT_TYPES`.
    w : float32, (rows, k)
        C-contiguous; may be read-only.
    n_threads : int
        At most this many threads work; the result does not depend on it.
    importance : float32, (k,), or None
        As the codec's `quantize` takes it.

    Returns
    -------
    uint8, (matrix_n_bytes(type_name, rows, k),)

    Raises
    ------
    ConversionError
        When a weight is NaN, infinite or too large for the type, or `importance` is not
        what `block_importance` takes.
    UnsupportedModelError
        When there is no such type.
    """
    found = codec(type_name)
    found.check_weights(w)
    h = None if importance is None else block_importance(importance, w.shape[1])
    w = np.ascontiguousarray(w).view()
    # numba compiles anew for every combination of flags: let there be only one.
    w.flags.writeable = False
    # Zeros, because the float types write no padding.
    tiles = found.tiles(np.zeros(matrix_n_bytes(type_name, *w.shape), np.uint8), *w.shape)
    n_parts = max(1, min(n_threads, len(tiles)))
    bounds = [len(tiles) * part // n_parts for part in range(n_parts + 1)]

    def work(part: int) -> None:
        first, last = bounds[part], bounds[part + 1]
        slab = w[first * TILE_ROWS : last * TILE_ROWS]
        if isinstance(found, FloatCodec):
            bits = f"u{found.dtype.itemsize}"
            _interleave(slab.astype(found.dtype).view(bits), tiles[first:last].view(bits))
        else:
            _BLOCK_KERNELS[type_name](slab, tiles[first:last], h)

    if n_parts == 1:
        work(0)
    else:
        with ThreadPoolExecutor(n_parts) as pool:
            list(pool.map(work, range(n_parts)))
    return tiles.reshape(-1)


@njit
def _interleave(values: Any, tiles: Any) -> None:
    """Put `values` (rows, k) of any type side by side in tiles (tiles, 16 k padded)."""
    for row in range(len(values)):
        for column in range(values.shape[1]):
            at = column * TILE_ROWS + row % TILE_ROWS
            tiles[row // TILE_ROWS, at] = values[row, column]


@njit
def _usable_inverse(d: Any) -> Any:
    """1 / d, or 0 where that is not finite."""
    inverse = _ONE / d
    return inverse if abs(inverse) <= _MAX_FLOAT else _ZERO


@njit
def _store_scales(d: Any, lane: int, out: Any) -> None:
    """Store the scales (64,) of the 16 lanes from `lane` on as 32 bytes of float16."""
    bits, halves = d.view(np.uint32), out.view(np.uint16)
    for r in range(TILE_ROWS):
        halves[r] = half_bits(bits[lane + r])


@njit
def _round_q8_0(x: Any, codes: Any, d: Any, inverse: Any) -> None:
    """Fill `codes` (32, 64) and `d` (64,) as ggml does; `inverse` (64,) is scratch."""
    d[:] = _ZERO
    for i in range(BLOCK):
        for lane in range(LANES):
            magnitude = abs(x[i, lane])
            d[lane] = magnitude if magnitude > d[lane] else d[lane]
    for lane in range(LANES):
        d[lane] = d[lane] / np.float32(127)
        inverse[lane] = _usable_inverse(d[lane])
    for i in range(BLOCK):
        for lane in range(LANES):
            scaled = x[i, lane] * inverse[lane]
            magnitude = abs(scaled)
            whole = np.floor(magnitude)
            whole = whole + np.floor(_TWO * (magnitude - whole))
            code = np.int32(whole if scaled > _ZERO else -whole)
            codes[i, lane] = np.uint8(code + np.int32(128))


@njit
def _round_q4_0(x: Any, codes: Any, d: Any, inverse: Any) -> None:
    """Fill `codes` (32, 64) and `d` (64,) as ggml does; `inverse` (64,) is scratch."""
    d[:] = x[0]
    for i in range(BLOCK):
        for lane in range(LANES):
            value, largest = x[i, lane], d[lane]
            d[lane] = value if abs(value) > abs(largest) else largest
    for lane in range(LANES):
        d[lane] = d[lane] / np.float32(-8)
        inverse[lane] = _usable_inverse(d[lane])
    for i in range(BLOCK):
        for lane in range(LANES):
            code = np.int32(x[i, lane] * inverse[lane] + np.float32(8.5))
            codes[i, lane] = np.uint8(min(code, np.int32(15)))


@njit
def _quantize_q8_0(w: Any, tiles: Any, h: Any) -> None:
    n_blocks = -(-w.shape[1] // BLOCK)
    x, codes = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.uint8)
    d, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    chunk_h = np.empty((BLOCK, LANES), np.float32)
    for tile in range(len(tiles)):
        for first in range(0, n_blocks, CHUNK_BLOCKS):
            load_chunk(w, tile * TILE_ROWS, first, x)
            if h is None:
                _round_q8_0(x, codes, d, inverse)
            else:
                load_importance(h, first, chunk_h)
                search_scale(x, chunk_h, _Q8_0_STARTS, *_Q8_0_RANGE, codes, d)
            for block in range(first, min(first + CHUNK_BLOCKS, n_blocks)):
                lane = (block - first) * TILE_ROWS
                stored = tiles[tile, block * _Q8_0_N_BYTES : (block + 1) * _Q8_0_N_BYTES]
                store_bytes(codes, lane, stored)
                _store_scales(d, lane, stored[-_SCALES_N_BYTES:])


@njit
def _quantize_q4_0(w: Any, tiles: Any, h: Any) -> None:
    n_blocks = -(-w.shape[1] // BLOCK)
    x, codes = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.uint8)
    d, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    chunk_h = np.empty((BLOCK, LANES), np.float32)
    for tile in range(len(tiles)):
        for first in range(0, n_blocks, CHUNK_BLOCKS):
            load_chunk(w, tile * TILE_ROWS, first, x)
            if h is None:
                _round_q4_0(x, codes, d, inverse)
            else:
                load_importance(h, first, chunk_h)
                search_scale(x, chunk_h, _Q4_0_STARTS, *_Q4_0_RANGE, codes, d)
            for block in range(first, min(first + CHUNK_BLOCKS, n_blocks)):
                lane = (block - first) * TILE_ROWS
                stored = tiles[tile, block * _Q4_0_N_BYTES : (block + 1) * _Q4_0_N_BYTES]
                store_nibbles(codes, lane, stored)
                _store_scales(d, lane, stored[-_SCALES_N_BYTES:])


_BLOCK_KERNELS: dict[str, Callable[..., None]] = {
    "q8_0": _quantize_q8_0,
    "q4_0": _quantize_q4_0,
    "q4": partial(quantize_affine, 4, starts(4)),
    "q6": partial(quantize_affine, 6, starts(6)),
}
