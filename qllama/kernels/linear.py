"""Matrix products with packed weights: one generated kernel a weight type.

A kernel multiplies one tile of 16 weight rows with every token of a batch. Rows
sit in vector lanes, so there are no horizontal sums, and each token's floating
point operations come in the same order whatever the batch: block after block of
32 weights, exact integers inside a block. That makes every token's result
bit-identical for any batch, any chunk and any number of threads.

Storage of weights: `docs/format.md`. Storage of activations: `activation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from qllama.kernels import simd
from qllama.kernels._jit import cfunc, intrinsic
from qllama.kernels.dot import ByteDot, byte_dot
from qllama.kernels.isa import ISAS, Isa, current_isa
from qllama.kernels.simd import F32, I8, I16, I32, I64, Value
from qllama.quant.types import BLOCK, QUANT_TYPES, TILE_ROWS

__all__ = [
    "Q8_BYTES",
    "WEIGHT_KERNELS",
    "WeightKernel",
    "build_linear",
    "call_linear",
    "linear",
]

#: Bytes of one token's block of quantized activations: start128, start8, scale,
#: sum (4 bytes each) and 8 groups of 4 codes.
Q8_BYTES = 48
# The fastest of 512 to 8192: 26 GB/s from a mapped file where 4096 gave 22.5.
_PREFETCH_BYTES = 2048


@dataclass(frozen=True, slots=True)
class WeightKernel:
    """How one weight type is multiplied.

    Parameters
    ----------
    name : str
        The weight type of `docs/format.md`.
    activation : str
        `q8`: activations in blocks of int8; `f32`: plain float32.
    bits : int
        Of a stored code; 0 for floats.
    has_minimum : bool
        Whether blocks carry a minimum beside their scale (`q4`).
    """

    name: str
    activation: str
    bits: int = 0
    has_minimum: bool = False

    @property
    def block_bytes(self) -> int:
        """Bytes of 16 rows by 32 columns."""
        return QUANT_TYPES[self.name].tile_block_n_bytes

    def tile_bytes(self, n_blocks: int) -> int:
        """Bytes of one tile of 16 rows and `32 * n_blocks` columns."""
        return n_blocks * self.block_bytes + QUANT_TYPES[self.name].tile_tail_n_bytes


WEIGHT_KERNELS = (
    WeightKernel("f32", "f32"),
    WeightKernel("f16", "f32"),
    WeightKernel("bf16", "f32"),
    WeightKernel("q8_0", "q8", bits=8),
    WeightKernel("q4_0", "q8", bits=4),
    WeightKernel("q4", "q8", bits=4, has_minimum=True),
)
_INDEX = {kernel.name: index for index, kernel in enumerate(WEIGHT_KERNELS)}
_ISA_NAMES = tuple(ISAS)


@dataclass(frozen=True, slots=True)
class _Tile:
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

        A lone token takes all rows at once, so the weights stream by only once.
        """
        starts = list(range(0, TILE_ROWS, self.isa.lanes))
        n = len(starts) if self.width == 1 else self.isa.registers
        return [starts[i : i + n] for i in range(0, len(starts), n)]

    def accumulators(self, kind: Any, rows: list[int]) -> dict[tuple[int, int], Value]:
        """Zeroed stack slots by (token, row); LLVM keeps them in registers."""
        zero = ir.Constant(kind, None)
        slots = {}
        for token in range(self.width):
            for row in rows:
                slots[token, row] = cgutils.alloca_once(self.b, kind)
                self.b.store(zero, slots[token, row])
        return slots

    def store(self, token: int, row: int, value: Value) -> None:
        """Write (or add to) the outputs of rows `row ..` for one token."""
        b = self.b
        target = simd.at(b, self.out, b.mul(I64(token), self.out_stride))
        target = simd.at(b, target, 4 * row)
        before = cgutils.alloca_once_value(b, ir.Constant(value.type, None))
        with b.if_then(self.accumulate):
            b.store(simd.load(b, target, value.type), before)
        simd.store(b, b.fadd(b.load(before), value), target)


