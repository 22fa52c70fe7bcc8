"""A token's logits are the same bits whatever surrounds its evaluation."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.kernels.kv_layout import CHUNK
from qllama.model.engine import Engine

N_CTX = 2 * CHUNK + 40
MODELS = {
    "integers": ({"num_attention_heads": 6}, {"embed": "q8_0", "lm_head": "q8_0", "": "q4"}),
    "floats, window": ({"sliding_window": 20, "head_dim": 40, "qk_norm": True}, "f16"),
    "mixture": (
        {"num_attention_heads": 14, "attention_bias": True, "mlp_bias": True, "vocab_size": 51},
        {"self_attn": "bf16", "mlp": "q4_0", "": "f32"},
    ),
}
few = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Model:
    """A tiny model with engines of several shapes, made when first asked for."""

    def __init__(self, path):
        self.file = QlmFile.open(path)
        self._engines = {}

    def engine(self, **how):
        key = tuple(sorted(how.items()))
        if key not in self._engines:
            self._engines[key] = Engine(self.file, **({"n_ctx": N_CTX, "n_threads": 1} | how))
        return self._engines[key]

    def tokens(self, n, seed=0):
        rng = np.random.default_rng([seed, n])
        return rng.integers(0, self.file.config.vocab_size, n).tolist()

    def one_by_one(self, tokens):
        """The logits of a text evaluated token by token on one thread: the bits to meet."""
        engine = self.engine(n_batch=1)
        logits = [engine.evaluate([t], position=i) for i, t in enumerate(tokens)]
        return np.concatenate(logits)

    def close(self):
        for engine in self._engines.values():
            engine.close()
        self.file.close()


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    changes, types = MODELS[request.param]
    made = config(**changes)
    path = tmp_path_factory.mktemp("model") / "tiny.qlm"
    model = Model(write_model(path, made, random_tensors(made), types))
    yield model
    model.close()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_batch", [1, 2, 5, 13, 64])
def test_evaluate_any_threads_and_batch_give_the_same_bits(model, n_threads, n_batch):
    tokens = model.tokens(40)
    engine = model.engine(n_threads=n_threads, n_batch=n_batch)
    logits = engine.evaluate(tokens, position=0, all_logits=True)
    np.testing.assert_array_equal(logits, model.one_by_one(tokens))


def test_evaluate_last_logits_are_those_of_all(model):
    tokens = model.tokens(40)
    engine = model.engine(n_batch=7)
    everything = engine.evaluate(tokens, position=0, all_logits=True)
    last = engine.evaluate(tokens, position=0)
    assert last.shape == (1, model.file.config.vocab_size)
    np.testing.assert_array_equal(last[0], everything[-1])


@few
@given(data=st.data())
def test_evaluate_in_pieces_gives_the_same_bits(model, data):
    tokens = model.tokens(45)
    cuts = data.draw(st.lists(st.integers(1, 44), unique=True, max_size=8).map(sorted))
    engine = model.engine(n_threads=2, n_batch=data.draw(st.sampled_from([4, 16])))
    edges = [0, *cuts, 45]
    pieces = [engine.evaluate(tokens[a:b], position=a, all_logits=True) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), model.one_by_one(tokens))


@few
@given(kept=st.integers(0, 59), n_new=st.integers(1, 60))
def test_evaluate_from_an_earlier_position_forgets_what_followed(model, kept, n_new):
    old, new = model.tokens(60), model.tokens(60, seed=1)[:n_new]
    engine = model.engine(n_threads=2, n_batch=16)
    engine.evaluate(old, position=0)
    logits = engine.evaluate(new, position=kept, all_logits=True)
    np.testing.assert_array_equal(logits, model.one_by_one(old[:kept] + new)[kept:])


def test_evaluate_slots_do_not_see_each_other(model):
    texts = [model.tokens(30, seed) for seed in range(3)]
    engine = model.engine(n_slots=3, n_batch=8, n_threads=2)
    for slot, text in enumerate(texts):
        engine.evaluate(text[:20], position=0, slot=slot)
    for slot, text in reversed(list(enumerate(texts))):
        logits = engine.evaluate(text[20:], position=20, slot=slot, all_logits=True)
        np.testing.assert_array_equal(logits, model.one_by_one(text)[20:])


@few
@given(data=st.data())
def test_forward_any_ragged_batch_gives_the_same_bits(model, data):
    n_slots, n_batch = 4, 24
    texts = [model.tokens(20, seed) for seed in range(n_slots)]
    expected = [model.one_by_one(text) for text in texts]
    engine = model.engine(n_slots=n_slots, n_batch=n_batch, n_threads=2)
    done = [0] * n_slots
    while any(n < 20 for n in done):
        order = data.draw(st.permutations(range(n_slots)))
        tokens, positions, slots = [], [], []
        for slot in order:
            room = min(20 - done[slot], n_batch - len(tokens))
            n = data.draw(st.integers(0 if tokens else min(1, room), room))
            tokens += texts[slot][done[slot] : done[slot] + n]
            positions += range(done[slot], done[slot] + n)
            slots += [slot] * n
            done[slot] += n
        if not tokens:
            continue
        outputs = data.draw(st.lists(st.integers(0, len(tokens) - 1), unique=True))
        arrays = (np.array(a, np.int32) for a in (tokens, positions, slots))
        logits = engine.forward(*arrays, outputs)
        assert logits.shape == (len(outputs), model.file.config.vocab_size)
        for row, i in zip(logits, outputs, strict=True):
            np.testing.assert_array_equal(row, expected[slots[i]][positions[i]])


@pytest.mark.parametrize("start", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1])
def test_evaluate_across_a_chunk_edge_decodes_and_prefills_to_the_same_bits(model, start):
    tokens = model.tokens(start + 20)
    expected = model.engine(n_batch=64).evaluate(tokens, position=0, all_logits=True)[start:]
    # 1 and 5 tokens have their attention split over threads by chunk, 20 have not.
    for n_batch in (1, 5, 20):
        engine = model.engine(n_threads=2, n_batch=n_batch)
        engine.evaluate(tokens[:start], position=0)
        logits = engine.evaluate(tokens[start:], position=start, all_logits=True)
        np.testing.assert_array_equal(logits, expected)


def test_forward_slots_far_apart_share_a_split_batch(model):
    # Eight tokens: attention is split by chunk, though slots reach different chunks.
    lengths = (3, CHUNK - 1, CHUNK, 2 * CHUNK + 7)
    texts = [model.tokens(n + 2, seed) for seed, n in enumerate(lengths)]
    engine = model.engine(n_slots=4, n_batch=24, n_threads=2)
    for slot, (n, text) in enumerate(zip(lengths, texts, strict=True)):
        engine.evaluate(text[:n], position=0, slot=slot)
    tokens = [token for text in texts for token in text[-2:]]
    positions = [position for n in lengths for position in (n, n + 1)]
    slots = np.repeat(np.arange(4), 2)
    arrays = (np.array(a, np.int32) for a in (tokens, positions, slots))
    logits = engine.forward(*arrays, range(8)).reshape(4, 2, -1)
    for text, pair in zip(texts, logits, strict=True):
        alone = model.engine(n_batch=64).evaluate(text, position=0, all_logits=True)
        np.testing.assert_array_equal(pair, alone[-2:])


def test_evaluate_up_to_the_last_position_of_the_context(model):
    tokens = model.tokens(N_CTX)
    engine = model.engine(n_threads=2, n_batch=64)
    everything = engine.evaluate(tokens, position=0, all_logits=True)
    np.testing.assert_array_equal(
        model.engine(n_batch=1).evaluate(tokens, position=0)[0], everything[-1]
    )


def test_forward_order_of_outputs_is_the_callers(model):
    tokens, positions = model.tokens(9), np.arange(9, dtype=np.int32)
    arrays = (np.array(tokens, np.int32), positions, np.zeros(9, np.int32))
    logits = model.engine(n_batch=16).forward(*arrays, [8, 0, 0, 3])
    np.testing.assert_array_equal(logits, model.one_by_one(tokens)[[8, 0, 0, 3]])


def test_evaluate_value_too_large_for_the_cache_stays_with_its_own_positions(tmp_path):
    made = config(num_hidden_layers=1)
    tensors = random_tensors(made)
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, 0] = 0
    embedding[7] = 0
    embedding[7, 0] = 1  # token 7, and no other, has values of 1e5 and more
    tensors["model.layers.0.self_attn.v_proj.weight"][:, 0] = 1e5
    model = Model(write_model(tmp_path / "large.qlm", made, tensors, "f32"))
    tokens = [1, 2, 7, 3]
    together = model.engine(n_batch=8).evaluate(tokens, position=0, all_logits=True)
    np.testing.assert_array_equal(together, model.one_by_one(tokens))
    assert np.isfinite(together).all()
    model.close()
