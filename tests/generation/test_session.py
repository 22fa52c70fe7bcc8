from __future__ import annotations

import numpy as np
import pytest
from fake_model import FakeEngine

from qllama.errors import ContextLengthError
from qllama.generation.session import Session


def tokens(*ids):
    return np.array(ids, np.int32)


@pytest.mark.parametrize(
    ("before", "then", "reused"),
    [
        ([], [1, 2, 3], 0),
        ([1, 2, 3], [1, 2, 3, 4, 5], 3),
        ([1, 2, 3], [1, 2, 9, 9], 2),
        ([1, 2, 3], [9, 2, 3], 0),
        ([1, 2, 3], [1, 2], 1),
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2, 3], [1], 0),
    ],
)
def test_session_evaluates_only_what_follows_the_common_prefix(before, then, reused):
    engine = FakeEngine()
    session = Session(engine)
    if before:
        session.evaluate(tokens(*before))
    found = session.evaluate(tokens(*then))
    assert found.n_reused == reused
    assert engine.evaluated[-1] == len(then) - reused
    assert session.held == engine.held == then
    fresh = Session(FakeEngine()).evaluate(tokens(*then))
    assert found.logits.tobytes() == fresh.logits.tobytes()


def test_session_all_logits_evaluates_everything_and_holds_it():
    engine = FakeEngine()
    session = Session(engine)
    session.evaluate(tokens(1, 2, 3))
    found = session.evaluate(tokens(1, 2, 3), logits_from=0)
    assert found.logits.shape == (3, 260)
    assert engine.evaluated == [3, 3]
    assert session.evaluate(tokens(1, 2, 3, 4)).n_reused == 3


def test_session_logits_from_a_place_on_reuse_what_is_before_it():
    engine = FakeEngine()
    session = Session(engine)
    everything = session.evaluate(tokens(1, 2, 3, 4, 5), logits_from=0).logits
    for held, first, evaluated in ((5, 3, 2), (2, 3, 3), (0, 4, 5)):
        session.evaluate(tokens(*range(1, held + 1), 9))
        found = session.evaluate(tokens(1, 2, 3, 4, 5), logits_from=first)
        np.testing.assert_array_equal(found.logits, everything[first:])
        assert engine.evaluated[-1] == evaluated


def test_session_progress_is_that_of_the_new_tokens():
    session = Session(FakeEngine(n_batch=4))
    session.evaluate(tokens(1, 2))
    calls = []
    session.evaluate(
        tokens(*range(1, 13)), on_progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(4, 10), (8, 10)]


def test_session_interrupted_engine_leaves_only_reported_tokens_held():
    engine = FakeEngine(n_batch=4)
    session = Session(engine)
    session.evaluate(tokens(1, 2))
    engine.interrupt_after = 4
    sequence = tokens(*range(1, 16))
    with pytest.raises(KeyboardInterrupt):
        session.evaluate(sequence)
    assert session.held == list(range(1, 7))
    assert session.evaluate(sequence).n_reused == 6


def test_session_interrupt_before_any_progress_leaves_the_prefix_held():
    engine = FakeEngine()
    session = Session(engine)
    session.evaluate(tokens(1, 2, 3))
    engine.interrupt_after = 0
    with pytest.raises(KeyboardInterrupt):
        session.evaluate(tokens(1, 9, 9))
    assert session.held == [1]


def test_session_exception_of_the_callback_leaves_the_reported_tokens_held():
    session = Session(FakeEngine(n_batch=4))

    def cancel(done, total):
        if done == 8:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        session.evaluate(tokens(*range(1, 13)), on_progress=cancel)
    assert session.held == list(range(1, 9))


def test_session_full_context_is_usable_and_one_more_token_is_refused():
    session = Session(FakeEngine(n_ctx=5))
    session.evaluate(tokens(1, 2, 3, 4, 5))
    with pytest.raises(ContextLengthError, match=r"6 tokens .* of 5: .*n_ctx"):
        session.evaluate(tokens(1, 2, 3, 4, 5, 6))
    assert session.held == [1, 2, 3, 4, 5]


def test_session_no_tokens_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        Session(FakeEngine()).evaluate(tokens())


def test_session_closed_refuses_to_evaluate():
    session = Session(FakeEngine())
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.evaluate(tokens(1))