def _codes(tile: _Tile, rows: list[int], block: Value) -> Iterator[tuple[int, dict[int, Value]]]:
    """The block's (group, i32 vectors by first row): 4 codes in a lane, as `dot` takes them."""
    b, lanes = tile.b, tile.isa.lanes
    kind = simd.vector(I32, lanes)
    low_nibbles = simd.constant(I32, lanes, 0x0F0F0F0F)
    sign_bits = simd.constant(I32, lanes, 0x80808080)
    for j in range(tile.kernel.bits):
        packed = {
            row: simd.load(b, simd.at(b, block, 64 * j + 4 * row), kind, min(32, 4 * lanes))
            for row in rows
        }
        if tile.kernel.bits == 4:
            high = {row: b.lshr(v, simd.constant(I32, lanes, 4)) for row, v in packed.items()}
            yield j, {row: b.and_(v, low_nibbles) for row, v in packed.items()}
            yield j + 4, {row: b.and_(v, low_nibbles) for row, v in high.items()}
        elif tile.isa.signed:
            yield j, {row: b.xor(v, sign_bits) for row, v in packed.items()}
        else:
            yield j, packed


def _block_scales(tile: _Tile, block: Value, row: int) -> Value:
    """The block's scales of rows `row ..`, float32; q4 holds them as bytes."""
    b, lanes = tile.b, tile.isa.lanes
    scales = simd.at(b, block, 64 * tile.kernel.bits)
    if tile.kernel.has_minimum:
        return _bytes_to_f32(tile, simd.at(b, scales, row))
    bits = simd.load(b, simd.at(b, scales, 2 * row), simd.vector(I16, lanes), 2)
    return simd.f16_to_f32(b, tile.isa, bits)


def _bytes_to_f32(tile: _Tile, pointer: Value) -> Value:
    b, lanes = tile.b, tile.isa.lanes
    raw = simd.load(b, pointer, simd.vector(I8, lanes), 1)
    return b.sitofp(b.zext(raw, simd.vector(I32, lanes)), simd.vector(F32, lanes))


def _generate_integer_tile(tile: _Tile) -> None:
    """sum over blocks of scale * activation scale * (codes . activation codes)."""
    b, kernel, width, lanes = tile.b, tile.kernel, tile.width, tile.isa.lanes
    vf = simd.vector(F32, lanes)
    for rows in tile.passes:
        totals = tile.accumulators(vf, rows)
        minimums = tile.accumulators(vf, rows) if kernel.has_minimum else {}
        # A wide tile has no registers left for the minimums: they get a loop of their own.
        fused = kernel.has_minimum and width <= 4
        with cgutils.for_range(b, tile.n_blocks) as loop:
            block, codes = _block_pointers(tile, loop.index)
            if width == 1:
                _prefetch(b, block)
            _multiply_block(tile, rows, block, codes, totals)
            if fused:
                _add_minimums(tile, rows, block, codes, minimums)
        if kernel.has_minimum and not fused:
            with cgutils.for_range(b, tile.n_blocks) as loop:
                block, codes = _block_pointers(tile, loop.index)
                _add_minimums(tile, rows, block, codes, minimums)
        for (token, row), slot in totals.items():
            total = b.load(slot)
            if kernel.has_minimum:
                total = _apply_row_factors(tile, row, total, b.load(minimums[token, row]))
            tile.store(token, row, total)


def _block_pointers(tile: _Tile, index: Value) -> tuple[Value, Value]:
    """Addresses of block `index` of the weights and of the packed activations."""
    b = tile.b
    block = simd.at(b, tile.weights, b.mul(index, I64(tile.kernel.block_bytes)))
    return block, simd.at(b, tile.activations, b.mul(index, I64(Q8_BYTES * tile.width)))


def _multiply_block(
    tile: _Tile, rows: list[int], block: Value, codes: Value, totals: dict[tuple[int, int], Value]
) -> None:
    """totals += (scale * activation scale) * exact integer dot product."""
    b, isa, width, lanes = tile.b, tile.isa, tile.width, tile.isa.lanes
    sums: dict[tuple[int, int], ByteDot] = {}
    for token, start in enumerate(_starts(tile, codes)):
        for row in rows:
            sums[token, row] = byte_dot(b, isa, tile.kernel.bits, start)
    for group, weights in _codes(tile, rows, block):
        pointer = simd.at(b, codes, 16 * width + 4 * group * width)
        inputs = simd.load_splats(b, isa, pointer, width, I32, lanes)
        for row in rows:
            for token, activation in enumerate(inputs):
                sums[token, row].add(weights[row], activation)
    factors = simd.load_splats(b, isa, simd.at(b, codes, 8 * width), width, F32, lanes)
    for row in rows:
        scales = _block_scales(tile, block, row)
        for token, factor in enumerate(factors):
            value = b.sitofp(sums[token, row].total, simd.vector(F32, lanes))
            slot = totals[token, row]
            b.store(simd.fma(b, isa, value, b.fmul(scales, factor), b.load(slot)), slot)


