"""Packed activations: what the matrix kernels multiply weights with.

A batch of n tokens is cut into groups of the widths of `Isa.widths`, widest
first. Inside a group of w tokens everything is interleaved, so that a kernel
reaches it from one address. With K padded to a multiple of 32:

- `f32`: for each k, w float32: 4 * K bytes a token;
- `q8`: for each block of 32 k: start128 int32[w], start8 int32[w], scale
  float32[w], sum float32[w], codes int8[8][w][4], in groups for matrix instructions
  (`Isa.matrix_width`) int8[w][32]: 48 bytes a block and token.

A block's scale is absmax / 127 and its codes rint(x * 127 / absmax). start128 and
start8 are -128 and -8 times the sum of the codes: they take back the offset of
stored weight codes. sum is scale times the sum of the codes.

Throughout: `n_tokens` tokens in a batch; `isa` fixes the widths; a row has `n_blocks`
blocks of 32; `packed` is the address of a group of `width` tokens, and `lane` the
token's place in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types

from qllama.kernels import simd
from qllama.kernels import vector as v
from qllama.kernels._jit import intrinsic, njit
from qllama.kernels.isa import Isa, current_isa
from qllama.kernels.simd import F32, I8, I32, I64, Value
from qllama.kernels.weight_kernels import Q8_BYTES
from qllama.quant.types import BLOCK

__all__ = ["group_of", "pack_f32", "pack_q8", "q8_residual", "token_groups"]

# The codes of a block whose largest magnitude is below this are 0: 127 / absmax would overflow.
_TINY = 2.0**-100


def token_groups(n_tokens: int, isa: Isa) -> list[tuple[int, int]]:
    """(first token, width) of each group of a batch, in order."""
    groups = []
    first = 0
    for width in isa.widths:
        while n_tokens - first >= width:
            groups.append((first, width))
            first += width
    return groups


_WIDTHS = current_isa().widths


@njit
def group_of(token, n_tokens):
    """(first token, width) of the group that holds `token`, as in `token_groups`."""
    first = 0
    for width in _WIDTHS:
        end = first + (n_tokens - first) // width * width
        if token < end:
            return token - (token - first) % width, width
        first = end
    return token, 1


@njit
def pack_f32(x, n_blocks, packed, width, lane):
    """Pack one token's float32 row at address `x` as token `lane` of its group at `packed`."""
    for k in range(n_blocks * BLOCK):
        v.store_scalar(packed + 4 * (k * width + lane), v.load_scalar(x + 4 * k))


@njit
def pack_q8(x, n_blocks, packed, width, lane):
    """Quantize and pack one token's float32 row at address `x`.

    A NaN or infinity makes its block's scale NaN, and so every result that uses it.
    """
    for block in range(n_blocks):
        _pack_block(x + 4 * BLOCK * block, packed + Q8_BYTES * width * block, width, lane)


@njit
def q8_residual(x, n_blocks):
    """Leave in the row at address `x` what `pack_q8` rounds away: x - scale * code."""
    for block in range(n_blocks):
        _subtract_rounded(x + 4 * BLOCK * block)


def _call(b: Any, name: str, result: Any, *arguments: Value) -> Value:
    return b.call(simd.declare(b, name, result, [a.type for a in arguments]), arguments)


def _quantize_block(b: Any, x: Value) -> tuple[Value, Value, Value]:
    """(values, codes, scale) of the 32 float32 at address `x`; codes are int32 lanes."""
    kind, ints = simd.vector(F32, BLOCK), simd.vector(I32, BLOCK)
    values = simd.load(b, b.inttoptr(x, I8.as_pointer()), kind)
    # Without their sign floats are ordered as their bits are, and NaN above all.
    magnitudes = b.and_(b.bitcast(values, ints), simd.constant(I32, BLOCK, 0x7FFFFFFF))
    absmax = b.bitcast(_call(b, "llvm.vector.reduce.smax.v32i32", I32, magnitudes), F32)
    is_zero = b.fcmp_ordered("<", absmax, F32(_TINY))
    inverse = b.select(is_zero, F32(0.0), b.fdiv(F32(127.0), absmax))
    codes = simd.round_to_int(b, b.fmul(values, simd.splat(b, inverse, BLOCK)))
    # inf * 0 is NaN: a block that holds an infinity must not look finite.
    scale = b.fmul(b.fdiv(absmax, F32(127.0)), b.fadd(F32(1.0), b.fmul(absmax, F32(0.0))))
    return values, codes, scale


@intrinsic
def _pack_block(
    _context: Any, x: Any, packed: Any, width: Any, lane: Any
) -> tuple[Any, Callable[..., Any]]:
    signature = types.void(types.int64, types.int64, types.int64, types.int64)

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        x, packed, width, lane = arguments
        _values, codes, scale = _quantize_block(b, x)
        total = _call(b, "llvm.vector.reduce.add.v32i32", I32, codes)
        codes = b.bitcast(b.trunc(codes, simd.vector(I8, BLOCK)), simd.vector(I32, 8))
        base = b.inttoptr(b.add(packed, b.mul(lane, I64(4))), I8.as_pointer())
        stride = b.mul(width, I64(4))
        columns = [
            b.mul(total, I32(-128)),
            b.mul(total, I32(-8)),
            scale,
            b.fmul(scale, b.sitofp(total, F32)),
        ]
        for column, value in enumerate(columns):
            simd.store(b, value, simd.at(b, base, b.mul(stride, I64(column))))
        first = b.inttoptr(b.add(packed, b.mul(stride, I64(len(columns)))), I8.as_pointer())
        is_matrix = b.icmp_signed("==", width, I64(current_isa().matrix_width or -1))
        with b.if_else(is_matrix) as (matrix, interleaved):
            with matrix:
                simd.store(b, codes, simd.at(b, first, b.mul(lane, I64(BLOCK))))
            with interleaved:
                first = simd.at(b, first, b.mul(lane, I64(4)))
                for group in range(8):
                    code = b.extract_element(codes, I32(group))
                    simd.store(b, code, simd.at(b, first, b.mul(stride, I64(group))))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _subtract_rounded(_context: Any, x: Any) -> tuple[Any, Callable[..., Any]]:
    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        values, codes, scale = _quantize_block(b, x)
        rounded = b.fmul(b.sitofp(codes, values.type), simd.splat(b, scale, BLOCK))
        simd.store(b, b.fsub(values, rounded), b.inttoptr(x, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), codegen
