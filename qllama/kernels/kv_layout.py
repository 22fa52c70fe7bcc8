"""How keys and values lie in the cache: layouts that the attention kernel streams.

One key/value head of one sequence is a run of chunks of `CHUNK` positions, for keys
and for values alike. head_dim is padded with zeros to `head_size`, a multiple of 32.
A chunk is one stream of memory, read from its first byte on:

- `f16` keys: for each 32 positions a panel [head_size][32 positions] of halves;
- `f16` values: for each 32 dimensions a panel [CHUNK][32 dimensions] of halves;
- `q8` keys: for each 16 positions a tile of `q8_0` weights (`docs/format.md` section 3),
  whose rows are the positions: their product is the `q8_0` matrix kernel;
- `q8` values: for each 32 dimensions a panel [CHUNK][32 dimensions] of int8 codes, then
  one half a position, its scale.

`q8` rounds each (position, 32 dimensions) to scale * code, scale = absmax / 127 as a
half. Whatever is stored is finite: unseen positions are multiplied by weights of zero.
Throughout, `kv_type` is a place in `KV_TYPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from qllama.kernels import simd
from qllama.kernels import vector as v
from qllama.kernels._jit import inlined, intrinsic, njit
from qllama.kernels.panel import PANEL, ROW_FLOATS
from qllama.kernels.simd import I8, I16, I32, I64, Value
from qllama.quant.types import BLOCK, QUANT_TYPES, TILE_ROWS

__all__ = [
    "CHUNK",
    "F16",
    "KV_TYPES",
    "Q8",
    "append_key",
    "append_value",
    "chunk_bytes",
    "key_panel_bytes",
    "value_panel_bytes",
]

#: Positions whose scores are computed together.
CHUNK = ROW_FLOATS
#: Types of the cache's content; compiled code knows them by their place.
KV_TYPES = ("f16", "q8")
F16, Q8 = range(2)

_HALF = 2
_HALF_COLUMN = _HALF * PANEL
_Q8_TILE_BLOCK = QUANT_TYPES["q8_0"].tile_block_n_bytes
_Q8_SCALES = BLOCK * TILE_ROWS
# A block whose largest magnitude is below this becomes 0: 127 / absmax would overflow.
_TINY = np.float32(2.0**-100)
_MAX_CODE = np.float32(127.0)


@inlined
def chunk_bytes(kv_type, head_size):
    """Bytes of one head's chunk of keys, or of values."""
    return value_panel_bytes(kv_type) * (head_size // PANEL)


@inlined
def key_panel_bytes(kv_type, head_size):
    """Bytes of 32 positions' keys."""
    if kv_type == Q8:
        return 2 * _Q8_TILE_BLOCK * (head_size // BLOCK)
    return _HALF_COLUMN * head_size


@inlined
def value_panel_bytes(kv_type):
    """Bytes of a chunk's values in 32 dimensions."""
    return CHUNK * (BLOCK + _HALF) if kv_type == Q8 else CHUNK * _HALF_COLUMN


@njit
def append_key(kv_type, keys, position, key, head_size):
    """Store a head's key at `position`.

    Parameters
    ----------
    kv_type : int64
    keys : int64
        Address of the head's first chunk.
    position : int64
    key : int64
        Address of float32, (head_size,).
    head_size : int64
    """
    chunk = keys + position // CHUNK * chunk_bytes(kv_type, head_size)
    within = position % CHUNK
    panel = chunk + within // PANEL * key_panel_bytes(kv_type, head_size)
    if kv_type == F16:
        for i in range(0, head_size, v.LANES):
            lane = panel + _HALF_COLUMN * i + _HALF * (within % PANEL)
            _scatter_halves(lane, _HALF_COLUMN, v.load(key + 4 * i))
        return
    n_blocks = head_size // BLOCK
    tile = panel + within % PANEL // TILE_ROWS * (_Q8_TILE_BLOCK * n_blocks)
    lane = within % TILE_ROWS
    for block in range(n_blocks):
        target = tile + _Q8_TILE_BLOCK * block
        inverse = _store_scale(target + _Q8_SCALES + _HALF * lane, key + 4 * BLOCK * block)
        for half in range(2):
            x = v.load(key + 4 * (BLOCK * block + v.LANES * half))
            # Stored codes are unsigned.
            group = target + v.LANES * TILE_ROWS * half + 4 * lane
            _scatter_codes(group, 4 * TILE_ROWS, x * inverse, 128)


@njit
def append_value(kv_type, values, position, value, head_size):
    """Store a head's value at `position`.

    Parameters
    ----------
    kv_type : int64
    values : int64
        Address of the head's first chunk.
    position : int64
    value : int64
        Address of float32, (head_size,).
    head_size : int64
    """
    chunk = values + position // CHUNK * chunk_bytes(kv_type, head_size)
    within = position % CHUNK
    for i in range(0, head_size, PANEL):
        panel = chunk + i // PANEL * value_panel_bytes(kv_type)
        if kv_type == F16:
            row = panel + _HALF_COLUMN * within
            for half in range(2):
                x = v.load(value + 4 * (i + v.LANES * half))
                _scatter_halves(row + _HALF * v.LANES * half, _HALF, x)
        else:
            inverse = _store_scale(panel + CHUNK * BLOCK + _HALF * within, value + 4 * i)
            for half in range(2):
                x = v.load(value + 4 * (i + v.LANES * half))
                _scatter_codes(panel + BLOCK * within + v.LANES * half, 4, x * inverse, 0)


@njit
def _store_scale(target, x):
    """Store the scale of 32 values at address `x` as a half; returns its inverse's splat."""
    largest = v.maximum(v.absolute(v.load(x)), v.absolute(v.load(x + 4 * v.LANES)))
    absmax = v.reduce_max(largest)
    v.store_f16(target, absmax / _MAX_CODE)
    return v.splat(np.float32(0.0) if absmax < _TINY else _MAX_CODE / absmax)


@intrinsic
def _scatter_halves(
    _context: Any, target: Any, stride: Any, x: Any
) -> tuple[Any, Callable[..., Any]]:
    """Store 16 values as halves, `stride` bytes apart, each the nearest finite one."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        target, stride, x = arguments
        halves = v.finite_halves(b, x)
        _scatter(b, target, stride, halves, v.LANES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, v.f32x16), codegen


@intrinsic
def _scatter_codes(
    _context: Any, target: Any, stride: Any, x: Any, offset: Any
) -> tuple[Any, Callable[..., Any]]:
    """Store 16 values as rounded bytes plus `offset`: four together, `stride` bytes apart."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        target, stride, x, offset = arguments
        codes = simd.round_to_int(b, x)
        codes = b.add(codes, simd.splat(b, b.trunc(offset, I32), v.LANES))
        quarters = b.bitcast(b.trunc(codes, simd.vector(I8, v.LANES)), simd.vector(I32, 4))
        _scatter(b, target, stride, quarters, 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, v.f32x16, types.int64), codegen


def _scatter(b: Any, target: Value, stride: Value, lanes: Value, count: int) -> None:
    pointer = b.inttoptr(target, I8.as_pointer())
    for i in range(count):
        place = simd.at(b, pointer, b.mul(stride, I64(i)))
        align = 2 if lanes.type.element == I16 else 4
        simd.store(b, b.extract_element(lanes, I32(i)), place, align)
