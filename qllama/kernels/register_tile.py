"""Generates one register tile: a few tokens times the 16 rows of a weight tile.

Knows weights and packed activations by address, and nothing of how a batch is cut
into groups: that is `linear`'s. Throughout: `tile` is the tile, `rows` the first rows
of the registers handled together, `block` the address of a block of weights and
`activations` that of the tokens' block, `index` a block's number, `row` a first row;
`totals` and `minimums` are sums, by (token, first row).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from llvmlite import ir
from numba.core import cgutils

from qllama.kernels import simd
from qllama.kernels.dot import ByteDot, byte_dot
from qllama.kernels.isa import Isa
from qllama.kernels.simd import F32, I8, I16, I32, I64, Value
from qllama.kernels.weight_kernels import Q8_BYTES, WeightKernel
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = [
    "RegisterTile",
    "Slots",
    "block_codes",
    "block_pointers",
    "block_scales",
    "finish_tile",
    "generate_float_tile",
    "generate_integer_tile",
    "sum_minimums",
]

# Weights come to the second-level cache from afar, and from there to the first. 1B q8_0, 2
# threads: far alone 29.1 GB/s; a near one of 512 bytes 29.9, of 1024 30.7, of 2048 31.1.
_FAR_BYTES, _NEAR_BYTES = 4096, 2048
# Groups as wide as this may be a batch's only one; wider ones have weights in the cache.
_STREAMING_WIDTH = 8
#: Stack slots of a tile's vectors, by (token, first row).
Slots: TypeAlias = "dict[tuple[int, int], Value]"


@dataclass(frozen=True, slots=True)
class RegisterTile:
    """Everything the generator of one register tile needs.

    `width` tokens times the 16 rows of the tile at `weights`; `activations` is the
    packed group of those tokens, `out` their first output row.
    """

    b: Any
    isa: Isa
    kernel: WeightKernel
    width: int
    weights: Value
    activations: Value
    out: Value
    n_blocks: Value
    out_stride: Value
    accumulate: Value

    @property
    def passes(self) -> list[list[int]]:
        """First rows of the registers handled together, one list a pass.

        The fewer tokens, the more rows: a lone token streams the weights by only once.
        """
        starts = list(range(0, TILE_ROWS, self.isa.lanes))
        n = self.isa.row_registers(self.width)
        return [starts[i : i + n] for i in range(0, len(starts), n)]

    def accumulators(self, rows: list[int], tokens: range | None = None) -> Slots:
        """Zeroed float32 vectors; LLVM keeps them in registers. Default `tokens`: all."""
        kind = simd.vector(F32, self.isa.lanes)
        zero = ir.Constant(kind, None)
        slots = {}
        for token in range(self.width) if tokens is None else tokens:
            for row in rows:
                slots[token, row] = cgutils.alloca_once(self.b, kind)
                self.b.store(zero, slots[token, row])
        return slots

    def store(self, token: int, row: int, value: Value) -> None:
        """Write `value` to (or add it to) the outputs of rows `row ..` for one token."""
        b = self.b
        target = simd.at(b, self.out, b.mul(I64(token), self.out_stride))
        target = simd.at(b, target, 4 * row)
        before = cgutils.alloca_once_value(b, ir.Constant(value.type, None))
        with b.if_then(self.accumulate):
            b.store(simd.load(b, target, value.type), before)
        simd.store(b, b.fadd(b.load(before), value), target)


def block_codes(
    tile: RegisterTile, rows: list[int], block: Value
) -> Iterator[tuple[int, dict[int, Value]]]:
    """The block's (group, i32 vectors by first row): 4 codes in a lane, as `dot` takes them."""
    b, lanes = tile.b, tile.isa.lanes
    kind = simd.vector(I32, lanes)

    def load(j: int) -> dict[int, Value]:
        places = {row: simd.at(b, block, 64 * j + 4 * row) for row in rows}
        align = min(tile.kernel.alignment, 4 * lanes)
        return {row: simd.load(b, p, kind, align) for row, p in places.items()}

    def down(vectors: dict[int, Value], places: int) -> dict[int, Value]:
        shift, by = (b.lshr, places) if places >= 0 else (b.shl, -places)
        return {row: shift(v, simd.constant(I32, lanes, by)) for row, v in vectors.items()}

    def merged(first: dict[int, Value], second: dict[int, Value]) -> dict[int, Value]:
        return {row: b.or_(first[row], v) for row, v in second.items()}

    def masked(vectors: dict[int, Value], mask: int) -> dict[int, Value]:
        every_byte = simd.constant(I32, lanes, 0x01010101 * mask)
        return {row: b.and_(v, every_byte) for row, v in vectors.items()}

    if tile.kernel.bits == 4:
        for j in range(4):
            packed = load(j)
            high = down(packed, 4)
            yield j, masked(packed, 15)
            yield j + 4, masked(high, 15)
    elif tile.kernel.bits == 5:
        plane = load(4)
        for j in range(4):
            packed = load(j)
            for group, low in (j, packed), (j + 4, down(packed, 4)):
                yield group, merged(masked(low, 15), masked(down(plane, group - 4), 16))
    elif tile.kernel.bits == 6:
        for half in range(2):
            fourth: dict[int, Value] = {}
            for i in range(3):
                packed = load(3 * half + i)
                pairs = masked(down(packed, 6 - 2 * i), 3 << 2 * i)
                fourth = merged(fourth, pairs) if i else pairs
                yield 4 * half + i, masked(packed, 63)
            yield 4 * half + 3, fourth
    else:
        sign_bits = simd.constant(I32, lanes, 0x80808080)
        for j in range(8):
            packed = load(j)
            if tile.isa.signed:
                packed = {row: b.xor(v, sign_bits) for row, v in packed.items()}
            yield j, packed


