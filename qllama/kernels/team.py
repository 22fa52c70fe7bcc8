"""A team of threads that runs one compiled function together.

Every thread calls the same function with its own number; inside, `barrier` makes
them wait for each other and `claim` hands out pieces of work. A barrier costs
well under a microsecond, where starting a parallel region of a threading layer
costs 2 to 60; nothing but CPython and the compiler is needed, and any number of
teams, forks and calling threads get along.

`state` is the address of a team's counters, `ThreadTeam.state`.

The compute threads never see signals. A Ctrl-C reaches the caller, which has them
stop at the next point where they look (`is_cancelled`), and then leaves.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import types

from qllama.errors import KernelError
from qllama.kernels import simd
from qllama.kernels._jit import intrinsic, njit
from qllama.kernels.isa import current_isa
from qllama.kernels.simd import I8, I32, I64, Value

__all__ = ["TEAM_STATE_SIZE", "ThreadTeam", "arrive", "barrier", "claim", "is_cancelled"]

# Each on a cache line (two, against the adjacent-line prefetcher) of its own. The
# caller writes _CANCEL; _CANCELLED is what it was when the last barrier opened.
_LINE = 128
_ARRIVED, _GENERATION, _NEXT, _CANCEL, _CANCELLED = range(0, 5 * _LINE, _LINE)
#: Bytes of the state that `barrier` and `claim` share, zeroed before first use.
TEAM_STATE_SIZE = 5 * _LINE
# A microsecond or two. Where other programs compete for the cores, a thread that spins
# longer burns the time slice it will need: beside one busy process on 2 cores
# `qllama bench` decoded 41 tokens/s with 4096 spins and 117 with 32.
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
def arrive(_context: Any, counter: Any) -> tuple[Any, Callable[..., Any]]:
    """Add 1 to the int64 at address `counter`; returns how many had come before.

    The last one to come sees all that the others wrote before they came.
    """

    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        return b.atomic_rmw("add", _counter(b, values[0], 0), I64(1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic
def _generation(_context: Any, state: Any) -> tuple[Any, Callable[..., Any]]:
    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        return b.load_atomic(_counter(b, values[0], _GENERATION), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def is_cancelled(_context: Any, state: Any) -> tuple[Any, Callable[..., Any]]:
    """Whether the caller wants no more: the same answer in every thread until the next barrier."""

    def codegen(_ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        flag = b.load_atomic(_counter(b, values[0], _CANCELLED), "monotonic", 8)
        return b.icmp_signed("!=", flag, I64(0))

    return types.boolean(types.int64), codegen


@intrinsic
def _open(_context: Any, state: Any, generation: Any) -> tuple[Any, Callable[..., Any]]:
    """Reset the counters, then let everybody past the barrier."""

    def codegen(ctx: Any, b: Any, _signature: Any, values: Any) -> Any:
        state, generation = values
        cancel = b.load_atomic(_counter(b, state, _CANCEL), "monotonic", 8)
        b.store_atomic(cancel, _counter(b, state, _CANCELLED), "monotonic", 8)
        b.store_atomic(I64(0), _counter(b, state, _ARRIVED), "monotonic", 8)
        b.store_atomic(I64(0), _counter(b, state, _NEXT), "monotonic", 8)
        b.store_atomic(generation, _counter(b, state, _GENERATION), "release", 8)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


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
def barrier(state, n_threads):
    """Wait until all `n_threads` threads are here; work numbers start at 0 again."""
    generation = _generation(state)
    if arrive(state + _ARRIVED) == n_threads - 1:
        _open(state, generation + 1)
        return
    spins = 0
    while _generation(state) == generation:
        _pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            _yield()


class _Job:
    """One call that a team makes, and how far it is."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], n: int) -> None:
        self.function = function
        self.arguments = arguments
        self.is_started = False
        self._n_threads = n
        self._results: list[BaseException | None] = []
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def call(self, thread: int) -> None:
        """Do one thread's part; an exception is kept for the caller."""
        error: BaseException | None = None
        try:
            self.function(*self.arguments, thread)
        except BaseException as raised:
            error = raised
        self._results.append(error)
        if self.is_finished:
            self._wake.put(None)

    @property
    def is_finished(self) -> bool:
        return len(self._results) == self._n_threads

    def wait(self) -> None:
        """Return when every thread is done."""
        while not self.is_finished:
            # An exception between its arrival and the next line may lose the wake-up call.
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=0.1)

    def raise_error(self) -> None:
        """Raise the exception of one of the threads that had one."""
        for error in self._results:
            if error is not None:
                raise error


#: Where a thread gets its jobs; None ends it.
_Inbox: TypeAlias = "queue.SimpleQueue[_Job | None]"


class ThreadTeam:
    """`n_threads` threads that run compiled functions together, one call at a time.

    Parameters
    ----------
    n_threads : int
        At least 1.

    Raises
    ------
    KernelError
        When the system does not start so many.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._memory = np.zeros(TEAM_STATE_SIZE + _LINE, np.uint8)
        first = -self._memory.ctypes.data % _LINE
        #: Address of the counters for `barrier` and `claim`.
        self.state = self._memory.ctypes.data + first
        self._cancel = self._memory[first + _CANCEL : first + _CANCEL + 8].view(np.int64)
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._memory[:] = 0
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(self.n_threads)]
        for thread in range(self.n_threads):
            try:
                threading.Thread(target=_work, args=(thread, self._inboxes), daemon=True).start()
            except RuntimeError as error:
                self._inboxes[0].put(None)
                raise KernelError(
                    f"n_threads: expected what the system starts, {thread} at present, "
                    f"found {self.n_threads}; choose fewer"
                ) from error
        self.close = weakref.finalize(self, self._inboxes[0].put, None)

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call `function(*arguments, thread)` on every thread and wait for all.

        Interrupted by an exception (Ctrl-C), it asks the function to stop (see
        `is_cancelled`) and raises when all threads have: they use the caller's memory.
        """
        if self._pid != os.getpid():  # forked: the threads stayed behind
            self._start()
        job = _Job(function, arguments, self.n_threads)
        self._cancel[0] = 0
        try:
            self._inboxes[0].put(job)
            job.wait()
        except BaseException:
            self._stop(job)
            raise
        job.raise_error()

    def _stop(self, job: _Job) -> None:
        while not job.is_finished:
            # Whether the exception came before or after the job was handed over is not
            # to be known: it is again. Another one (a second Ctrl-C) changes nothing.
            with contextlib.suppress(BaseException):
                self._cancel[0] = 1
                self._inboxes[0].put(job)
                job.wait()


def _work(thread: int, inboxes: list[_Inbox]) -> None:
    """Body of one thread: thread 0 hands each job on to the others."""
    while True:
        job = inboxes[thread].get()
        if thread == 0:
            if job is not None and job.is_started:
                continue
            # One item wakes the whole team, so no interrupt can start half of it.
            for inbox in inboxes[1:]:
                inbox.put(job)
        if job is None:
            return
        job.is_started = True
        job.call(thread)
