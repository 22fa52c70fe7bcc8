"""A team of threads that runs one compiled function together.

Every thread calls the same function with its own number; inside, `barrier` makes
them wait for each other and `claim` hands out pieces of work. A barrier costs
well under a microsecond, where starting a parallel region of a threading layer
costs 2 to 60; nothing but CPython and the compiler is needed, and any number of
teams, forks and calling threads get along.

`state` is the address of a team's counters, `ThreadTeam.state`.

The compute threads never see signals: a Ctrl-C interrupts the caller, while the
step in flight ends by itself.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from qllama.kernels import simd
from qllama.kernels._jit import intrinsic, njit
from qllama.kernels.isa import current_isa
from qllama.kernels.simd import I8, I32, I64, Value

#: A compiled function and its arguments; None ends the thread.
_Job = tuple[Callable[..., Any], tuple[Any, ...]] | None

__all__ = ["TEAM_STATE_SIZE", "ThreadTeam", "barrier", "claim"]

# Three counters, each on a cache line (two, against the adjacent-line prefetcher) of its own.
_ARRIVED, _GENERATION, _NEXT = 0, 128, 256
#: Bytes of the state that `barrier` and `claim` share, zeroed before first use.
TEAM_STATE_SIZE = 384
# A microsecond or two. Where other programs compete for the cores, a thread that spins
# longer burns the time slice it will need: 41 tokens/s with 4096, 117 with 32.
_SPINS_BEFORE_YIELD = 32


def _counter(b: Any, state: Value, offset: int) -> Value:
    pointer = b.inttoptr(b.add(state, I64(offset)), I8.as_pointer())
    return b.bitcast(pointer, I64.as_pointer())


@intrinsic
def claim(_context: Any, state: Any, count: Any) -> tuple[Any, Callable[..., Any]]:
    """Take the next `count` pieces of work; returns the first one's number.

    Numbers start at 0 after every barrier and go on for ever: the caller stops at
    the first past its end.
    """

    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        state, count = values
        return b.atomic_rmw("add", _counter(b, state, _NEXT), count, "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _arrive(_context: Any, state: Any) -> tuple[Any, Callable[..., Any]]:
    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        return b.atomic_rmw("add", _counter(b, values[0], _ARRIVED), I64(1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic
def _generation(_context: Any, state: Any) -> tuple[Any, Callable[..., Any]]:
    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        return b.load_atomic(_counter(b, values[0], _GENERATION), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _open(_context: Any, state: Any, generation: Any) -> tuple[Any, Callable[..., Any]]:
    """Reset the counters, then let everybody past the barrier."""

    def codegen(ctx: Any, b: Any, _signature: Any, values: Any) -> Any:
        state, generation = values
        b.store_atomic(I64(0), _counter(b, state, _ARRIVED), "monotonic", 8)
        b.store_atomic(I64(0), _counter(b, state, _NEXT), "monotonic", 8)
        b.store_atomic(generation, _counter(b, state, _GENERATION), "release", 8)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _pause(_context: Any) -> tuple[Any, Callable[..., Any]]:
    """Tell the core that this is a spin loop."""
    name = "" if current_isa().name == "portable" else "llvm.x86.sse2.pause"

    def codegen(ctx: Any, b: Any, _signature: Any, _values: Any) -> Any:
        if name:
            b.call(simd.declare(b, name, ir.VoidType(), []), [])
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
def barrier(state, n_threads):
    """Wait until all `n_threads` threads are here; work numbers start at 0 again."""
    generation = _generation(state)
    if _arrive(state) == n_threads - 1:
        _open(state, generation + 1)
        return
    spins = 0
    while _generation(state) == generation:
        _pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            _yield()


class ThreadTeam:
    """`n_threads` threads that run compiled functions together, one call at a time.

    Parameters
    ----------
    n_threads : int
        At least 1.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._state = np.zeros(TEAM_STATE_SIZE + 128, np.uint8)
        #: Address of the counters for `barrier` and `claim`.
        self.state = self._state.ctypes.data + -self._state.ctypes.data % 128
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._unfinished = 0
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._inboxes = [queue.SimpleQueue[_Job]() for _ in range(self.n_threads)]
        for thread in range(self.n_threads):
            arguments = (thread, self._inboxes, self._results)
            threading.Thread(target=_work, args=arguments, daemon=True).start()
        self.close = weakref.finalize(self, self._inboxes[0].put, None)

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call `function(*arguments, thread)` on every thread and wait for all.

        Interrupted by an exception (Ctrl-C), it leaves the call to finish by itself;
        the next call waits for that first.
        """
        if self._pid != os.getpid():  # forked: the threads stayed behind
            self._state[:] = 0
            self._start()
        self._wait()
        # One item wakes the team, so no interrupt can start half of it.
        self._unfinished = self.n_threads
        self._inboxes[0].put((function, arguments))
        self._wait()

    def _wait(self) -> None:
        while self._unfinished:
            error = self._results.get()
            self._unfinished -= 1
            if error is not None:
                raise error


def _work(
    thread: int,
    inboxes: list[queue.SimpleQueue[_Job]],
    results: queue.SimpleQueue[BaseException | None],
) -> None:
    """Body of one thread: thread 0 hands each job on to the others."""
    while True:
        job = inboxes[thread].get()
        if thread == 0:
            for inbox in inboxes[1:]:
                inbox.put(job)
        if job is None:
            return
        function, arguments = job
        try:
            function(*arguments, thread)
        except BaseException as error:  # handed to the caller
            results.put(error)
        else:
            results.put(None)