def block_scales(tile: RegisterTile, block: Value, row: int) -> Value:
    """The block's scales of rows `row ..`, float32; those beside minimums are codes."""
    b, lanes = tile.b, tile.isa.lanes
    scales = simd.at(b, block, 64 * tile.kernel.bits)
    if tile.kernel.has_minimum:
        codes = _load_bytes(tile, simd.at(b, scales, row), lanes)
        if tile.kernel.pair_bits == 6:
            codes = b.and_(codes, simd.constant(I32, lanes, 63))
        return b.sitofp(codes, simd.vector(F32, lanes))
    bits = simd.load(b, simd.at(b, scales, 2 * row), simd.vector(I16, lanes), 2)
    return simd.f16_to_f32(b, tile.isa, bits)


def _block_minimums(tile: RegisterTile, block: Value, row: int) -> Value:
    """The codes of the block's minimums of rows `row ..`, float32."""
    b, lanes = tile.b, tile.isa.lanes
    pairs = simd.at(b, block, 64 * tile.kernel.bits)
    if tile.kernel.pair_bits == 8:
        codes = _load_bytes(tile, simd.at(b, pairs, TILE_ROWS + row), lanes)
        return b.sitofp(codes, simd.vector(F32, lanes))
    half = TILE_ROWS // 2
    n = min(lanes, half)
    shared = _load_bytes(tile, simd.at(b, pairs, TILE_ROWS + row % half), n)
    # Of the four bits' two places in a byte, bits 2 to 5 of the code.
    of_first = b.and_(b.shl(shared, simd.constant(I32, n, 2)), simd.constant(I32, n, 60))
    of_second = b.and_(b.lshr(shared, simd.constant(I32, n, 2)), simd.constant(I32, n, 60))
    high = of_first if row < half else of_second
    if lanes == TILE_ROWS:
        high = b.shuffle_vector(
            of_first, of_second, ir.Constant(simd.vector(I32, lanes), [*range(lanes)])
        )
    low = _load_bytes(tile, simd.at(b, pairs, row), lanes)
    low = b.lshr(low, simd.constant(I32, lanes, 6))
    return b.sitofp(b.or_(low, high), simd.vector(F32, lanes))


def _load_bytes(tile: RegisterTile, pointer: Value, n: int) -> Value:
    """`n` bytes, each in an i32 lane."""
    raw = simd.load(tile.b, pointer, simd.vector(I8, n), 1)
    return tile.b.zext(raw, simd.vector(I32, n))


