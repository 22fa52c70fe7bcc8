"""Thread teams: every piece of work done once, whatever happens around them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import threading
import time

import numba
import numpy as np
import pytest

from qllama.errors import KernelError
from qllama.kernels import team as team_module
from qllama.kernels import vector as v
from qllama.kernels.atomic import add, load, relax
from qllama.kernels.team import ThreadTeam, barrier, claim

N_PIECES = 101
N_ROUNDS = 40
DEADLINE = 30
needs_signals = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="no signals to threads here"
)


def team_function(function):
    """As the team's own, but not left in the cache of kernels."""
    return numba.cfunc("void(int64, int64)")(function)


@team_function
def claim_everything(address, thread):
    """Count each piece in `done` (N_ROUNDS, N_PIECES), claimed by ones and threes."""
    arguments = numba.carray(v.pointer(address), 5, np.int64)
    state, n_threads = arguments[0], arguments[1]
    done = numba.carray(v.pointer(arguments[2]), (N_ROUNDS, N_PIECES), np.int64)
    owners = numba.carray(v.pointer(arguments[3]), (N_ROUNDS, n_threads), np.int64)
    rounds = numba.carray(v.pointer(arguments[4]), n_threads, np.int64)
    for i in range(N_ROUNDS):
        count = 1 + 2 * (i % 2)
        while True:
            first = claim(state, count)
            if first >= N_PIECES:
                break
            for piece in range(first, min(first + count, N_PIECES)):
                done[i, piece] += 1
        owners[i, thread] += 1
        if i < N_ROUNDS - 1:  # a call may end in the middle of its claims
            barrier(state, n_threads)
    rounds[thread] += N_ROUNDS


@team_function
def add_up(address, thread):
    """Pass numbers around: every thread reads what all wrote before the barrier."""
    arguments = numba.carray(v.pointer(address), 5, np.int64)
    state, n_threads, n_sums = arguments[0], arguments[1], arguments[4]
    numbers = numba.carray(v.pointer(arguments[2]), n_threads, np.int64)
    sums = numba.carray(v.pointer(arguments[3]), (n_sums, n_threads), np.int64)
    for i in range(n_sums):
        numbers[thread] = (i + 1) * (thread + 1)
        barrier(state, n_threads)
        total = 0
        for other in range(n_threads):
            total += numbers[other]
        sums[i, thread] = total
        barrier(state, n_threads)


@team_function
def count_calls(address, thread):
    add(address + 8 * thread, 1)


@team_function
def wait_for_go(address, thread):
    """Count who came at `address`, wait for a go in the next number, count who left."""
    add(address, 1)
    rounds = 0
    while load(address + 8) == 0 and rounds < 60_000_000:  # half a minute: must not hang
        relax(rounds)
        rounds += 1
    add(address + 16, 1)


def run_claims(team):
    done = np.zeros((N_ROUNDS, N_PIECES), np.int64)
    owners = np.zeros((N_ROUNDS, team.n_threads), np.int64)
    rounds = np.zeros(team.n_threads, np.int64)
    run(team, claim_everything, done, owners, rounds)
    return bool((done == 1).all() and (owners == 1).all() and (rounds == N_ROUNDS).all())


def run(team, function, *arguments):
    """Run with the team's state, its size, then numbers and addresses of arrays."""
    numbers = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    record = np.array([team.state, team.n_threads, *numbers], np.int64)
    team.run(function.address, record.ctypes.data)


@pytest.fixture(params=[1, 2, 3, 4, 5])
def team(request):
    team = ThreadTeam(request.param)
    yield team
    team.close()


@pytest.fixture
def pair():
    team = ThreadTeam(2)
    yield team
    team.close()


def test_team_claims_every_piece_once_a_round(team):
    for _ in range(5):
        assert run_claims(team)


def test_team_barrier_shows_what_every_thread_wrote_before(team):
    n = team.n_threads
    numbers, sums = np.zeros(n, np.int64), np.zeros((300, n), np.int64)
    run(team, add_up, numbers, sums, 300)
    expected = np.arange(1, 301) * n * (n + 1) // 2
    np.testing.assert_array_equal(sums, np.repeat(expected[:, None], n, axis=1))


def test_team_calls_the_function_once_with_every_thread_number(team):
    counts = np.zeros(team.n_threads, np.int64)
    for calls in range(1, 1001):
        team.run(count_calls.address, counts.ctypes.data)
        assert (counts == calls).all()


