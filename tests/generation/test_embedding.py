from __future__ import annotations

import numpy as np
import pytest

from qllama.generation.embedding import embed


class Engine:
    """Hidden states that tell of the token and of all before it; notices a wrong batch."""

    def __init__(self, n_slots, n_batch):
        self.n_slots, self.n_batch = n_slots, n_batch
        self.held = [[] for _ in range(n_slots)]
        self.counts = []

    def hidden(self, tokens, positions, slots):
        assert 0 < len(tokens) <= self.n_batch
        assert tokens.dtype == positions.dtype == slots.dtype == np.int32
        assert len(set(slots.tolist())) == 1 + np.count_nonzero(np.diff(slots))
        self.counts.append(len(tokens))
        rows = []
        for token, position, slot in zip(tokens, positions, slots, strict=True):
            held = self.held[slot]
            assert position <= len(held)
            held[position:] = [int(token)]
            rows.append([token, sum(held), len(held), 1])
        return np.array(rows, np.float32)


TEXTS = [[3], [1, 2, 3], [5] * 11, [4, 4], [9], [7] * 5]


def expected(text, pooling):
    rows = np.array([[t, sum(text[: i + 1]), i + 1, 1] for i, t in enumerate(text)], np.float64)
    return {"mean": rows.mean(axis=0), "last": rows[-1], "cls": rows[0]}[pooling]


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("n_slots", [1, 2, 6])
@pytest.mark.parametrize("n_batch", [1, 3, 4, 100])
def test_embed_any_batch_gives_each_text_its_own_vector(pooling, n_slots, n_batch):
    engine = Engine(n_slots, n_batch)
    found = embed(engine, TEXTS, pooling=pooling, normalize=False)
    assert found.dtype == np.float32
    wanted = np.array([expected(text, pooling) for text in TEXTS], np.float32)
    np.testing.assert_array_equal(found, wanted)


def test_embed_fills_batches_and_takes_the_lowest_slots():
    engine = Engine(6, 8)
    embed(engine, TEXTS)
    assert engine.counts == [8, 8, 7]
    engine = Engine(64, 4)
    embed(engine, TEXTS)
    assert sum(1 for held in engine.held if held) <= 3


def test_embed_normalized_vectors_have_length_one():
    found = embed(Engine(6, 8), TEXTS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    plain = embed(Engine(6, 8), TEXTS, normalize=False)
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain, axis=1)[:, None], rtol=1e-6)


def test_embed_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling: expected one of mean, last, cls, found 'max'"):
        embed(Engine(1, 8), TEXTS, pooling="max")
