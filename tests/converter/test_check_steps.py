"""Foreign code that is stopped after so many steps, and whatever traced before that."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest

from converter.check.steps import TooManySteps, run_limited


def loop(n):
    total = 0
    for i in range(n):
        total += i
    return total


def test_steps_that_suffice_change_nothing():
    assert run_limited(lambda: loop(100), 1000) == 4950


def test_steps_that_are_used_up_end_the_call():
    with pytest.raises(TooManySteps, match="more than 1,000 steps"):
        run_limited(lambda: loop(10**15), 1000)


@pytest.mark.parametrize("n", [1, 10**15])
def test_steps_leave_another_tracer_in_place(n):
    def tracer(frame, event, arg):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with pytest.raises(TooManySteps) if n > 1 else nullcontext():
            run_limited(lambda: loop(n), 100)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
