"""Sessions of one slot with several adapters: nobody goes on from what another computed."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
from fake_model import FakeEngine
from hypothesis import given

from qllama.generation.session import Session


@dataclass
class Named:
    """What a session needs of an adapter."""

    digest: bytes


PIRATE, POET = Named(b"pirate"), Named(b"poet")
TEXT = np.arange(40, dtype=np.int32)


def alone(tokens, adapter):
    return Session(FakeEngine()).under(adapter).evaluate(tokens).logits


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@given(data=st.data())
def test_session_any_order_of_adapters_gives_what_each_gives_alone(cache_bytes, data):
    plain = Session(FakeEngine(), cache_bytes=cache_bytes)
    sessions = {None: plain, **{a.digest: plain.under(a) for a in (PIRATE, POET)}}
    for _ in range(data.draw(st.integers(1, 8))):
        session = sessions[data.draw(st.sampled_from(sorted(sessions, key=str)))]
        tokens = TEXT.copy()
        tokens[data.draw(st.integers(0, 40)) :] += data.draw(st.integers(0, 1))
        tokens = tokens[: data.draw(st.integers(1, 40))]
        found = session.evaluate(tokens)
        np.testing.assert_array_equal(found.logits, alone(tokens, session.adapter))
        assert session.held == tokens.tolist()


def test_session_goes_on_under_its_own_adapter_only():
    engine = FakeEngine()
    plain = Session(engine, cache_bytes=2**20)
    pirate = plain.under(PIRATE)
    plain.evaluate(TEXT[:20])
    assert pirate.held == []
    assert pirate.evaluate(TEXT[:30]).n_reused == 0
    assert plain.held == []
    # What the pirate displaced comes back, and what was displaced then.
    assert plain.evaluate(TEXT).n_reused == 20
    assert pirate.evaluate(TEXT).n_reused == 30
    assert pirate.under(Named(b"pirate")).evaluate(TEXT).n_reused == TEXT.size - 1


def test_session_that_closes_closes_those_of_all_adapters():
    plain = Session(FakeEngine())
    pirate = plain.under(PIRATE)
    plain.close()
    assert pirate.closed
    with pytest.raises(ValueError, match="closed"):
        pirate.evaluate(TEXT)


def test_session_interrupted_while_adapters_change_holds_nothing_and_recovers():
    engine = FakeEngine()
    plain = Session(engine)
    plain.evaluate(TEXT)

    def interrupted(adapter):
        FakeEngine.adapt(engine, adapter)
        raise KeyboardInterrupt

    engine.adapt = interrupted
    with pytest.raises(KeyboardInterrupt):
        plain.under(PIRATE).evaluate(TEXT)
    del engine.adapt
    for session in (plain, plain.under(PIRATE)):
        found = session.evaluate(TEXT)
        assert found.n_reused == 0
        np.testing.assert_array_equal(found.logits, alone(TEXT, session.adapter))


def test_session_snapshot_is_of_its_own_adapter_and_is_restored_under_it():
    plain = Session(FakeEngine())
    pirate = plain.under(PIRATE)
    pirate.evaluate(TEXT)
    tokens, cache = pirate.snapshot()
    assert plain.snapshot()[0].size == 0
    plain.evaluate(TEXT[:5])
    pirate.restore(tokens, cache)
    assert pirate.held == TEXT.tolist()
    assert plain.held == []
    longer = np.append(TEXT, 7).astype(np.int32)
    found = pirate.evaluate(longer)
    assert found.n_reused == TEXT.size
    np.testing.assert_array_equal(found.logits, alone(longer, PIRATE))