def _starts(tile: _Tile, codes: Value) -> list[Value]:
    """What each token's sum starts from: it takes back the offset of the weights' codes."""
    b, kernel, width, lanes = tile.b, tile.kernel, tile.width, tile.isa.lanes
    if kernel.has_minimum or (kernel.bits == 8 and tile.isa.signed):
        return [simd.constant(I32, lanes, 0)] * width
    pointer = codes if kernel.bits == 8 else simd.at(b, codes, 4 * width)
    return simd.load_splats(b, tile.isa, pointer, width, I32, lanes)


def _add_minimums(
    tile: _Tile, rows: list[int], block: Value, codes: Value, minimums: dict[tuple[int, int], Value]
) -> None:
    """minimums += minimum code * sum of the block's activations."""
    b, width, lanes = tile.b, tile.width, tile.isa.lanes
    sums = simd.load_splats(b, tile.isa, simd.at(b, codes, 12 * width), width, F32, lanes)
    for row in rows:
        minimum = _bytes_to_f32(tile, simd.at(b, block, 64 * tile.kernel.bits + TILE_ROWS + row))
        for token, total in enumerate(sums):
            slot = minimums[token, row]
            b.store(simd.fma(b, tile.isa, minimum, total, b.load(slot)), slot)


def _apply_row_factors(tile: _Tile, row: int, total: Value, minimum: Value) -> Value:
    """Row scale times the scaled codes, less row minimum times the minimums."""
    b, lanes = tile.b, tile.isa.lanes
    factors = b.mul(tile.n_blocks, I64(tile.kernel.block_bytes))
    pointer = simd.at(b, simd.at(b, tile.weights, factors), 4 * row)
    vf = simd.vector(F32, lanes)
    scale = simd.load(b, pointer, vf)
    offset = simd.load(b, simd.at(b, pointer, 4 * TILE_ROWS), vf)
    return b.fsub(b.fmul(total, scale), b.fmul(minimum, offset))


