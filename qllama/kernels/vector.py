"""Vectors of 16 float32 as values inside compiled kernels.

`f32x16` supports `+ - * /` between vectors; everything else is a function here. So does
`f64x16`, of 16 float64, for sums that need them: what acts on it has `wide` in its name.
Addresses are int64. Operations act lane by lane; the two reductions add or
compare in one fixed order, so results never depend on the machine's width.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, register_model

from qllama.kernels import simd
from qllama.kernels._jit import intrinsic
from qllama.kernels.isa import current_isa
from qllama.kernels.simd import F32, F64, I8, I16, I32, I64, Value

__all__ = [
    "LANES",
    "absolute",
    "exp",
    "f32x16",
    "f64x16",
    "finite_halves",
    "fma",
    "keep_lanes",
    "larger",
    "load",
    "load_bf16_scalar",
    "load_byte",
    "load_f16",
    "load_f16_scalar",
    "load_int",
    "load_scalar",
    "maximum",
    "pointer",
    "prefetch",
    "reduce_add",
    "reduce_max",
    "rounded_to_half",
    "smaller",
    "splat",
    "store",
    "store_bytes",
    "store_f16",
    "store_int",
    "store_scalar",
    "where_less",
    "wide",
    "wide_fma",
    "wide_larger",
    "wide_splat",
    "wide_store",
]

LANES = 16
_VF = simd.vector(F32, LANES)
_VD = simd.vector(F64, LANES)
_VI = simd.vector(I32, LANES)


class _Vector(types.Type):
    pass


f32x16, f64x16 = _Vector("f32x16"), _Vector("f64x16")
_LLVM_TYPES = {f32x16: _VF, f64x16: _VD}


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _LLVM_TYPES[kind])


def _define_operator(function: Any, instruction: str) -> None:
    kinds = tuple(_LLVM_TYPES)
    template = type(
        f"_Vector_{instruction}",
        (ConcreteTemplate,),
        {"key": function, "cases": [signature(kind, kind, kind) for kind in kinds]},
    )
    infer_global(function)(template)

    def lower(_context: Any, b: Any, _signature: Any, args: Any) -> Value:
        return getattr(b, instruction)(*args)

    for kind in kinds:
        lower_builtin(function, kind, kind)(lower)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_function, _instruction)


def _pointer(b: Any, address: Value) -> Value:
    return b.inttoptr(address, I8.as_pointer())


def _operation(name: str, result: Any, arguments: list[Any], emit: Callable[..., Value]) -> Any:
    """Make `emit(builder, *values)` callable from kernels, with these numba types."""

    def typing(_context: Any, *_given: Any) -> Any:
        def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Value:
            value = emit(b, *values)
            return context.get_dummy_value() if result is types.void else value

        return result(*arguments), codegen

    names = ["context", *(f"x{i}" for i in range(len(arguments)))]
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    typing.__name__ = name
    typing.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(typing)


def _unary(name: str) -> Callable[[Any, Value], Value]:
    return lambda b, x: b.call(simd.declare(b, f"llvm.{name}.v16f32", _VF, [_VF]), [x])


def _halves(b: Any, x: Value, combine: Callable[[Any, Value, Value], Value]) -> Value:
    """Fold 16 lanes to 1: lane i meets lane i + 8, then + 4, + 2, + 1."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (
            b.shuffle_vector(x, x, ir.Constant(simd.vector(I32, width), list(lanes)))
            for lanes in (range(width), range(width, 2 * width))
        )
        x = combine(b, low, high)
    return b.extract_element(x, I32(0))


def _wider(b: Any, x: Value, y: Value) -> Value:
    """The larger of each lane; NaN if either is."""
    suffix = f"v{x.type.count}f32"
    return b.call(simd.declare(b, f"llvm.maximum.{suffix}", x.type, [x.type] * 2), [x, y])


