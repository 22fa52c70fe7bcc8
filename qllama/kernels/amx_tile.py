"""Generates the integer kernels' widest groups for AMX: 16 tokens times 16 rows at once.

One instruction multiplies a matrix tile of 16 tokens by 32 columns with one of 32
columns by 16 rows, exactly; the sums go through memory into vector registers, where
they are scaled as `register_tile` scales them, in the same order: the same bits.

A weight tile is unpacked to signed bytes first, a part of its columns at a time, which
stays in the first-level cache while all tokens pass. `scratch`, aligned to 64, holds
the sums of four blocks (16 tokens of 16 int32 each), a part's codes and scales, and the totals
of every group of tokens so far (16 tokens of 16 float32).
Instructions and tile registers: Intel 64 and IA-32 manual, volume 1, chapter 18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from qllama.kernels import simd
from qllama.kernels.register_tile import (
    RegisterTile,
    Slots,
    block_codes,
    block_pointers,
    block_scales,
    finish_tile,
    sum_minimums,
)
from qllama.kernels.simd import F32, I8, I32, I64, Value
from qllama.kernels.weight_kernels import Q8_BYTES
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = ["generate_amx_groups", "scratch_bytes"]

_TOKENS = 16
#: Tile registers by what they hold, used in turns: they are not renamed, so that a write
#: waits for the reads before it. The sums of a block are stored one block after they were
#: started and scaled one after that; 4 in turns leave each that time.
_SUMS, _ACTIVATIONS, _WEIGHTS = (0, 1, 2, 3), (4, 5), (6, 7)
_TURNS = len(_SUMS)
_ROW_BYTES = 64
_CODES_BYTES = BLOCK * TILE_ROWS
_GROUPS = BLOCK // 4
#: Blocks of a part: 18 of the 48 KiB that a first-level cache has.
_PART = 32
#: Activations come from the second-level cache; fetched two blocks ahead: 4% more at K = 2048.
_AHEAD_BYTES = 2 * Q8_BYTES * _TOKENS
_SUMS_BYTES = _TOKENS * _ROW_BYTES
_CODES_AT = _TURNS * _SUMS_BYTES
_SCALES_AT = _CODES_AT + _PART * _CODES_BYTES
_TOTALS_AT = _SCALES_AT + _PART * _ROW_BYTES
_VOID = ir.VoidType()
_POINTER = I8.as_pointer()
_VF, _VI = simd.vector(F32, TILE_ROWS), simd.vector(I32, TILE_ROWS)


def scratch_bytes(n_tokens: int) -> int:
    """Bytes of scratch that `n_tokens` tokens take."""
    return _TOTALS_AT + _ROW_BYTES * n_tokens


def _tile_shapes() -> bytes:
    """The operand of `ldtilecfg`: palette 1, then columns in bytes and rows of each tile."""
    shapes = {_SUMS: (16, 64), _ACTIVATIONS: (16, BLOCK), _WEIGHTS: (_GROUPS, 64)}
    operand = bytearray(64)
    operand[0] = 1
    for tiles, (rows, row_bytes) in shapes.items():
        for tile in tiles:
            operand[16 + 2 * tile] = row_bytes
            operand[48 + tile] = rows
    return bytes(operand)


def _call(b: Any, name: str, *operands: Value) -> None:
    function = simd.declare(b, f"llvm.x86.{name}", _VOID, [value.type for value in operands])
    b.call(function, operands)


def generate_amx_groups(
    batch: RegisterTile, n_groups: Value, group: Callable[[Value], RegisterTile], scratch: Value
) -> None:
    """Multiply `n_groups` groups of 16 tokens.

    Parameters
    ----------
    batch : RegisterTile
        Of the weights; its tokens are not looked at.
    n_groups : i64
    group : callable
        Gives the tile of the group whose number (i64) it is given.
    scratch : i8 pointer
        To `scratch_bytes` of the groups' tokens.
    """
    b = batch.b
    shapes = cgutils.global_constant(b, "amx_tile_shapes", cgutils.make_bytearray(_tile_shapes()))
    _call(b, "ldtilecfg", b.bitcast(shapes, _POINTER))
    with cgutils.for_range_slice(b, I64(0), batch.n_blocks, I64(_PART)) as (first, _count):
        rest = b.sub(batch.n_blocks, first)
        is_last = b.icmp_signed("<=", rest, I64(_PART))
        n_blocks = b.select(is_last, rest, I64(_PART))
        with cgutils.for_range(b, n_blocks) as loop:
            _unpack(batch, b.add(first, loop.index), _part(b, scratch, loop.index))
        with cgutils.for_range(b, n_groups) as loop:
            tile = group(loop.index)
            kept = simd.at(b, scratch, b.mul(loop.index, I64(_SUMS_BYTES)))
            totals = _load_totals(tile, simd.at(b, kept, _TOTALS_AT), first)
            with b.if_then(is_last):
                _prefetch_outputs(tile)
            _multiply_blocks(tile, totals, scratch, first, n_blocks)
            with b.if_else(is_last) as (end, later):
                with end:
                    minimums = sum_minimums(tile, [0]) if tile.kernel.has_minimum else {}
                    finish_tile(tile, totals, minimums)
                with later:
                    _store_totals(b, totals, simd.at(b, kept, _TOTALS_AT))
    # Tile registers in use must be saved whenever a thread is switched.
    _call(b, "tilerelease")


def _part(b: Any, scratch: Value, index: Value) -> tuple[Value, Value]:
    """Addresses of the unpacked codes and scales of the part's block `index`."""
    codes = simd.at(b, scratch, b.mul(index, I64(_CODES_BYTES)))
    scales = simd.at(b, scratch, b.mul(index, I64(_ROW_BYTES)))
    return simd.at(b, codes, _CODES_AT), simd.at(b, scales, _SCALES_AT)


