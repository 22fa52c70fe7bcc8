from __future__ import annotations

import copy
import json
import pickle

import pytest

from qllama.generation.results import Completion, Piece, Timings

TIMINGS = Timings(
    load_seconds=0.5,
    prompt_tokens=10,
    reused_tokens=4,
    prompt_seconds=0.25,
    completion_tokens=6,
    completion_seconds=2.0,
)
PIECE = Piece("Hi", (72, 105), "stop", TIMINGS)
COMPLETION = Completion("Hi", (72, 105), "length", 7, TIMINGS)


def attributes(result):
    return str(result), {name: getattr(result, name) for name in type(result).__slots__}


@pytest.mark.parametrize("result", [PIECE, COMPLETION], ids=["piece", "completion"])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_result_copy_keeps_text_and_attributes(result, duplicate):
    twin = duplicate(result)
    assert type(twin) is type(result)
    assert attributes(twin) == attributes(result)


@pytest.mark.parametrize("result", [PIECE, COMPLETION], ids=["piece", "completion"])
def test_result_is_text_to_everyone_else(result):
    assert result == "Hi"
    assert result + "!" == "Hi!"
    assert json.dumps(result) == '"Hi"'
    assert {"Hi": 1}[result] == 1


def test_completion_counts_are_those_of_the_timings():
    assert (COMPLETION.prompt_tokens, COMPLETION.completion_tokens) == (10, 6)


def test_timings_rates_count_only_what_was_computed():
    assert TIMINGS.evaluated_tokens == 6
    assert TIMINGS.prompt_rate == 24.0
    assert TIMINGS.completion_rate == 3.0
    assert TIMINGS.total_seconds == 2.75


def test_timings_rates_before_any_work_are_zero():
    timings = Timings(0.0, 3, 0, 0.0, 0, 0.0)
    assert (timings.prompt_rate, timings.completion_rate) == (0.0, 0.0)
