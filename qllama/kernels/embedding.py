"""Rows of a packed matrix as float32: the token embedding.

Bit-equal to `dequantize` of the codecs in `qllama.quant`.
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.weight_kernels import WEIGHT_KERNELS
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = ["embed_row"]

_F32, _F16, _BF16, _Q8_0, _Q4_0, _Q4 = (
    [kernel.name for kernel in WEIGHT_KERNELS].index(name)
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4")
)


@njit
def embed_row(kernel_index, tile, row, n_blocks, out):
    """Write row `row` (0..15) of the tile at address `tile` to float32 `out`.

    `kernel_index` is the weight type's place in `weight_kernels.WEIGHT_KERNELS`; `out` takes
    32 * `n_blocks` values.
    """
    if kernel_index <= _BF16:
        _float_row(kernel_index, tile, row, n_blocks, out)
    elif kernel_index == _Q8_0:
        _q8_0_row(tile, row, n_blocks, out)
    else:
        _int4_row(kernel_index == _Q4, tile, row, n_blocks, out)


@njit
def _float_row(kernel_index, tile, row, n_blocks, out):
    for k in range(n_blocks * BLOCK):
        element = k * TILE_ROWS + row
        if kernel_index == _F32:
            value = v.load_scalar(tile + 4 * element)
        elif kernel_index == _F16:
            value = v.load_f16_scalar(tile + 2 * element)
        else:
            value = v.load_bf16_scalar(tile + 2 * element)
        v.store_scalar(out + 4 * k, value)


@njit
def _q8_0_row(tile, row, n_blocks, out):
    for block in range(n_blocks):
        codes = tile + 544 * block
        scale = v.load_f16_scalar(codes + 512 + 2 * row)
        for k in range(BLOCK):
            code = v.load_byte(codes + 64 * (k // 4) + 4 * row + k % 4) - 128
            v.store_scalar(out + 4 * (BLOCK * block + k), np.float32(code) * scale)


@njit
def _int4_row(has_minimum, tile, row, n_blocks, out):
    factors = tile + 288 * n_blocks + 4 * row
    for block in range(n_blocks):
        codes = tile + 288 * block
        if has_minimum:
            scale = v.load_scalar(factors) * np.float32(v.load_byte(codes + 256 + row))
            minimum = v.load_scalar(factors + 64) * np.float32(v.load_byte(codes + 272 + row))
            offset = 0
        else:
            scale = v.load_f16_scalar(codes + 256 + 2 * row)
            minimum = np.float32(0.0)
            offset = 8
        for k in range(BLOCK):
            group = k // 4
            byte = v.load_byte(codes + 64 * (group % 4) + 4 * row + k % 4)
            code = (byte >> (4 * (group // 4)) & 15) - offset
            value = scale * np.float32(code)
            if has_minimum:
                value = value - minimum
            v.store_scalar(out + 4 * (BLOCK * block + k), value)
