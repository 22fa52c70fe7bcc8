"""Thread teams: every piece of work done once, whatever happens around them."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numba
import numpy as np
import pytest

from qllama.errors import KernelError
from qllama.kernels.team import ThreadTeam, barrier, claim, is_cancelled

N_PIECES = 101
DEADLINE = 30
needs_signals = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="no signals to threads here"
)


@numba.njit(nogil=True)
def claim_everything(state, n_threads, rounds, done, owners, thread):
    """Count each piece in `done` (rounds, n_pieces), claimed by ones and threes."""
    n_rounds, n_pieces = done.shape
    for i in range(n_rounds):
        count = 1 + 2 * (i % 2)
        while True:
            first = claim(state, count)
            if first >= n_pieces:
                break
            for piece in range(first, min(first + count, n_pieces)):
                done[i, piece] += 1
        owners[i, thread] += 1
        barrier(state, n_threads)
    rounds[thread] += n_rounds


@numba.njit(nogil=True)
def add_up(state, n_threads, numbers, sums, thread):
    """Pass numbers around: every thread reads what all wrote before the barrier."""
    for i in range(len(sums)):
        numbers[thread] = (i + 1) * (thread + 1)
        barrier(state, n_threads)
        total = 0
        for other in range(n_threads):
            total += numbers[other]
        sums[i, thread] = total
        barrier(state, n_threads)


def run_claims(team, n_rounds=40):
    done = np.zeros((n_rounds, N_PIECES), np.int64)
    owners = np.zeros((n_rounds, team.n_threads), np.int64)
    rounds = np.zeros(team.n_threads, np.int64)
    team.run(claim_everything, team.state, team.n_threads, rounds, done, owners)
    return bool((done == 1).all() and (owners == 1).all() and (rounds == n_rounds).all())


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
    team.run(add_up, team.state, n, numbers, sums)
    expected = np.arange(1, 301) * n * (n + 1) // 2
    np.testing.assert_array_equal(sums, np.repeat(expected[:, None], n, axis=1))


def test_team_calls_the_function_once_with_every_thread_number(team):
    seen = []
    team.run(lambda *arguments: seen.append(arguments), "a", 2)
    assert sorted(seen) == [("a", 2, thread) for thread in range(team.n_threads)]


def test_team_counters_lie_on_cache_lines_of_their_own(pair):
    assert pair.state % 128 == 0


def test_team_exception_of_one_thread_reaches_the_caller(team):
    def fail_last(thread):
        if thread == team.n_threads - 1:
            raise ZeroDivisionError("thread's own")

    with pytest.raises(ZeroDivisionError, match="thread's own"):
        team.run(fail_last)
    assert run_claims(team)


def test_team_exception_of_all_threads_is_raised_once(pair):
    def fail(thread):
        raise ZeroDivisionError(thread)

    with pytest.raises(ZeroDivisionError):
        pair.run(fail)
    assert run_claims(pair)


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
    """Interrupt a run by Ctrl-C; returns which threads were done when the caller had it."""
    may_end, ended = threading.Event(), []
    main = threading.main_thread().ident

    def interrupt():
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        may_end.set()

    def wait(thread):
        may_end.wait(DEADLINE)
        ended.append(thread)

    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        team.run(wait)
    done = sorted(ended)
    helper.join()
    return done


@needs_signals
def test_team_interrupted_by_ctrl_c_the_next_run_is_right(team):
    interrupted(team)
    assert run_claims(team)


@needs_signals
def test_team_ctrl_c_reaches_the_caller_when_all_threads_are_done(team):
    assert interrupted(team) == list(range(team.n_threads))


@numba.njit(nogil=True)
def run_until_cancelled(state, n_threads, thread):
    for _ in range(30_000_000):  # half a minute: a signal that never comes must not hang
        barrier(state, n_threads)
        if is_cancelled(state):
            return


@needs_signals
def test_team_ctrl_c_ends_a_function_that_looks_for_it(team):
    main = threading.main_thread().ident
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        team.run(run_until_cancelled, team.state, team.n_threads)
    assert run_claims(team)


def test_team_several_in_several_threads_do_not_disturb_each_other():
    results = []

    def work(n_threads):
        team = ThreadTeam(n_threads)
        results.extend(run_claims(team, n_rounds=10) for _ in range(10))
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
    assert len(threads) == 3
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
    before = set(threading.enumerate())
    started = []
    start = threading.Thread.start

    def limited(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr("threading.Thread.start", limited)
    with pytest.raises(
        KernelError, match=r"n_threads: expected what the system starts, 2 .*found 4"
    ):
        ThreadTeam(4)
    for thread in started:
        thread.join(DEADLINE)
    assert set(threading.enumerate()) == before