def _prefetch(b: Any, pointer: Value) -> None:
    """Ask for the weights of a few blocks ahead: plain streaming leaves bandwidth unused."""
    prefetch = simd.declare(b, "llvm.prefetch.p0", ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    for line in range(0, 5 * 64, 64):
        ahead = simd.at(b, pointer, _PREFETCH_BYTES + line)
        b.call(prefetch, [ahead, I32(0), I32(2), I32(1)])  # into the second-level cache


def _generate_float_tile(tile: _Tile) -> None:
    """sum over even k plus sum over odd k of weight * activation, each k ascending.

    Two sums, because one chain of dependent additions would wait for each of them.
    """
    b, isa, width, lanes = tile.b, tile.isa, tile.width, tile.isa.lanes
    size = tile.kernel.block_bytes // (BLOCK * TILE_ROWS)
    for rows in tile.passes:
        sums = [tile.accumulators(simd.vector(F32, lanes), rows) for _parity in range(2)]
        with cgutils.for_range(b, b.mul(tile.n_blocks, I64(BLOCK // 2))) as loop:
            for parity in range(2):
                k = b.add(b.mul(loop.index, I64(2)), I64(parity))
                column = simd.at(b, tile.weights, b.mul(k, I64(size * TILE_ROWS)))
                inputs = simd.at(b, tile.activations, b.mul(k, I64(4 * width)))
                values = simd.load_splats(b, isa, inputs, width, F32, lanes)
                for row in rows:
                    weights = _load_floats(tile, simd.at(b, column, size * row))
                    for token, value in enumerate(values):
                        slot = sums[parity][token, row]
                        b.store(simd.fma(b, isa, weights, value, b.load(slot)), slot)
        for token, row in sums[0]:
            tile.store(token, row, b.fadd(*(b.load(half[token, row]) for half in sums)))


def _load_floats(tile: _Tile, pointer: Value) -> Value:
    b, lanes = tile.b, tile.isa.lanes
    if tile.kernel.name == "f32":
        return simd.load(b, pointer, simd.vector(F32, lanes))
    bits = simd.load(b, pointer, simd.vector(I16, lanes), 2)
    if tile.kernel.name == "bf16":
        return simd.bf16_to_f32(b, bits)
    return simd.f16_to_f32(b, tile.isa, bits)


@intrinsic(prefer_literal=True)
def _tile_row(
    _context: Any, kernel: Any, isa: Any, arguments: Any
) -> tuple[Any, Callable[..., Any]]:
    """Generate the whole kernel; `kernel` and `isa` are compile-time indices."""
    signature = types.void(kernel, isa, arguments)
    weight_kernel = WEIGHT_KERNELS[kernel.literal_value]
    chosen_isa = ISAS[_ISA_NAMES[isa.literal_value]]

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        inner = cgutils.unpack_tuple(b, values[2])
        weights, activations, out, n_blocks, n_tokens, out_stride, accumulate = inner
        pointer = I8.as_pointer()
        weights, activations, out = (b.inttoptr(v, pointer) for v in (weights, activations, out))
        accumulate = b.icmp_signed("!=", accumulate, I64(0))
        if weight_kernel.activation == "q8":
            generate, token_bytes = _generate_integer_tile, b.mul(n_blocks, I64(Q8_BYTES))
        else:
            generate, token_bytes = _generate_float_tile, b.mul(n_blocks, I64(4 * BLOCK))
        done = I64(0)
        for width in chosen_isa.widths:
            n_groups = b.sdiv(b.sub(n_tokens, done), I64(width))
            with cgutils.for_range(b, n_groups) as loop:
                first = b.add(done, b.mul(loop.index, I64(width)))
                generate(
                    _Tile(
                        b=b,
                        isa=chosen_isa,
                        kernel=weight_kernel,
                        width=width,
                        weights=weights,
                        activations=simd.at(b, activations, b.mul(first, token_bytes)),
                        out=simd.at(b, out, b.mul(first, out_stride)),
                        n_blocks=n_blocks,
                        out_stride=out_stride,
                        accumulate=accumulate,
                    )
                )
            done = b.add(done, b.mul(n_groups, I64(width)))
        return context.get_dummy_value()

    return signature, codegen


_LINEAR_SIGNATURE = types.void(*([types.int64] * 7))


def build_linear(name: str, isa: Isa) -> Any:
    """Compile the kernel of one weight type for one instruction set.

    Parameters
    ----------
    name : str
        One of `WEIGHT_KERNELS`.
    isa : Isa

    Returns
    -------
    numba CFunc
        `f(weights, activations, out, n_blocks, n_tokens, out_stride, accumulate)`, all
        int64: `weights` is the address of one tile, `activations` of the batch packed by
        `activation`, `out` of float32 outputs, token after token `out_stride` bytes
        apart, 16 values each; nonzero `accumulate` adds to what `out` holds.
    """
    kernel_index, isa_index = _INDEX[name], _ISA_NAMES.index(isa.name)

    @cfunc(_LINEAR_SIGNATURE)
    def linear_tile(weights, activations, out, n_blocks, n_tokens, out_stride, accumulate):
        arguments = (weights, activations, out, n_blocks, n_tokens, out_stride, accumulate)
        _tile_row(kernel_index, isa_index, arguments)

    return linear_tile


@cache
def linear(name: str) -> Any:
    """The kernel of weight type `name` for this machine; compiled or loaded once."""
    return build_linear(name, current_isa())


@intrinsic
def call_linear(_context: Any, address: Any, arguments: Any) -> tuple[Any, Callable[..., Any]]:
    """Call a kernel of `build_linear` by its address, with its tuple of arguments."""
    signature = types.void(types.int64, arguments)

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
        function = b.inttoptr(values[0], kind.as_pointer())
        b.call(function, cgutils.unpack_tuple(b, values[1]))
        return context.get_dummy_value()

    return signature, codegen
