"""Products of float32 rows with a panel: 32 columns whose values lie side by side.

A panel holds n rows of 32 values, one after the other: one stream of memory. Each
result is one chain of multiply-adds in the order of the panel's rows, however many
rows are multiplied together and whatever the panel's type, so its bits depend on
nothing else.

A panel's type is `F16_PANEL` or `I8_PANEL`: int8 codes, each row with a float32 scale;
a value is scale * code, exact where the scale is a half. Converting a panel once, to
multiply many rows with float32, measured no faster: 170 to 181 GFLOP/s a core, where
12 rows at a time convert halves as they go at 168 to 173.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from qllama.kernels import simd
from qllama.kernels._jit import intrinsic, njit
from qllama.kernels.isa import Isa, current_isa
from qllama.kernels.simd import F32, I8, I16, I32, I64, Value

__all__ = [
    "F16_PANEL",
    "I8_PANEL",
    "PANEL",
    "ROW_BYTES",
    "ROW_FLOATS",
    "multiply_panel",
]

#: Columns of a panel.
PANEL = 32
#: Values of a left-hand row that one product reads at most.
ROW_FLOATS = 256
#: From one left-hand row to the next: a line more than a power of two, which would
#: put all rows into the same few sets of the cache.
ROW_BYTES = 4 * ROW_FLOATS + 64

F16_PANEL, I8_PANEL = range(2)
_ELEMENT_BYTES = {F16_PANEL: 2, I8_PANEL: 1}
#: Registers that a pass covers: with the widest group of rows they and the accumulators
#: take all there are.
_REGISTERS = 2
_PREFETCH_BYTES = 2048
#: Wider groups compute for longer than the memory takes.
_WIDEST_PREFETCH = 8


def _widths(isa: Isa) -> list[int]:
    """Rows that are multiplied together, widest first."""
    # Eight query heads a key/value head are common: two groups of 4 would convert twice.
    widths = isa.vector_widths
    return sorted({*widths, min(8, widths[0])}, reverse=True)


def _load_values(
    b: Any, isa: Isa, kind: int, pointer: Value, scale: Value | None, first: int
) -> Value:
    """Float32 values of the columns `first ..` of the panel's row at `pointer`."""
    floats = simd.vector(F32, isa.lanes)
    pointer = simd.at(b, pointer, _ELEMENT_BYTES[kind] * first)
    if kind == F16_PANEL:
        return simd.f16_to_f32(b, isa, simd.load(b, pointer, simd.vector(I16, isa.lanes), 2))
    codes = simd.load(b, pointer, simd.vector(I8, isa.lanes), 1)
    values = b.sitofp(b.sext(codes, simd.vector(I32, isa.lanes)), floats)
    return b.fmul(values, scale)


def _generate(b: Any, isa: Isa, kind: int, width: int, arguments: tuple[Value, ...]) -> None:
    """`width` rows times a panel, some columns a pass."""
    rows, panel, scales, out, n, out_stride, accumulate = arguments
    floats = simd.vector(F32, isa.lanes)
    row_bytes = PANEL * _ELEMENT_BYTES[kind]
    pass_columns = min(PANEL, _REGISTERS * isa.lanes)
    for start in range(0, PANEL, pass_columns):
        columns = range(start, start + pass_columns, isa.lanes)
        sums = {}
        for row in range(width):
            for column in columns:
                target = simd.at(b, simd.at(b, out, b.mul(I64(row), out_stride)), 4 * column)
                slot = cgutils.alloca_once(b, floats)
                b.store(ir.Constant(floats, None), slot)
                with b.if_then(accumulate):
                    b.store(simd.load(b, target, floats), slot)
                sums[row, column] = slot, target
        with cgutils.for_range(b, n) as loop:
            k = loop.index
            values = simd.at(b, panel, b.mul(k, I64(row_bytes)))
            if width <= _WIDEST_PREFETCH and start == 0:
                simd.prefetch(b, simd.at(b, values, _PREFETCH_BYTES))
            scale = None
            if kind == I8_PANEL:
                pointer = simd.at(b, scales, b.mul(k, I64(4)))
                scale = simd.load_splat(b, pointer, F32, isa.lanes)
            loaded = [_load_values(b, isa, kind, values, scale, column) for column in columns]
            left = simd.at(b, rows, b.mul(k, I64(4)))
            for row in range(width):
                factor = simd.load_splat(b, simd.at(b, left, ROW_BYTES * row), F32, isa.lanes)
                for column, value in zip(columns, loaded, strict=True):
                    slot, _target = sums[row, column]
                    b.store(simd.fma(b, isa, factor, value, b.load(slot)), slot)
        for slot, target in sums.values():
            simd.store(b, b.load(slot), target)


@intrinsic(prefer_literal=True)
def _multiply(_context: Any, kind: Any, arguments: Any) -> tuple[Any, Callable[..., Any]]:
    signature = types.void(kind, arguments)
    isa = current_isa()

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        inner = cgutils.unpack_tuple(b, values[1])
        n_rows, rows, panel, scales, out, n, out_stride, accumulate = inner
        rows, panel, scales, out = (
            b.inttoptr(address, I8.as_pointer()) for address in (rows, panel, scales, out)
        )
        accumulate = b.icmp_signed("!=", accumulate, I64(0))
        done = I64(0)
        for width in _widths(isa):
            n_groups = b.sdiv(b.sub(n_rows, done), I64(width))
            with cgutils.for_range(b, n_groups) as loop:
                first = b.add(done, b.mul(loop.index, I64(width)))
                left = simd.at(b, rows, b.mul(first, I64(ROW_BYTES)))
                target = simd.at(b, out, b.mul(first, out_stride))
                group = (left, panel, scales, target, n, out_stride, accumulate)
                _generate(b, isa, kind.literal_value, width, group)
            done = b.add(done, b.mul(n_groups, I64(width)))
        return context.get_dummy_value()

    return signature, codegen


@njit
def multiply_panel(kind, n_rows, rows, panel, scales, out, n, out_stride, accumulate):
    """out[row] (+)= sum over k of rows[row][k] * panel[k], 32 float32 a row.

    Parameters
    ----------
    kind : int64
        The panel's type.
    n_rows : int64
    rows : int64
        Address of float32 rows, `ROW_BYTES` apart.
    panel : int64
        Address of n rows of 32 values; up to 2 KiB behind them are prefetched.
    scales : int64
        Address of float32, (n,), for `I8_PANEL`; else not read.
    out : int64
        Address of the results, `out_stride` bytes from row to row.
    n, out_stride : int64
    accumulate : int64
        Nonzero goes on from what `out` holds; zero starts from 0.
    """
    arguments = (n_rows, rows, panel, scales, out, n, out_stride, accumulate)
    if kind == F16_PANEL:
        _multiply(F16_PANEL, arguments)
    else:
        _multiply(I8_PANEL, arguments)
