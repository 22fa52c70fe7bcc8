"""Memory that several threads change at once, and how a thread waits for it.

Every location is an int64, given by its address and aligned to 8 bytes. Loads and
what changes memory order everything around them: what one thread wrote before a
`store` or `add` is seen by the thread that reads its result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from numba import types

from qllama.kernels import simd
from qllama.kernels._jit import intrinsic, njit
from qllama.kernels.isa import current_isa
from qllama.kernels.simd import I32, I64, Value

__all__ = ["add", "compare_exchange", "load", "relax", "store"]

# A yielded core goes to another program for milliseconds, so threads wait that long only
# where one of theirs was put aside: for some 150 us. SmolLM2 with 2 threads on 2 cores
# beside one busy process of nice 0 (10) decoded 39 (28) tokens/s with 32 spins, 60 (78)
# with 256, 77 (108) with 1024; undisturbed there is no difference.
_SPINS_BEFORE_YIELD = 1024


def _pointer(b: Any, address: Value) -> Value:
    return b.inttoptr(address, I64.as_pointer())


@intrinsic
def load(_context: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """The value at `address`."""

    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        return b.load_atomic(_pointer(b, values[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store(_context: Any, address: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Write `value` to `address`."""

    def codegen(ctx: Any, b: Any, _signature: Any, values: Any) -> Any:
        address, value = values
        b.store_atomic(value, _pointer(b, address), "release", 8)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add(_context: Any, address: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Add `value` to what is at `address`; returns what was there before."""

    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        address, value = values
        return b.atomic_rmw("add", _pointer(b, address), value, "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def compare_exchange(
    _context: Any, address: Any, expected: Any, value: Any
) -> tuple[Any, Callable[..., Any]]:
    """Write `value` to `address` if `expected` is there; returns whether it was."""

    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        address, expected, value = values
        pair = b.cmpxchg(_pointer(b, address), expected, value, "acq_rel", "acquire")
        return b.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def _pause(_context: Any) -> tuple[Any, Callable[..., Any]]:
    """Tell the core that this is a spin loop."""

    def codegen(ctx: Any, b: Any, _signature: Any, _values: Any) -> Any:
        simd.pause(b, current_isa())
        return ctx.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _yield(_context: Any) -> tuple[Any, Callable[..., Any]]:
    """Give the core to somebody else: there may be more threads than cores."""
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"

    def codegen(ctx: Any, b: Any, _signature: Any, _values: Any) -> Any:
        b.call(simd.declare(b, name, I32, []), [])
        return ctx.get_dummy_value()

    return types.void(), codegen


@njit
def relax(round_number):
    """Pass a moment before looking again, for the `round_number`th time from 0 on."""
    _pause()
    if round_number >= _SPINS_BEFORE_YIELD:
        _yield()
