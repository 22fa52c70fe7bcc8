from __future__ import annotations

import numpy as np
import pytest
from fake_model import FakeEngine

from qllama.generation.prefix_cache import PrefixCache, Saved
from qllama.generation.session import Session


def ids(*tokens):
    return np.array(tokens, np.int32)


def saved(tokens, n_bytes=10):
    return Saved(ids(*tokens), np.zeros(n_bytes, np.uint8))


def kept(cache, *texts):
    """Which of the texts the cache has, without using them."""
    return [text for text in texts if not cache.wants(ids(*text), 0)]


def test_prefix_cache_gives_the_sequence_that_shares_most():
    cache = PrefixCache(100)
    for text in ([1, 2, 3], [1, 2, 9, 9], [5]):
        cache.put(saved(text))
    assert cache.longest(ids(1, 2, 9, 4)).tokens.tolist() == [1, 2, 9, 9]
    assert cache.longest(ids(1, 2, 3, 9)).tokens.tolist() == [1, 2, 3]
    assert cache.longest(ids(7, 8)) is None


def test_prefix_cache_least_recently_used_make_room():
    cache = PrefixCache(30)
    for text in ([1, 1], [2, 2], [3, 3]):
        cache.put(saved(text))
    cache.longest(ids(1, 1, 1))
    cache.put(saved([4, 4], 11))
    assert kept(cache, [1, 1], [2, 2], [3, 3], [4, 4]) == [[1, 1], [4, 4]]


def test_prefix_cache_sequence_that_went_on_replaces_its_beginning():
    cache = PrefixCache(100)
    cache.put(saved([1, 2]))
    cache.put(saved([1, 2, 3]))
    cache.put(saved([1, 3]))
    assert [entry.tokens.tolist() for entry in cache._kept] == [[1, 2, 3], [1, 3]]


def test_prefix_cache_wants_what_fits_and_is_not_kept_yet():
    cache = PrefixCache(30)
    cache.put(saved([1, 2, 3]))
    assert not cache.wants(ids(1, 2), 10)
    assert cache.wants(ids(1, 2, 3, 4), 30)
    assert not cache.wants(ids(1, 2, 3, 4), 31)
    assert not PrefixCache(0).wants(ids(1), 1)


def conversation(first, n):
    return [first, *range(100, 100 + n)]


def test_session_alternating_conversations_keep_their_tokens():
    engine = FakeEngine(n_ctx=200)
    session = Session(engine, cache_bytes=10_000)
    a, b = conversation(1, 30), conversation(2, 40)
    reused = []
    for _ in range(3):
        for text in (a, b):
            text += [7, 8]
            found = session.evaluate(ids(*text))
            reused.append(found.n_reused)
            fresh = Session(FakeEngine(n_ctx=200)).evaluate(ids(*text))
            assert found.logits.tobytes() == fresh.logits.tobytes()
    assert reused == [0, 0, 33, 43, 35, 45]


def test_session_without_memory_for_it_evaluates_displaced_tokens_again():
    session = Session(FakeEngine(n_ctx=200), cache_bytes=0)
    a, b = conversation(1, 30), conversation(2, 40)
    assert [session.evaluate(ids(*text)).n_reused for text in (a, b, a)] == [0, 0, 0]


def test_session_copies_nothing_where_evaluating_is_cheaper():
    engine = FakeEngine(n_ctx=1000)
    engine.read_cache = lambda *_: 1 / 0
    session = Session(engine, cache_bytes=10**6)
    long = list(range(200)) * 3
    session.evaluate(ids(*long))
    # One text answered again and again: 30 tokens of 630 are displaced.
    for i in range(3):
        session.evaluate(ids(*long, *range(i, i + 30)))


def test_session_out_of_memory_for_a_copy_goes_on_without():
    engine = FakeEngine(n_ctx=200)

    def refuse(*_):
        raise MemoryError

    engine.read_cache = refuse
    session = Session(engine, cache_bytes=10**6)
    a, b = conversation(1, 30), conversation(2, 40)
    assert [session.evaluate(ids(*text)).n_reused for text in (a, b, a)] == [0, 0, 0]


def test_session_snapshot_goes_on_in_another_session():
    text = conversation(1, 30)
    session = Session(FakeEngine(n_ctx=200))
    session.evaluate(ids(*text))
    other = Session(FakeEngine(n_ctx=200))
    other.evaluate(ids(9, 9, 9))
    other.restore(*session.snapshot())
    found = other.evaluate(ids(*text, 5))
    assert found.n_reused == len(text)
    assert found.logits.tobytes() == session.evaluate(ids(*text, 5)).logits.tobytes()


def test_session_restore_interrupted_holds_nothing():
    engine = FakeEngine(n_ctx=200)
    session = Session(engine)
    session.evaluate(ids(*conversation(1, 30)))
    tokens, cache = session.snapshot()

    def interrupted(*_):
        raise KeyboardInterrupt

    engine.write_cache = interrupted
    with pytest.raises(KeyboardInterrupt):
        session.restore(tokens, cache)
    assert session.held == []
