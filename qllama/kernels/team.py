"""A team of threads that runs one compiled function together.

Every thread calls the same function with its own number; inside, `barrier` makes
them wait for each other and `claim` hands out pieces of work. A barrier costs
well under a microsecond, where starting a parallel region of a threading layer
costs 2 to 60; nothing but CPython and the compiler is needed, and any number of
teams, forks and calling threads get along.

The thread that asks for work does its share of it, as thread 0. The others wait for
calls in compiled code, so that none of it needs the GIL: awake for a moment after
each call, because the next token's comes soon, then asleep until they are woken.

A call goes from its start to its end without Python: an exception (Ctrl-C) reaches
the caller before it or after it, never in between. Whoever has much to compute
makes several calls of it.

`state` is the address of a team's counters, `ThreadTeam.state`.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types

from qllama.errors import KernelError
from qllama.kernels import atomic
from qllama.kernels._jit import cfunc, intrinsic, njit
from qllama.kernels.simd import I64, Value

__all__ = ["ThreadTeam", "barrier", "claim", "compile_team", "team_function"]

# Each on a cache line (two, against the adjacent-line prefetcher) of its own; then one
# for each thread, what it is doing.
_LINE = 128
_ARRIVED, _GENERATION, _NEXT, _FUNCTION, _THREADS = range(0, 5 * _LINE, _LINE)
_ARGUMENT = _FUNCTION + 8

# What a thread is doing. Its caller holds it before a call, until all are held.
_ASLEEP, _WAITING, _HELD, _CALLED = range(4)

# How often a thread looks for a call before it sleeps, and a caller for threads to wake
# up: about a millisecond, which sampling, printing and the like do not take. After the
# first 150 us it yields its core each time, where other programs compete for it.
_PATIENCE = 5000


@njit
def claim(state, count):
    """Take the next `count` pieces of work; returns the first one's number.

    Numbers start at 0 in every call and after every barrier and go on for ever: the
    caller stops at the first past its end.
    """
    return atomic.add(state + _NEXT, count)


@njit
def barrier(state, n_threads):
    """Wait until all `n_threads` threads are here; work numbers start at 0 again."""
    generation = atomic.load(state + _GENERATION)
    if atomic.add(state + _ARRIVED, 1) == n_threads - 1:
        atomic.store(state + _ARRIVED, 0)
        atomic.store(state + _NEXT, 0)
        atomic.store(state + _GENERATION, generation + 1)
        return
    rounds = 0
    while atomic.load(state + _GENERATION) == generation:
        atomic.relax(rounds)
        rounds += 1


@intrinsic
def _invoke(
    _context: Any, function: Any, argument: Any, thread: Any
) -> tuple[Any, Callable[..., Any]]:
    """Call the C function at address `function` with (argument, thread)."""

    def codegen(ctx: Any, b: Any, _signature: Any, values: Any) -> Value:
        function, *arguments = values
        kind = ir.FunctionType(ir.VoidType(), [I64, I64])
        b.call(b.inttoptr(function, kind.as_pointer()), arguments)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@njit
def _call(state, n_threads, function, argument, patience):
    """Call `function(argument, thread)` on all threads; returns whether it did.

    It did not where a thread sleeps and was not awake after `patience` looks.
    """
    for thread in range(1, n_threads):
        rounds = 0
        while not atomic.compare_exchange(state + _THREADS + _LINE * thread, _WAITING, _HELD):
            if rounds == patience:
                for held in range(1, thread):
                    atomic.store(state + _THREADS + _LINE * held, _WAITING)
                return False
            atomic.relax(rounds)
            rounds += 1
    atomic.store(state + _NEXT, 0)
    atomic.store(state + _FUNCTION, function)
    atomic.store(state + _ARGUMENT, argument)
    for thread in range(1, n_threads):
        atomic.store(state + _THREADS + _LINE * thread, _CALLED)
    _invoke(function, argument, 0)
    for thread in range(1, n_threads):
        rounds = 0
        while atomic.load(state + _THREADS + _LINE * thread) == _CALLED:
            atomic.relax(rounds)
            rounds += 1
    return True


@njit
def _serve(state, thread):
    """Take the calls of one thread; returns when none has come for a while."""
    place = state + _THREADS + _LINE * thread
    atomic.store(place, _WAITING)
    rounds = 0
    while rounds < _PATIENCE or not atomic.compare_exchange(place, _WAITING, _ASLEEP):
        if atomic.load(place) == _CALLED:
            _invoke(atomic.load(state + _FUNCTION), atomic.load(state + _ARGUMENT), thread)
            atomic.store(place, _WAITING)
            rounds = 0
        else:
            atomic.relax(rounds)
            rounds += 1


def compile_team() -> None:
    """Compile what runs a team, or load it from the cache."""
    _call.compile((types.int64,) * 5)
    _serve.compile((types.int64,) * 2)


def team_function(function: Callable[[Any, Any], None]) -> Any:
    """Compile a function for `ThreadTeam.run`; it must not raise.

    Parameters
    ----------
    function : callable
        Takes (argument, thread), both int64.

    Returns
    -------
    numba CFunc
    """
    return cfunc(types.void(types.int64, types.int64))(function)


#: Wakes a thread up (True) or ends it (False).
_Inbox: TypeAlias = "queue.SimpleQueue[bool]"


class ThreadTeam:
    """`n_threads` threads, the caller's among them, that run compiled functions together.

    Parameters
    ----------
    n_threads : int
        At least 1.

    Attributes
    ----------
    state : int
        Address of the counters for `barrier` and `claim`.

    Raises
    ------
    KernelError
        When the system does not start so many.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._memory = np.zeros(_THREADS + _LINE * (n_threads + 1), np.uint8)
        self.state = int(self._memory.ctypes.data) + -self._memory.ctypes.data % _LINE
        self._start()

    @property
    def is_left_behind(self) -> bool:
        """Whether this process is a fork of the threads' own; a call then starts new ones."""
        return self._pid != os.getpid()

    def _start(self) -> None:
        self._memory[:] = 0  # every thread is asleep
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(1, self.n_threads)]
        self.close = weakref.finalize(self, _end, self._inboxes)
        for thread, inbox in enumerate(self._inboxes, 1):
            # The memory goes along: it is there as long as a thread looks at it.
            arguments = (self.state, thread, inbox, self._memory)
            try:
                threading.Thread(target=_work, args=arguments, daemon=True).start()
            except RuntimeError as error:
                self.close()
                raise KernelError(
                    f"n_threads: expected what the system starts, {thread} at present, "
                    f"found {self.n_threads}; choose fewer"
                ) from error
            except BaseException:
                self.close()
                raise
        self._pid = os.getpid()

    def run(self, function: int, argument: int) -> None:
        """Call a function on every thread and wait for all; one call at a time.

        Parameters
        ----------
        function : int
            Address of a `team_function`.
        argument : int
            Its first argument.

        Raises
        ------
        KernelError
            The team was closed, or this is a forked process in which the system does not
            start its threads.
        """
        if not self.close.alive:
            raise KernelError(f"this team of {self.n_threads} threads has ended; make a new one")
        if self.is_left_behind:
            self._start()
        patience = 0
        while not _call(self.state, self.n_threads, function, argument, patience):
            patience = _PATIENCE
            for inbox in self._inboxes:
                if inbox.empty():
                    inbox.put(True)


def _work(state: int, thread: int, inbox: _Inbox, _memory: object) -> None:
    """Body of one thread: take calls, sleep, until the team ends."""
    _serve(state, thread)
    while inbox.get():
        _serve(state, thread)


def _end(inboxes: list[_Inbox]) -> None:
    for inbox in inboxes:
        inbox.put(False)