def sleeping(team):
    """Number of threads that look for no calls any more."""
    first, step = team.state + team_module._THREADS, team_module._LINE
    places = [first + step * thread for thread in range(1, team.n_threads)]
    return sum(ctypes.c_int64.from_address(p).value == team_module._ASLEEP for p in places)


def wait_until(condition):
    for _ in range(100 * DEADLINE):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def test_team_without_work_falls_asleep_and_wakes_up_for_the_next(team):
    for _ in range(3):
        assert run_claims(team)
        wait_until(lambda: sleeping(team) == team.n_threads - 1)


def test_team_counters_lie_on_cache_lines_of_their_own(pair):
    assert pair.state % 128 == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_team_works_in_a_forked_child(team):
    assert run_claims(team)
    child = os.fork()
    if child == 0:
        signal.alarm(DEADLINE)  # a team that waits for threads left behind is killed
        os._exit(0 if run_claims(team) and run_claims(team) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert run_claims(team)


def interrupted(team):
    """Interrupt a call by Ctrl-C; returns how many threads had come and left when it was over."""
    counts = np.zeros(3, np.int64)
    main = threading.main_thread().ident

    def interrupt():
        wait_until(lambda: counts[0] == team.n_threads)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        counts[1] = 1

    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        team.run(wait_for_go.address, counts.ctypes.data)
    came, _, left = counts.tolist()
    helper.join()
    return came, left


@needs_signals
def test_team_interrupted_by_ctrl_c_the_next_call_is_right(team):
    interrupted(team)
    assert run_claims(team)


@needs_signals
def test_team_ctrl_c_reaches_the_caller_when_all_threads_are_done(team):
    assert interrupted(team) == (team.n_threads, team.n_threads)


@needs_signals
def test_team_ctrl_c_while_threads_wake_up_leaves_none_in_a_call(monkeypatch, team):
    wait_until(lambda: sleeping(team) == team.n_threads - 1)
    call = team_module._call

    def interrupted_call(*arguments):
        monkeypatch.undo()
        assert call(*arguments) == (team.n_threads == 1)
        raise KeyboardInterrupt

    monkeypatch.setattr("qllama.kernels.team._call", interrupted_call)
    counts = np.zeros(team.n_threads, np.int64)
    with pytest.raises(KeyboardInterrupt):
        team.run(count_calls.address, counts.ctypes.data)
    assert (counts == (team.n_threads == 1)).all()
    assert run_claims(team)


def test_team_several_in_several_threads_do_not_disturb_each_other():
    results = []

    def work(n_threads):
        team = ThreadTeam(n_threads)
        results.extend(run_claims(team) for _ in range(10))
        team.close()

    callers = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 2, 3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [True] * 40


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_team_threads_end_when_it_is_closed_or_dropped(how):
    before = set(threading.enumerate())
    team = ThreadTeam(3)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    assert run_claims(team)
    if how == "closed":
        team.close()
        team.close()
    else:
        del team
        gc.collect()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)


def test_team_that_the_system_does_not_start_is_refused_and_leaves_no_thread(monkeypatch):
    started = []
    start = threading.Thread.start

    def limited(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr("threading.Thread.start", limited)
    with pytest.raises(
        KernelError, match=r"n_threads: expected what the system starts, 3 .*found 4"
    ):
        ThreadTeam(4)
    for thread in started:
        thread.join(DEADLINE)
    assert [thread.is_alive() for thread in started] == [False, False]


def test_team_closed_refuses_to_run(pair):
    counts = np.zeros(2, np.int64)
    pair.close()
    with pytest.raises(KernelError, match="this team of 2 threads has ended; make a new one"):
        pair.run(count_calls.address, counts.ctypes.data)
    assert not counts.any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_team_that_is_not_started_in_a_child_stays_ended_there(pair, error):
    child = os.fork()
    if child == 0:
        signal.alarm(DEADLINE)  # a team that waits for threads that are not there is killed
        os._exit(0 if refuses_twice(pair, error) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert run_claims(pair)


def refuses_twice(team, error):
    def fail(thread):
        raise error

    start, threading.Thread.start = threading.Thread.start, fail
    with contextlib.suppress(KernelError, KeyboardInterrupt):
        team.run(count_calls.address, 0)
    threading.Thread.start = start
    try:
        team.run(count_calls.address, 0)
    except KernelError:
        return True
    return False
