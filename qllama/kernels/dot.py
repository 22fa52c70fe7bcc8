"""Exact dot products of bytes, the heart of the integer kernels.

One class an instruction set, all used alike: make one with the value to start from,
`add` four products a lane at a time, at most `MAX_STEPS` times, and read `total`.
Throughout: `b` is an llvmlite IRBuilder, `bits` 4, 5, 6 or 8, `start` an i32 vector.

Weights are bytes below 2**bits where `bits` is 4, 5 or 6. Where it is 8 they are signed or
unsigned, as `Isa.signed` says. The other factor, `codes`, is signed and never -128.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from llvmlite import ir

from qllama.kernels import simd
from qllama.kernels.isa import Isa
from qllama.kernels.simd import I8, I16, I32, Value

__all__ = ["MAX_STEPS", "ByteDot", "byte_dot"]

#: Steps of 4 products that a block of 32 weights takes.
MAX_STEPS = 8
_NARROW = (4, 5, 6)
#: Steps whose products of bytes, two to a 16-bit lane and each code at most 127, fit 16 bits.
_NARROW_STEPS = {bits: min(MAX_STEPS, 32767 // (2 * (2**bits - 1) * 127)) for bits in _NARROW}


class ByteDot(Protocol):
    """A vector of running dot products; no intermediate saturates or wraps."""

    def add(self, weights: Value, codes: Value) -> None:
        """Add to each lane `sum(weights[j] * codes[j] for j in 0..3)`.

        Parameters
        ----------
        weights, codes : i32 vector
            Four bytes in each lane.
        """

    @property
    def total(self) -> Value:
        """The sums so far, an i32 vector."""


def byte_dot(b: Any, isa: Isa, bits: int, start: Value) -> ByteDot:
    """Begin a dot product.

    Parameters
    ----------
    b : llvmlite.ir.IRBuilder
    isa : Isa
        The instruction set to generate for.
    bits : int
        4, 5, 6 or 8: how large weights may be.
    start : i32 vector
        What the products are added to.

    Returns
    -------
    ByteDot
    """
    return _BYTE_DOTS[isa.name, bits](b, start)


class _Vnni:
    """`vpdpbusd` does it all; unsigned times signed."""

    def __init__(self, b: Any, start: Value) -> None:
        self._b = b
        self.total = start
        kind = start.type
        name = f"llvm.x86.avx512.vpdpbusd.{32 * kind.count}"
        self._instruction = simd.declare(b, name, kind, [kind] * 3)

    def add(self, weights: Value, codes: Value) -> None:
        self.total = self._b.call(self._instruction, [self.total, weights, codes])


class _Avx2:
    """`pmaddubsw` adds two products, unsigned times signed, and saturates at 16 bits."""

    def __init__(self, b: Any, start: Value) -> None:
        self._b = b
        self._start = start
        self._lanes = start.type.count
        self._pairs = simd.vector(I16, 2 * self._lanes)
        self._bytes = simd.vector(I8, 4 * self._lanes)

    def _call(self, name: str, result: Any, x: Value, y: Value) -> Value:
        instruction = simd.declare(self._b, f"llvm.x86.avx2.{name}", result, [x.type, y.type])
        return self._b.call(instruction, [x, y])

    def _pin(self, value: Value) -> Value:
        """The same value, where LLVM may not move the addition that made it.

        It would add up one token after the other, and the weights that it unpacked for
        the first, a whole block of them, would wait in memory for the second.
        """
        function = ir.FunctionType(value.type, [value.type])
        nothing = ir.InlineAsm(function, "", "=x,0", side_effect=True)
        return self._b.call(nothing, [value])

    def _widen(self, pairs: Value) -> Value:
        ones = simd.constant(I16, 2 * self._lanes, 1)
        return self._call("pmadd.wd", simd.vector(I32, self._lanes), pairs, ones)


class _Avx2Narrow(_Avx2):
    """Sums of some steps fit 16 bits: 8 of 4-bit codes, a block; 4 of 5-bit, 2 of 6-bit ones."""

    def __init__(self, b: Any, start: Value, bits: int) -> None:
        super().__init__(b, start)
        self._limit = _NARROW_STEPS[bits]
        self._n_steps = 0
        self._sum = simd.constant(I16, 2 * self._lanes, 0)

    def add(self, weights: Value, codes: Value) -> None:
        if self._n_steps == self._limit:
            self._start = self._pin(self.total)
            self._n_steps, self._sum = 0, simd.constant(I16, 2 * self._lanes, 0)
        weights, codes = (self._b.bitcast(v, self._bytes) for v in (weights, codes))
        pairs = self._call("pmadd.ub.sw", self._pairs, weights, codes)
        self._sum = self._pin(self._b.add(self._sum, pairs))
        self._n_steps += 1

    @property
    def total(self) -> Value:
        return self._b.add(self._start, self._widen(self._sum))


class _Avx2Bytes(_Avx2):
    """|weight| * (code with the weight's sign): two products are within 2 * 128 * 127."""

    def __init__(self, b: Any, start: Value) -> None:
        super().__init__(b, start)
        self.total = start

    def add(self, weights: Value, codes: Value) -> None:
        weights, codes = (self._b.bitcast(v, self._bytes) for v in (weights, codes))
        # |-128| is 128 as an unsigned byte; no code is -128, so every sign can change.
        magnitudes = self._call("psign.b", self._bytes, weights, weights)
        codes = self._call("psign.b", self._bytes, codes, weights)
        pairs = self._call("pmadd.ub.sw", self._pairs, magnitudes, codes)
        self.total = self._pin(self._b.add(self.total, self._widen(pairs)))


class _Neon:
    """`sdot` does it all; signed times signed."""

    def __init__(self, b: Any, start: Value) -> None:
        self._b = b
        self.total = start
        kind, self._bytes = start.type, simd.vector(I8, 4 * start.type.count)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        self._instruction = simd.declare(b, name, kind, [kind, self._bytes, self._bytes])

    def add(self, weights: Value, codes: Value) -> None:
        operands = [self._b.bitcast(v, self._bytes) for v in (weights, codes)]
        self.total = self._b.call(self._instruction, [self.total, *operands])


class _PortableNarrow:
    """Products and their sums in 16-bit lanes, even and odd bytes alike.

    As with AVX2, sums of some steps fit. Unsigned times signed.
    """

    def __init__(self, b: Any, start: Value, bits: int) -> None:
        self._b = b
        self._start = start
        self._n = 2 * start.type.count
        self._limit = _NARROW_STEPS[bits]
        self._n_steps = 0
        self._sum = self._constant(0)

    def _constant(self, value: int) -> Value:
        return simd.constant(I16, self._n, value)

    def _halves(self, value: Value) -> Value:
        return self._b.bitcast(value, simd.vector(I16, self._n))

    def add(self, weights: Value, codes: Value) -> None:
        if self._n_steps == self._limit:
            self._start = self.total
            self._n_steps, self._sum = 0, self._constant(0)
        b, eight = self._b, self._constant(8)
        weights, codes = self._halves(weights), self._halves(codes)
        even = b.mul(b.and_(weights, self._constant(0xFF)), b.ashr(b.shl(codes, eight), eight))
        odd = b.mul(b.lshr(weights, eight), b.ashr(codes, eight))
        self._sum = b.add(b.add(self._sum, even), odd)
        self._n_steps += 1

    @property
    def total(self) -> Value:
        b, sixteen = self._b, simd.constant(I32, self._n // 2, 16)
        pairs = b.bitcast(self._sum, self._start.type)
        low, high = b.ashr(b.shl(pairs, sixteen), sixteen), b.ashr(pairs, sixteen)
        return b.add(self._start, b.add(low, high))


class _PortableBytes:
    """16 * (upper half of a weight) + lower half, both of them nibbles."""

    def __init__(self, b: Any, start: Value) -> None:
        self._b = b
        self._start = start
        zero = ir.Constant(start.type, None)
        self._high, self._low = _PortableNarrow(b, zero, 4), _PortableNarrow(b, zero, 4)

    def add(self, weights: Value, codes: Value) -> None:
        b, lanes = self._b, self._start.type.count
        nibbles, four = simd.constant(I32, lanes, 0x0F0F0F0F), simd.constant(I32, lanes, 4)
        self._low.add(b.and_(weights, nibbles), codes)
        self._high.add(b.and_(b.lshr(weights, four), nibbles), codes)

    @property
    def total(self) -> Value:
        b, four = self._b, simd.constant(I32, self._start.type.count, 4)
        return b.add(self._start, b.add(self._low.total, b.shl(self._high.total, four)))


_BYTE_DOTS: dict[tuple[str, int], Callable[[Any, Value], ByteDot]] = {
    **{(isa, bits): _Vnni for isa in ("amx", "avx512vnni", "avxvnni") for bits in (*_NARROW, 8)},
    **{("avx2", bits): partial(_Avx2Narrow, bits=bits) for bits in _NARROW},
    ("avx2", 8): _Avx2Bytes,
    **{("neon", bits): _Neon for bits in (*_NARROW, 8)},
    **{("portable", bits): partial(_PortableNarrow, bits=bits) for bits in _NARROW},
    ("portable", 8): _PortableBytes,
}