def generate_integer_tile(tile: RegisterTile) -> None:
    """sum over blocks of scale * activation scale * (codes . activation codes)."""
    b, kernel, width = tile.b, tile.kernel, tile.width
    for rows in tile.passes:
        totals = tile.accumulators(rows)
        # A wide tile has no registers left for the minimums: they get a loop of their own.
        fused = kernel.has_minimum and width <= 4
        minimums = tile.accumulators(rows) if fused else {}
        with cgutils.for_range(b, tile.n_blocks) as loop:
            block, activations = block_pointers(tile, loop.index)
            if width <= _STREAMING_WIDTH:
                _prefetch(b, block, kernel.block_bytes)
            _multiply_block(tile, rows, block, activations, totals)
            if fused:
                _add_minimums(tile, rows, block, activations, minimums)
        if kernel.has_minimum and not fused:
            minimums = sum_minimums(tile, rows)
        finish_tile(tile, totals, minimums)


def sum_minimums(tile: RegisterTile, rows: list[int]) -> Slots:
    """sum over blocks of minimum code * sum of the block's activations."""
    b = tile.b
    minimums = tile.accumulators(rows)
    with cgutils.for_range(b, tile.n_blocks) as loop:
        block, activations = block_pointers(tile, loop.index)
        _add_minimums(tile, rows, block, activations, minimums)
    return minimums


def finish_tile(tile: RegisterTile, totals: Slots, minimums: Slots) -> None:
    """Apply the row factors, if the weights have any, and write the outputs."""
    for (token, row), slot in totals.items():
        total = tile.b.load(slot)
        if tile.kernel.has_minimum:
            total = _apply_row_factors(tile, row, total, tile.b.load(minimums[token, row]))
        tile.store(token, row, total)


def block_pointers(tile: RegisterTile, index: Value) -> tuple[Value, Value]:
    """Addresses of block `index` of the weights and of the packed activations."""
    b = tile.b
    block = simd.at(b, tile.weights, b.mul(index, I64(tile.kernel.block_bytes)))
    return block, simd.at(b, tile.activations, b.mul(index, I64(Q8_BYTES * tile.width)))


def _multiply_block(
    tile: RegisterTile,
    rows: list[int],
    block: Value,
    codes: Value,
    totals: Slots,
) -> None:
    """totals += (scale * activation scale) * exact integer dot product."""
    b, isa, width, lanes = tile.b, tile.isa, tile.width, tile.isa.lanes
    sums: dict[tuple[int, int], ByteDot] = {}
    for token, start in enumerate(_starts(tile, codes)):
        for row in rows:
            sums[token, row] = byte_dot(b, isa, tile.kernel.bits, start)
    for group, weights in block_codes(tile, rows, block):
        pointer = simd.at(b, codes, 16 * width + 4 * group * width)
        inputs = simd.load_splats(b, isa, pointer, width, I32, lanes)
        for row in rows:
            for token, activation in enumerate(inputs):
                sums[token, row].add(weights[row], activation)
    factors = simd.load_splats(b, isa, simd.at(b, codes, 8 * width), width, F32, lanes)
    for row in rows:
        scales = block_scales(tile, block, row)
        for token, factor in enumerate(factors):
            value = b.sitofp(sums[token, row].total, simd.vector(F32, lanes))
            slot = totals[token, row]
            b.store(simd.fma(b, isa, value, b.fmul(scales, factor), b.load(slot)), slot)


def _starts(tile: RegisterTile, codes: Value) -> list[Value]:
    """What each token's sum starts from: it takes back the offset of the weights' codes."""
    b, kernel, width, lanes = tile.b, tile.kernel, tile.width, tile.isa.lanes
    if kernel.has_minimum or (kernel.bits == 8 and tile.isa.signed):
        return [simd.constant(I32, lanes, 0)] * width
    pointer = codes if kernel.bits == 8 else simd.at(b, codes, 4 * width)
    return simd.load_splats(b, tile.isa, pointer, width, I32, lanes)


