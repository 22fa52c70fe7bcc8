"""What the engine is asked to evaluate, and when."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qllama.bench import plan
from qllama.bench import session as session_module
from qllama.bench.session import Session
from qllama.config import DEFAULT_N_BATCH


class RecordingEngine:
    """Notes (slot, first position, tokens) of each evaluation, of a batch one for each token."""

    def __init__(self, file, **options):
        self.options = options
        self.n_ctx = options["n_ctx"]
        self.n_batch = options["n_batch"]
        self.evaluated = []

    def evaluate(self, tokens, *, position, slot=0):
        self.evaluated.append((slot, position, len(tokens)))

    def forward(self, tokens, positions, slots, outputs):
        assert list(outputs) == list(range(len(tokens)))
        self.evaluated.append(list(zip(slots.tolist(), positions.tolist(), strict=True)))


@pytest.fixture
def recorded(monkeypatch):
    """Make a session of tests; returns it and the list that its engine fills."""
    monkeypatch.setattr(session_module, "Engine", RecordingEngine)
    file = SimpleNamespace(config=SimpleNamespace(vocab_size=50))

    def make(*tests, **settings):
        session = Session(file, list(tests), 2, plan.BenchSettings([2], 1, **settings))
        return session, session._engine

    return make


def test_session_engine_has_room_for_the_largest_test(recorded):
    tests = [plan.Test(100, 0), plan.Test(60, 50), plan.Test(0, 8, n_parallel=4)]
    _, engine = recorded(*tests, kv_type="q8")
    assert engine.options == {
        "n_ctx": 110,
        "n_threads": 2,
        "n_slots": 4,
        "n_batch": 512,
        "kv_type": "q8",
    }


def test_session_batch_size_is_the_engines_default_unless_given(recorded):
    assert recorded(plan.Test(8, 0))[0].n_batch == DEFAULT_N_BATCH
    assert recorded(plan.Test(8, 0), n_batch=4)[0].n_batch == 4


def test_session_batch_takes_all_sequences_that_generate_together(recorded):
    tests = [plan.Test(8, 0), plan.Test(0, 2, n_parallel=DEFAULT_N_BATCH + 88)]
    assert recorded(*tests)[0].n_batch == DEFAULT_N_BATCH + 88


def test_session_prompt_is_one_evaluation_at_its_depth(recorded):
    test = plan.Test(16, 0, depth=5)
    session, engine = recorded(test)
    session.run(test)
    assert engine.evaluated == [(0, 5, 16)]


def test_session_generation_evaluates_token_after_token(recorded):
    test = plan.Test(2, 3, depth=5)
    session, engine = recorded(test)
    session.run(test)
    assert engine.evaluated == [(0, 5, 2), (0, 7, 1), (0, 8, 1), (0, 9, 1)]


def test_session_sequences_are_evaluated_together(recorded):
    test = plan.Test(0, 2, depth=5, n_parallel=3)
    session, engine = recorded(test)
    session.run(test)
    assert engine.evaluated == [[(0, 5), (1, 5), (2, 5)], [(0, 6), (1, 6), (2, 6)]]


def test_session_fills_each_sequence_once_and_only_when_it_is_needed(recorded):
    one, many = plan.Test(0, 2, depth=5), plan.Test(0, 2, depth=5, n_parallel=3)
    session, engine = recorded(one, many)
    session.fill(one)
    assert engine.evaluated == [(0, 0, 5)]
    session.fill(many)
    session.fill(one)
    assert engine.evaluated == [(0, 0, 5), (1, 0, 5), (2, 0, 5)]


def test_session_touch_keeps_what_the_test_builds_on(recorded):
    test = plan.Test(4, 0, depth=7)
    session, engine = recorded(test)
    session.touch(test)
    assert engine.evaluated == [(0, 7, 1)]