def _larger(b: Any, x: Value, y: Value) -> Value:
    """The larger of each lane; y where x is NaN: one instruction, where `_wider` takes three."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _where_less(b: Any, x: Value, y: Value, z: Value, other: Value) -> Value:
    return b.select(b.fcmp_ordered("<", x, y), z, other)


def _smaller(b: Any, x: Value, y: Value) -> Value:
    return _where_less(b, x, y, x, y)


def _keep_lanes(b: Any, x: Value, first: Value, end: Value, other: Value) -> Value:
    lanes = ir.Constant(_VI, list(range(LANES)))
    first, end = (simd.splat(b, b.trunc(v, I32), LANES) for v in (first, end))
    inside = b.and_(b.icmp_signed(">=", lanes, first), b.icmp_signed("<", lanes, end))
    return b.select(inside, x, other)


def _exp(b: Any, x: Value) -> Value:
    # 2**n * exp(r), n = rint(x / ln 2), r in +-ln2/2 by a two-part ln 2 (Moshier 1989,
    # Cephes' expf). The polynomial of degree 5 has the least relative error there, 1.05e-7,
    # of those that begin with 1 + r; rounding adds about as much.
    number = lambda value: simd.constant(F32, LANES, value)  # noqa: E731
    # n is rounded by adding 1.5 * 2**23, which leaves it in the low bits of the sum.
    isa = current_isa()
    too_small = b.fcmp_ordered("<", x, number(-87.0))
    x = b.select(b.fcmp_ordered(">", x, number(88.0)), number(88.0), x)
    magic = number(12582912.0)
    shifted = simd.fma(b, isa, x, number(1.44269504088896341), magic)
    n = b.fsub(shifted, magic)
    r = simd.fma(b, isa, n, number(-0.693359375), x)
    r = simd.fma(b, isa, n, number(2.12194440e-4), r)
    p = number(8.312501013e-3)
    for c in (4.1890330613e-2, 1.6667115688e-1, 4.9999231100e-1, 1.0, 1.0):
        p = simd.fma(b, isa, p, r, number(c))
    exponent = b.shl(b.bitcast(shifted, _VI), simd.constant(I32, LANES, 23))
    power = b.bitcast(b.add(b.bitcast(p, _VI), exponent), _VF)
    return b.select(too_small, number(0.0), power)


def finite_halves(b: Any, x: Value) -> Value:
    """Emit the bits of the nearest finite half of `x`, one float or 16, to builder `b`."""
    # An infinity among the values would make 0 * inf of positions that are not seen.
    for compare, number in ((">", 65504.0), ("<", -65504.0)):
        limit = simd.constant(F32, LANES, number) if x.type == _VF else F32(number)
        x = b.select(b.fcmp_ordered(compare, x, limit), limit, x)
    return simd.f32_to_f16(b, current_isa(), x)


_F, _D, _A = types.float32, types.float64, types.int64

splat = _operation("splat", f32x16, [_F], lambda b, x: simd.splat(b, x, LANES))
load = _operation("load", f32x16, [_A], lambda b, p: simd.load(b, _pointer(b, p), _VF))
load_f16 = _operation(
    "load_f16",
    f32x16,
    [_A],
    lambda b, p: simd.f16_to_f32(
        b, current_isa(), simd.load(b, _pointer(b, p), simd.vector(I16, LANES), 2)
    ),
)
load_f16_scalar = _operation(
    "load_f16_scalar",
    _F,
    [_A],
    lambda b, p: simd.f16_to_f32(b, current_isa(), simd.load(b, _pointer(b, p), I16, 2)),
)
load_bf16_scalar = _operation(
    "load_bf16_scalar",
    _F,
    [_A],
    lambda b, p: simd.bf16_to_f32(b, simd.load(b, _pointer(b, p), I16, 2)),
)
load_byte = _operation(
    "load_byte", _A, [_A], lambda b, p: b.zext(simd.load(b, _pointer(b, p), I8, 1), I64)
)
load_int = _operation(
    "load_int", _A, [_A], lambda b, p: b.sext(simd.load(b, _pointer(b, p), I32), I64)
)
load_scalar = _operation("load_scalar", _F, [_A], lambda b, p: simd.load(b, _pointer(b, p), F32))
#: The address as a pointer, for `carray`.
pointer = _operation("pointer", types.voidptr, [_A], lambda b, p: _pointer(b, p))
#: prefetch(address): ask for its cache line, into the second-level cache.
prefetch = _operation("prefetch", types.void, [_A], lambda b, p: simd.prefetch(b, _pointer(b, p)))
store = _operation(
    "store", types.void, [_A, f32x16], lambda b, p, x: simd.store(b, x, _pointer(b, p))
)
store_scalar = _operation(
    "store_scalar", types.void, [_A, _F], lambda b, p, x: simd.store(b, x, _pointer(b, p))
)
store_int = _operation(
    "store_int",
    types.void,
    [_A, _A],
    lambda b, p, x: simd.store(b, b.trunc(x, I32), _pointer(b, p)),
)
#: store_f16(address, x): x rounded to half precision, and to its largest if beyond it.
store_f16 = _operation(
    "store_f16",
    types.void,
    [_A, _F],
    lambda b, p, x: simd.store(b, finite_halves(b, x), _pointer(b, p), 2),
)
#: store_bytes(address, x): 16 whole numbers, 0 to 255, as bytes.
store_bytes = _operation(
    "store_bytes",
    types.void,
    [_A, f32x16],
    lambda b, p, x: simd.store(b, b.fptoui(x, simd.vector(I8, LANES)), _pointer(b, p), 1),
)
fma = _operation(
    "fma", f32x16, [f32x16] * 3, lambda b, x, y, z: simd.fma(b, current_isa(), x, y, z)
)
#: rounded_to_half(x): the nearest finite half of each lane, as float32.
rounded_to_half = _operation(
    "rounded_to_half",
    f32x16,
    [f32x16],
    lambda b, x: simd.f16_to_f32(b, current_isa(), finite_halves(b, x)),
)
absolute = _operation("absolute", f32x16, [f32x16], _unary("fabs"))
maximum = _operation("maximum", f32x16, [f32x16] * 2, _wider)
#: larger(x, y): the larger of each lane; y's where x is NaN.
larger = _operation("larger", f32x16, [f32x16] * 2, _larger)
#: smaller(x, y): the smaller of each lane; y's where x is NaN.
smaller = _operation("smaller", f32x16, [f32x16] * 2, _smaller)
wide = _operation("wide", f64x16, [f32x16], lambda b, x: b.fpext(x, _VD))
wide_splat = _operation("wide_splat", f64x16, [_D], lambda b, x: simd.splat(b, x, LANES))
wide_store = _operation(
    "wide_store", types.void, [_A, f64x16], lambda b, p, x: simd.store(b, x, _pointer(b, p), 8)
)
wide_fma = _operation(
    "wide_fma", f64x16, [f64x16] * 3, lambda b, x, y, z: simd.fma(b, current_isa(), x, y, z)
)
wide_larger = _operation("wide_larger", f64x16, [f64x16] * 2, _larger)
#: where_less(x, y, z, other): z in lanes where x < y, else other's.
where_less = _operation("where_less", f32x16, [f32x16] * 4, _where_less)
reduce_add = _operation(
    "reduce_add", _F, [f32x16], lambda b, x: _halves(b, x, lambda b, y, z: b.fadd(y, z))
)
reduce_max = _operation("reduce_max", _F, [f32x16], lambda b, x: _halves(b, x, _wider))
#: keep_lanes(x, first, end, other): lanes first <= i < end of x, the rest from other.
keep_lanes = _operation("keep_lanes", f32x16, [f32x16, _A, _A, f32x16], _keep_lanes)
#: e**x; 0 below x = -87, from x = 88 on what it is there; relative error below 3e-7.
exp = _operation("exp", f32x16, [f32x16], _exp)
