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

_F32, _F16, _BF16, _Q8_0, _Q4_0, _Q4, _Q5, _Q6 = (
    [kernel.name for kernel in WEIGHT_KERNELS].index(name)
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4", "q5", "q6")
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
    elif kernel_index == _Q4_0:
        _q4_0_row(tile, row, n_blocks, out)
    else:
        bits = 4 if kernel_index == _Q4 else 5 if kernel_index == _Q5 else 6
        _affine_row(bits, tile, row, n_blocks, out)


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
def _nibble(codes, row, k):
    """The 4-bit code of column `k` of a block whose codes are at address `codes`."""
    byte = v.load_byte(codes + 64 * (k // 4 % 4) + 4 * row + k % 4)
    return byte >> (4 * (k // 16)) & 15


@njit
def _six(codes, row, k):
    """The 6-bit code of column `k` of a block whose codes are at address `codes`."""
    place = codes + 192 * (k // 16) + 4 * row + k % 4
    group = k // 4 % 4
    if group < 3:
        return v.load_byte(place + 64 * group) & 63
    low, middle, high = v.load_byte(place), v.load_byte(place + 64), v.load_byte(place + 128)
    return low >> 6 | middle >> 6 << 2 | high >> 6 << 4


@njit
def _q4_0_row(tile, row, n_blocks, out):
    for block in range(n_blocks):
        codes = tile + 288 * block
        scale = v.load_f16_scalar(codes + 256 + 2 * row)
        for k in range(BLOCK):
            value = scale * np.float32(_nibble(codes, row, k) - 8)
            v.store_scalar(out + 4 * (BLOCK * block + k), value)


@njit
def _five(codes, row, k):
    """The 5-bit code of column `k` of a block whose codes are at address `codes`."""
    plane = v.load_byte(codes + 256 + 4 * row + k % 4)
    return _nibble(codes, row, k) | (plane >> (k // 4) & 1) << 4


@njit
def _pair(pairs, row, bits):
    """The scale and minimum codes, of 5-bit codes or others, of a block's pairs at an address."""
    first = v.load_byte(pairs + row)
    if bits != 5:
        return first, v.load_byte(pairs + TILE_ROWS + row)
    half = TILE_ROWS // 2
    high = v.load_byte(pairs + TILE_ROWS + row % half) >> (4 * (row // half)) & 15
    return first & 63, first >> 6 | high << 2


@njit
def _factor(factors, i, bits):
    """Number `i` of a tile's row factors at an address."""
    return v.load_scalar(factors + 4 * i) if bits != 5 else v.load_bf16_scalar(factors + 2 * i)


@njit
def _affine_row(bits, tile, row, n_blocks, out):
    block_n_bytes = 344 if bits == 5 else 64 * bits + 2 * TILE_ROWS
    factors = tile + block_n_bytes * n_blocks
    d, m = _factor(factors, row, bits), _factor(factors, TILE_ROWS + row, bits)
    for block in range(n_blocks):
        codes = tile + block_n_bytes * block
        scale_code, minimum_code = _pair(codes + 64 * bits, row, bits)
        scale, minimum = d * np.float32(scale_code), m * np.float32(minimum_code)
        values = out + 4 * BLOCK * block
        if bits == 4:
            for g in range(4):
                for j in range(4):
                    byte = v.load_byte(codes + 64 * g + 4 * row + j)
                    at = values + 16 * g + 4 * j
                    v.store_scalar(at, scale * np.float32(byte & 15) - minimum)
                    v.store_scalar(at + 64, scale * np.float32(byte >> 4) - minimum)
        else:
            for k in range(BLOCK):
                code = _five(codes, row, k) if bits == 5 else _six(codes, row, k)
                v.store_scalar(values + 4 * k, scale * np.float32(code) - minimum)
