"""SIMD code generation: the few vector operations every kernel is written in.

Each function appends LLVM instructions to a builder and returns an IR value.
Vectors are LLVM vectors of any length; LLVM cuts them to the machine's registers.
Throughout: `b` is an llvmlite IRBuilder, `isa` the instruction set to generate for,
`pointer` an i8 pointer, `lanes` the length of a vector, `element` and `kind` LLVM types.
Only `load_splats`, `fma`, `pause` and the half-precision conversions differ between
instruction sets, and the byte products of `dot`; all above these two files is ISA-blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from qllama.kernels.isa import Isa

__all__ = [
    "F32",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "Value",
    "at",
    "bf16_to_f32",
    "constant",
    "declare",
    "f16_to_f32",
    "f32_to_f16",
    "fma",
    "load",
    "load_splat",
    "load_splats",
    "pause",
    "prefetch",
    "round_to_int",
    "splat",
    "store",
    "vector",
]

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
_F16 = ir.HalfType()
Value = Any  # llvmlite's IR values carry no static types


def vector(element: Any, lanes: int) -> Any:
    """The LLVM type `<lanes x element>`."""
    return ir.VectorType(element, lanes)


def constant(element: Any, lanes: int, value: float) -> Value:
    """`value` in every lane."""
    return ir.Constant(vector(element, lanes), [value] * lanes)


def declare(b: Any, name: str, result: Any, arguments: Sequence[Any]) -> Value:
    """The external function or LLVM intrinsic `name`, declared once a module.

    `result` and `arguments` are LLVM types.
    """
    found = b.module.globals.get(name)
    if found is None:
        found = ir.Function(b.module, ir.FunctionType(result, list(arguments)), name)
    return found


def splat(b: Any, scalar: Value, lanes: int) -> Value:
    """The scalar in every lane."""
    undefined = ir.Constant(vector(scalar.type, lanes), ir.Undefined)
    first = b.insert_element(undefined, scalar, I32(0))
    return b.shuffle_vector(first, undefined, constant(I32, lanes, 0))


def at(b: Any, pointer: Value, byte_offset: Value | int) -> Value:
    """`pointer` (an i8 pointer) moved by `byte_offset` bytes."""
    offset = I64(byte_offset) if isinstance(byte_offset, int) else byte_offset
    return b.gep(pointer, [offset])


def load(b: Any, pointer: Value, kind: Any, align: int = 4) -> Value:
    """Load a value of LLVM type `kind`; `align` in bytes is a promise."""
    value = b.load(b.bitcast(pointer, kind.as_pointer()))
    value.align = align
    return value


def store(b: Any, value: Value, pointer: Value, align: int = 4) -> None:
    """Store `value`; `align` in bytes is a promise."""
    b.store(value, b.bitcast(pointer, value.type.as_pointer())).align = align


def load_splat(b: Any, pointer: Value, kind: Any, lanes: int) -> Value:
    """Load one 4-byte scalar into every lane (a broadcast folded into its use)."""
    return splat(b, load(b, pointer, kind), lanes)


def load_splats(b: Any, isa: Isa, pointer: Value, count: int, kind: Any, lanes: int) -> list[Value]:
    """Load `count` 4-byte scalars in a row, each into every lane of a vector of its own."""
    splats: list[Value] = []
    while len(splats) < count:
        source = at(b, pointer, 4 * len(splats))
        left = count - len(splats)
        if not isa.has_lane_operands or left == 1:
            splats.append(load_splat(b, source, kind, lanes))
            continue
        # Instructions take one lane of a register, so several scalars cost one load.
        several = load(b, source, vector(kind, 4 if left >= 4 else 2))
        for lane in range(several.type.count):
            splats.append(b.shuffle_vector(several, several, constant(I32, lanes, lane)))
    return splats


def prefetch(b: Any, pointer: Value, *, nearest: bool = False, write: bool = False) -> None:
    """Ask for the line of memory at `pointer`, to read it or to `write` it.

    It comes to the second-level cache; to the `nearest` one, too, and to `write`. An
    address that is not there does no harm.
    """
    name, kinds = "llvm.prefetch.p0", [I8.as_pointer(), I32, I32, I32]
    options = (int(write), 3 if nearest or write else 2, 1)  # to write; how near; data
    b.call(declare(b, name, ir.VoidType(), kinds), [pointer, *map(I32, options)])


def fma(b: Any, isa: Isa, x: Value, y: Value, z: Value) -> Value:
    """`x * y + z`, rounded once where the machine can (portable code rounds twice)."""
    if not isa.has_fma:
        return b.fadd(b.fmul(x, y), z)
    kind = x.type
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    name = f"llvm.fma.{lanes}{_element(kind).intrinsic_name}"
    return b.call(declare(b, name, kind, [kind] * 3), [x, y, z])


def _element(kind: Any) -> Any:
    """The type of a vector's elements; a scalar's own."""
    return kind.element if isinstance(kind, ir.VectorType) else kind


def _like(value: Value, element: Any) -> Any:
    """The type of `value` with another element: works on vectors and scalars."""
    kind = value.type
    return vector(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _fill(kind: Any, value: float) -> Value:
    """A constant of a vector or scalar type."""
    if isinstance(kind, ir.VectorType):
        return constant(kind.element, kind.count, value)
    return ir.Constant(kind, value)


def f16_to_f32(b: Any, isa: Isa, half_bits: Value) -> Value:
    """IEEE binary16 `half_bits` (i16, scalar or vector) to float32, exactly."""
    if isa.has_f16:
        return b.fpext(b.bitcast(half_bits, _like(half_bits, _F16)), _like(half_bits, F32))
    # Shift exponent and fraction into place and multiply by 2**112, which also
    # normalizes subnormals; infinities and NaNs get their exponent patched.
    i32, f32 = _like(half_bits, I32), _like(half_bits, F32)
    bits = b.zext(half_bits, i32)
    magnitude = b.shl(b.and_(bits, _fill(i32, 0x7FFF)), _fill(i32, 13))
    scaled = b.fmul(b.bitcast(magnitude, f32), _fill(f32, 2.0**112))
    special = b.icmp_unsigned(">=", magnitude, _fill(i32, 0x7C00 << 13))
    patched = b.or_(magnitude, _fill(i32, 0x7F800000))
    finite = b.bitcast(scaled, i32)
    sign = b.shl(b.and_(bits, _fill(i32, 0x8000)), _fill(i32, 16))
    return b.bitcast(b.or_(b.select(special, patched, finite), sign), f32)


def f32_to_f16(b: Any, isa: Isa, value: Value) -> Value:
    """float32 (scalar or vector) to IEEE binary16 bits, round to nearest even."""
    i16 = _like(value, I16)
    if isa.has_f16:
        return b.bitcast(b.fptrunc(value, _like(value, _F16)), i16)
    i32, f32 = _like(value, I32), _like(value, F32)
    bits = b.bitcast(value, i32)
    sign = b.lshr(b.and_(bits, _fill(i32, 0x80000000)), _fill(i32, 16))
    magnitude = b.and_(bits, _fill(i32, 0x7FFFFFFF))
    # Normal results: rebias the exponent, round to nearest even on bit 13.
    odd = b.and_(b.lshr(magnitude, _fill(i32, 13)), _fill(i32, 1))
    rounded = b.add(b.add(magnitude, _fill(i32, 0xFFF - (112 << 23))), odd)
    normal = b.lshr(rounded, _fill(i32, 13))
    # Subnormal results: adding 0.5 lines the fraction up at 2**-24 and rounds it.
    half = b.fadd(b.bitcast(magnitude, f32), _fill(f32, 0.5))
    subnormal = b.sub(b.bitcast(half, i32), _fill(i32, 0x3F000000))
    is_subnormal = b.icmp_unsigned("<", magnitude, _fill(i32, 113 << 23))
    result = b.select(is_subnormal, subnormal, normal)
    overflow = b.icmp_unsigned(">=", magnitude, _fill(i32, 0x477FF000))
    result = b.select(overflow, _fill(i32, 0x7C00), result)
    is_nan = b.icmp_unsigned(">", magnitude, _fill(i32, 0x7F800000))
    result = b.select(is_nan, _fill(i32, 0x7E00), result)
    return b.trunc(b.or_(result, sign), i16)


def round_to_int(b: Any, values: Value) -> Value:
    """Float32 `values` as int32, rounded to nearest, ties to even.

    Every magnitude must be below 2**22; a NaN gives any number.
    """
    # The unit of 1.5 * 2**23 is 1: adding it rounds, and leaves the integer in the low bits.
    lanes = values.type.count
    shifted = b.fadd(values, constant(F32, lanes, 12582912.0))
    return b.sub(b.bitcast(shifted, vector(I32, lanes)), constant(I32, lanes, 0x4B400000))


def bf16_to_f32(b: Any, bits: Value) -> Value:
    """bfloat16 bits (i16, scalar or vector) to float32: the upper half of its bits."""
    i32 = _like(bits, I32)
    return b.bitcast(b.shl(b.zext(bits, i32), _fill(i32, 16)), _like(bits, F32))


def pause(b: Any, isa: Isa) -> None:
    """Let a core that spins rest for a moment."""
    if "neon" in isa.needs:
        # `yield` does nothing on most cores; an instruction barrier takes its time.
        b.call(declare(b, "llvm.aarch64.isb", ir.VoidType(), [I32]), [I32(15)])
    elif "avx2" in isa.needs:
        b.call(declare(b, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