def _unpack(tile: RegisterTile, index: Value, part: tuple[Value, Value]) -> None:
    """Unpack codes and scales of the weights' block `index`."""
    b = tile.b
    block, _activations = block_pointers(tile, index)
    codes, scales = part
    for group, weights in block_codes(tile, [0], block):
        simd.store(b, _signed(tile, weights[0]), simd.at(b, codes, _ROW_BYTES * group), 64)
    simd.store(b, block_scales(tile, block, 0), scales, 64)


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


def _load_totals(tile: RegisterTile, kept: Value, first: Value) -> Slots:
    """The totals of the blocks before `first`, the first of a part."""
    b = tile.b
    totals = tile.accumulators([0])
    with b.if_then(b.icmp_signed(">", first, I64(0))):
        for (token, _row), slot in totals.items():
            b.store(simd.load(b, simd.at(b, kept, _ROW_BYTES * token), _VF, 64), slot)
    return totals


def _store_totals(b: Any, totals: Slots, kept: Value) -> None:
    for (token, _row), slot in totals.items():
        simd.store(b, b.load(slot), simd.at(b, kept, _ROW_BYTES * token), 64)


def _prefetch_outputs(tile: RegisterTile) -> None:
    """Fetch the lines of the outputs while the last part is multiplied: they are far apart."""
    b = tile.b
    for token in range(_TOKENS):
        target = simd.at(b, tile.out, b.mul(I64(token), tile.out_stride))
        simd.prefetch(b, target, write=True)


def _multiply_blocks(
    tile: RegisterTile, totals: Slots, scratch: Value, first: Value, n_blocks: Value
) -> None:
    """totals += scales * (codes . activations) of the `n_blocks` blocks of the part at `first`."""
    b = tile.b
    last = b.sub(n_blocks, I64(1))

    def start(turn: int, index: Value) -> None:
        # Past the end the last block is multiplied once more, and nobody looks at the sums.
        inside = b.select(b.icmp_signed("<", index, last), index, last)
        _start_sums(tile, turn, b.add(first, inside), _part(b, scratch, inside)[0])

    start(0, I64(0))
    start(1, I64(1))
    _store_sums(b, 0, scratch)
    with cgutils.for_range_slice(b, I64(0), n_blocks, I64(_TURNS)) as (quad, _count):
        for turn in range(_TURNS):
            index = b.add(quad, I64(turn))
            start((turn + 2) % _TURNS, b.add(index, I64(2)))
            _store_sums(b, (turn + 1) % _TURNS, scratch)
            with b.if_then(b.icmp_signed("<", index, n_blocks), likely=True):
                sums = simd.at(b, scratch, turn * _SUMS_BYTES)
                _scale_sums(tile, totals, sums, b.add(first, index), _part(b, scratch, index)[1])


def _start_sums(tile: RegisterTile, turn: int, index: Value, codes: Value) -> None:
    """Multiply block `index` into the tile of sums whose turn it is."""
    b = tile.b
    _block, activations = block_pointers(tile, index)
    sums, tokens, weights = (
        I8(tiles[turn % len(tiles)]) for tiles in (_SUMS, _ACTIVATIONS, _WEIGHTS)
    )
    for line in range(0, Q8_BYTES * _TOKENS, 64):
        simd.prefetch(b, simd.at(b, activations, _AHEAD_BYTES + line), nearest=True)
    _call(b, "tileloadd64", tokens, simd.at(b, activations, 16 * _TOKENS), I64(BLOCK))
    _call(b, "tileloadd64", weights, codes, I64(_ROW_BYTES))
    _call(b, "tilezero", sums)
    _call(b, "tdpbssd", sums, tokens, weights)


def _store_sums(b: Any, turn: int, scratch: Value) -> None:
    address = simd.at(b, scratch, turn * _SUMS_BYTES)
    _call(b, "tilestored64", I8(_SUMS[turn]), address, I64(_ROW_BYTES))


def _scale_sums(
    tile: RegisterTile, totals: Slots, sums: Value, index: Value, scales: Value
) -> None:
    """totals += scales * stored sums of block `index`."""
    b = tile.b
    _block, activations = block_pointers(tile, index)
    weight_scales = simd.load(b, scales, _VF, 64)
    for (token, _row), slot in totals.items():
        exact = simd.load(b, simd.at(b, sums, _ROW_BYTES * token), _VI, 64)
        pointer = simd.at(b, activations, 8 * _TOKENS + 4 * token)
        factor = b.fmul(weight_scales, simd.load_splat(b, pointer, F32, TILE_ROWS))
        b.store(simd.fma(b, tile.isa, b.sitofp(exact, _VF), factor, b.load(slot)), slot)
