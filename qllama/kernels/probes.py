"""The two loops that the machine's limits are measured with: reading, and dot products alone.

They do nothing else, so that no kernel can be faster; `qllama.bench` times them.
All threads of a team run one together and claim pieces of the work, as the forward
pass does. Each leaves a checksum of what it computed, which keeps the compiler
from leaving the work out and lets tests see that all of it was done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from qllama.kernels import atomic, simd
from qllama.kernels import vector as v
from qllama.kernels._jit import carray, intrinsic, njit
from qllama.kernels.dot import MAX_STEPS, byte_dot
from qllama.kernels.isa import current_isa
from qllama.kernels.simd import I8, I32, I64, Value
from qllama.kernels.team import claim, team_function

__all__ = [
    "DOT_BITS",
    "DOT_CODES",
    "DOT_RING",
    "DOT_ROWS",
    "PROBE",
    "READ_UNIT",
    "compile_probes",
    "dot4_probe",
    "read_ahead_probe",
    "read_probe",
]

_LINE = 64
_LINES_PER_ROUND = 8
_LANES = 16
#: Bytes of a piece are a multiple of this.
READ_UNIT = _LINE * _LINES_PER_ROUND
# Farther ahead it read up to 15% less (2 cores of a Xeon with 2 MB of L2 each).
_AHEAD_BYTES = 2048
#: The probe of dot products holds so many vectors of weights and of codes at once; their
#: 12 products hide the latency of two units of 5 cycles.
DOT_ROWS, DOT_CODES = 3, 4
#: Blocks of weights that it takes in turns, a power of two; small beside any cache.
DOT_RING = 4
#: Bits of its weights: the cheaper case where instruction sets have two.
DOT_BITS = 4
_READ, _READ_AHEAD, _MULTIPLY = range(3)

#: What a probe is given: the team's counters, the address of what it reads, a piece's
#: size, how many there are, and the address of int64 sums, one a thread: of the int32
#: words or products that it computed, each piece's modulo 2**32.
PROBE = np.dtype([(name, np.int64) for name in ("team", "operands", "size", "n_pieces", "sums")])


def _horizontal_sum(b: Any, slots: list[Value], lanes: int) -> Value:
    """Sum of all lanes of some i32 vectors, modulo 2**32, as i64."""
    total = b.load(slots[0])
    for slot in slots[1:]:
        total = b.add(total, b.load(slot))
    result = b.extract_element(total, I32(0))
    for lane in range(1, lanes):
        result = b.add(result, b.extract_element(total, I32(lane)))
    return b.zext(result, I64)


def _reader(ahead_bytes: int) -> Any:
    """Make `read(address, n_bytes)`: the sum of the int32 words there, modulo 2**32."""

    def read(_context: Any, address: Any, n_bytes: Any) -> tuple[Any, Callable[..., Any]]:
        def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
            address, n_bytes = values
            kind = simd.vector(I32, _LANES)
            pointer = b.inttoptr(address, I8.as_pointer())
            sums = [cgutils.alloca_once_value(b, ir.Constant(kind, None)) for _ in range(4)]
            with cgutils.for_range(b, b.sdiv(n_bytes, I64(READ_UNIT))) as loop:
                unit = simd.at(b, pointer, b.mul(loop.index, I64(READ_UNIT)))
                for line in range(_LINES_PER_ROUND):
                    here = simd.at(b, unit, _LINE * line)
                    if ahead_bytes:
                        simd.prefetch(b, simd.at(b, here, ahead_bytes), nearest=True)
                    slot = sums[line % len(sums)]
                    b.store(b.add(b.load(slot), simd.load(b, here, kind, _LINE)), slot)
            return _horizontal_sum(b, sums, _LANES)

        return types.int64(types.int64, types.int64), codegen

    return intrinsic(read)


_read = _reader(0)
_read_ahead = _reader(_AHEAD_BYTES)


@intrinsic
def _multiply(_context: Any, operands: Any, n_blocks: Any) -> tuple[Any, Callable[..., Any]]:
    """Multiply blocks of weights by codes that stay in registers; the sum of all results.

    The weights come from a ring of blocks in the nearest cache, a load for four products:
    were they the same every time, a compiler could do the work once.
    """

    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        operands, n_blocks = values
        isa = current_isa()
        kind = simd.vector(I32, isa.lanes)
        pointer = b.inttoptr(operands, I8.as_pointer())
        codes = [simd.load(b, simd.at(b, pointer, _LINE * t), kind) for t in range(DOT_CODES)]
        ring = simd.at(b, pointer, _LINE * DOT_CODES)
        grid = [(row, token) for row in range(DOT_ROWS) for token in range(DOT_CODES)]
        sums = {at: cgutils.alloca_once_value(b, ir.Constant(kind, None)) for at in grid}
        with cgutils.for_range(b, n_blocks) as loop:
            place = b.and_(loop.index, I64(DOT_RING - 1))
            block = simd.at(b, ring, b.mul(place, I64(_LINE * DOT_ROWS * MAX_STEPS)))
            dots = {at: byte_dot(b, isa, DOT_BITS, b.load(sums[at])) for at in grid}
            for step in range(MAX_STEPS):
                for row in range(DOT_ROWS):
                    line = simd.at(b, block, _LINE * (DOT_ROWS * step + row))
                    weights = simd.load(b, line, kind)
                    for token in range(DOT_CODES):
                        dots[row, token].add(weights, codes[token])
            for at in grid:
                b.store(dots[at].total, sums[at])
        return _horizontal_sum(b, list(sums.values()), isa.lanes)

    return types.int64(types.int64, types.int64), codegen


@njit
def _run_pieces(address, thread, kind):
    """Claim pieces until none is left; `kind` is what is done with each."""
    probe = carray(v.pointer(address), 1, PROBE)[0]
    total = 0
    while True:
        piece = claim(probe.team, 1)
        if piece >= probe.n_pieces:
            break
        if kind == _READ:
            total += _read(probe.operands + piece * probe.size, probe.size)
        elif kind == _READ_AHEAD:
            total += _read_ahead(probe.operands + piece * probe.size, probe.size)
        else:
            total += _multiply(probe.operands, probe.size)
    atomic.store(probe.sums + 8 * thread, total)


@cache
def read_probe() -> Any:
    """Read pieces of `size` bytes, a multiple of `READ_UNIT`, of 64-byte aligned memory.

    As all probes a function of a team, its argument a PROBE record's address.
    """
    return team_function(_read_pieces)


def _read_pieces(address, thread):
    _run_pieces(address, thread, _READ)


@cache
def read_ahead_probe() -> Any:
    """Read with prefetch instructions; see `read_probe`."""
    return team_function(_read_pieces_ahead)


def _read_pieces_ahead(address, thread):
    _run_pieces(address, thread, _READ_AHEAD)


@cache
def dot4_probe() -> Any:
    """Compute dot products of bytes, hardly touching memory.

    Each piece is `size * MAX_STEPS * DOT_ROWS * DOT_CODES` vectors of products of 4
    bytes and their sums. `operands` are rows of 64 bytes: `DOT_CODES` of codes, then
    blocks of `MAX_STEPS * DOT_ROWS` of weights, `DOT_RING` of them.
    """
    return team_function(_multiply_pieces)


def _multiply_pieces(address, thread):
    _run_pieces(address, thread, _MULTIPLY)


def compile_probes() -> None:
    """Compile the probes, or load them from the user's cache."""
    for probe in (read_probe, read_ahead_probe, dot4_probe):
        probe()