def _add_minimums(
    tile: RegisterTile,
    rows: list[int],
    block: Value,
    codes: Value,
    minimums: Slots,
) -> None:
    """minimums += minimum code * sum of the block's activations."""
    b, width, lanes = tile.b, tile.width, tile.isa.lanes
    sums = simd.load_splats(b, tile.isa, simd.at(b, codes, 12 * width), width, F32, lanes)
    for row in rows:
        minimum = _block_minimums(tile, block, row)
        for token, total in enumerate(sums):
            slot = minimums[token, row]
            b.store(simd.fma(b, tile.isa, minimum, total, b.load(slot)), slot)


def _apply_row_factors(tile: RegisterTile, row: int, total: Value, minimum: Value) -> Value:
    """Row scale times the scaled codes, less row minimum times the minimums."""
    b, lanes = tile.b, tile.isa.lanes
    factors = b.mul(tile.n_blocks, I64(tile.kernel.block_bytes))
    pointer = simd.at(b, tile.weights, factors)

    def load(first: int) -> Value:
        if tile.kernel.pair_bits == 8:
            return simd.load(b, simd.at(b, pointer, 4 * first), simd.vector(F32, lanes))
        place = simd.at(b, pointer, 2 * first)
        return simd.bf16_to_f32(b, simd.load(b, place, simd.vector(I16, lanes), 2))

    scale, offset = load(row), load(TILE_ROWS + row)
    return b.fsub(b.fmul(total, scale), b.fmul(minimum, offset))


def _prefetch(b: Any, pointer: Value, n_bytes: int) -> None:
    """Ask for `n_bytes` of weights some blocks ahead: plain streaming leaves bandwidth unused."""
    for line in range(0, n_bytes, 64):
        simd.prefetch(b, simd.at(b, pointer, _FAR_BYTES + line))
        simd.prefetch(b, simd.at(b, pointer, _NEAR_BYTES + line), nearest=True)


def generate_float_tile(tile: RegisterTile) -> None:
    """sum over even k plus sum over odd k of weight * activation, each k ascending.

    Two sums, because one chain of dependent additions would wait for each of them. A
    group too wide for the registers is done in halves.
    """
    half = tile.width // 2
    halves = [range(half), range(half, tile.width)]
    for tokens in [range(tile.width)] if tile.width <= tile.isa.vector_widths[0] else halves:
        for rows in tile.passes:
            _multiply_floats(tile, rows, tokens)


def _multiply_floats(tile: RegisterTile, rows: list[int], tokens: range) -> None:
    b, isa, lanes = tile.b, tile.isa, tile.isa.lanes
    size = tile.kernel.block_bytes // (BLOCK * TILE_ROWS)
    sums = [tile.accumulators(rows, tokens) for _parity in range(2)]
    with cgutils.for_range(b, b.mul(tile.n_blocks, I64(BLOCK // 2))) as loop:
        for parity in range(2):
            k = b.add(b.mul(loop.index, I64(2)), I64(parity))
            column = simd.at(b, tile.weights, b.mul(k, I64(size * TILE_ROWS)))
            inputs = simd.at(b, tile.activations, b.mul(k, I64(4 * tile.width)))
            inputs = simd.at(b, inputs, 4 * tokens.start)
            values = simd.load_splats(b, isa, inputs, len(tokens), F32, lanes)
            for row in rows:
                weights = _load_floats(tile, simd.at(b, column, size * row))
                for token, value in zip(tokens, values, strict=True):
                    slot = sums[parity][token, row]
                    b.store(simd.fma(b, isa, weights, value, b.load(slot)), slot)
    for token, row in sums[0]:
        tile.store(token, row, b.fadd(*(b.load(part[token, row]) for part in sums)))


def _load_floats(tile: RegisterTile, pointer: Value) -> Value:
    b, lanes = tile.b, tile.isa.lanes
    if tile.kernel.name == "f32":
        return simd.load(b, pointer, simd.vector(F32, lanes))
    bits = simd.load(b, pointer, simd.vector(I16, lanes), 2)
    if tile.kernel.name == "bf16":
        return simd.bf16_to_f32(b, bits)
    return simd.f16_to_f32(b, tile.isa, bits)
