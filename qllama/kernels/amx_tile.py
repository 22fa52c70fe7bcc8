"""Generates the integer kernels' widest groups for AMX: 16 tokens times 16 rows at once.

One instruction multiplies a matrix tile of 16 tokens by 32 columns with one of 32
columns by 16 rows, exactly; the sums go through memory into vector registers, where
they are scaled as `register_tile` scales them, in the same order: the same bits.

A weight tile is unpacked to signed bytes first, once for all tokens. Throughout:
`tile` is a register tile as `linear` makes them, `b` an llvmlite IRBuilder; `scratch`,
aligned to 64, holds the sums of a block (16 tokens of 16 int32), then the
unpacked codes (512 bytes a block), then the scales (16 float32 a block).
Instructions and tile registers: Intel 64 and IA-32 manual, volume 1, chapter 18.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from qllama.kernels import simd
from qllama.kernels.register_tile import (
    RegisterTile,
    block_codes,
    block_pointers,
    block_scales,
    finish_tile,
    sum_minimums,
)
from qllama.kernels.simd import F32, I8, I32, I64, Value
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = ["MATRIX_TOKENS", "close_tiles", "generate_amx_tile", "open_tiles", "scratch_bytes"]

#: Tokens of a matrix tile.
MATRIX_TOKENS = 16
_SUMS, _ACTIVATIONS, _WEIGHTS = range(3)
_ROW_BYTES = 64
_SUMS_BYTES = MATRIX_TOKENS * _ROW_BYTES
_CODES_BYTES = BLOCK * TILE_ROWS
_GROUPS = BLOCK // 4
_VOID = ir.VoidType()
_POINTER = I8.as_pointer()


def scratch_bytes(n_blocks: int) -> int:
    """Bytes of scratch that `n_blocks` blocks of one weight tile take."""
    return _SUMS_BYTES + n_blocks * (_CODES_BYTES + _ROW_BYTES)


def _tile_shapes() -> bytes:
    """The operand of `ldtilecfg`: palette 1, then columns in bytes and rows of each tile."""
    shapes = {_SUMS: (16, 64), _ACTIVATIONS: (16, BLOCK), _WEIGHTS: (_GROUPS, 64)}
    operand = bytearray(64)
    operand[0] = 1
    for tile, (rows, row_bytes) in shapes.items():
        operand[16 + 2 * tile] = row_bytes
        operand[48 + tile] = rows
    return bytes(operand)


def _call(b: Any, name: str, *operands: Value) -> None:
    function = simd.declare(b, f"llvm.x86.{name}", _VOID, [value.type for value in operands])
    b.call(function, operands)


def open_tiles(tile: RegisterTile, scratch: Value) -> None:
    """Shape the tile registers and unpack the weights of `tile` to `scratch`."""
    b = tile.b
    shapes = cgutils.global_constant(b, "amx_tile_shapes", cgutils.make_bytearray(_tile_shapes()))
    _call(b, "ldtilecfg", b.bitcast(shapes, _POINTER))
    with cgutils.for_range(b, tile.n_blocks) as loop:
        block, _activations = block_pointers(tile, loop.index)
        codes, scales = _unpacked(tile, scratch, loop.index)
        for group, weights in block_codes(tile, [0], block):
            signed = _signed(tile, weights[0])
            simd.store(b, signed, simd.at(b, codes, _ROW_BYTES * group), 64)
        simd.store(b, block_scales(tile, block, 0), scales, 64)


def close_tiles(b: Any) -> None:
    """Give the tile registers back: what is in use must be saved when a thread is switched."""
    _call(b, "tilerelease")


def _signed(tile: RegisterTile, codes: Value) -> Value:
    """The stored codes, four in an int32 lane, less the offset they are stored with."""
    b, kernel, lanes = tile.b, tile.kernel, tile.isa.lanes
    if kernel.bits == 8:
        return b.xor(codes, simd.constant(I32, lanes, 0x80808080))
    if kernel.has_minimum:
        return codes
    kind = simd.vector(I8, 4 * lanes)
    offset = simd.constant(I8, 4 * lanes, 8)
    return b.bitcast(b.sub(b.bitcast(codes, kind), offset), codes.type)


def _unpacked(tile: RegisterTile, scratch: Value, index: Value) -> tuple[Value, Value]:
    """Addresses of the unpacked codes and scales of block `index`."""
    b = tile.b
    codes = simd.at(b, scratch, b.add(I64(_SUMS_BYTES), b.mul(index, I64(_CODES_BYTES))))
    end = b.add(I64(_SUMS_BYTES), b.mul(tile.n_blocks, I64(_CODES_BYTES)))
    return codes, simd.at(b, scratch, b.add(end, b.mul(index, I64(_ROW_BYTES))))


def generate_amx_tile(tile: RegisterTile, scratch: Value) -> None:
    """Multiply one group of 16 tokens; between `open_tiles` and `close_tiles`."""
    b = tile.b
    vi, vf = simd.vector(I32, TILE_ROWS), simd.vector(F32, TILE_ROWS)
    totals = tile.accumulators([0])
    with cgutils.for_range(b, tile.n_blocks) as loop:
        _block, activations = block_pointers(tile, loop.index)
        codes, scales = _unpacked(tile, scratch, loop.index)
        _multiply(b, simd.at(b, activations, 16 * MATRIX_TOKENS), codes, scratch)
        weight_scales = simd.load(b, scales, vf, 64)
        for (token, _row), slot in totals.items():
            sums = simd.load(b, simd.at(b, scratch, _ROW_BYTES * token), vi, 64)
            pointer = simd.at(b, activations, 8 * MATRIX_TOKENS + 4 * token)
            factor = b.fmul(weight_scales, simd.load_splat(b, pointer, F32, TILE_ROWS))
            b.store(simd.fma(b, tile.isa, b.sitofp(sums, vf), factor, b.load(slot)), slot)
    minimums = sum_minimums(tile, [0]) if tile.kernel.has_minimum else {}
    finish_tile(tile, totals, minimums)


def _multiply(b: Any, activations: Value, weights: Value, sums: Value) -> None:
    """sums[token][row] = activations . weights over the 32 columns of a block."""
    _call(b, "tileloadd64", I8(_ACTIVATIONS), activations, I64(BLOCK))
    _call(b, "tileloadd64", I8(_WEIGHTS), weights, I64(_ROW_BYTES))
    _call(b, "tilezero", I8(_SUMS))
    _call(b, "tdpbssd", I8(_SUMS), I8(_ACTIVATIONS), I8(_WEIGHTS))
    _call(b, "tilestored64", I8(_SUMS), sums, I64(_ROW_BYTES))
