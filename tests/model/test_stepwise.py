"""What an observer sees is what the engine computes, and what it changes is what counts."""

from __future__ import annotations

import numpy as np
import pytest
from test_forward import CONFIGS, EVERYTHING, MIXTURES
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.kernels import reference as ops
from qllama.kernels.kv_layout import CHUNK, KV_TYPES
from qllama.model.activations import N_POSITIONS, N_TOKENS, Observer, activation_shapes
from qllama.model.engine import Engine

N_TEXT = 21
U = 2.0**-24


class Recorder:
    """Keeps what it is shown; `hooks` by name change it."""

    def __init__(self, names, hooks=None):
        self.hooks = hooks or {}
        self.seen = {}
        self.places = {}
        self.observer = Observer(frozenset(names), self.visit)

    def visit(self, at, values):
        self.seen.setdefault(at.name, []).append(values.copy())
        self.places.setdefault(at.name, []).append((at.slot, at.positions.tolist()))
        return self.hooks[at.name](values) if at.name in self.hooks else None

    def __getitem__(self, name):
        (values,) = self.seen[name]
        return values


@pytest.fixture
def opened(tmp_path):
    """Write a random model; returns a function that opens engines of it."""
    opened = []

    def write(changes, types="f32"):
        made = config(**changes)
        file = QlmFile.open(write_model(tmp_path / "tiny.qlm", made, random_tensors(made), types))
        opened.append(file)

        def engine(recorder=None, **how):
            how = {"n_threads": 2, "n_batch": 64, **how}
            observer = None if recorder is None else recorder.observer
            opened.append(Engine(file, observer=observer, **how))
            return opened[-1]

        return made, engine

    yield write
    for one in reversed(opened):
        one.close()


def tokens_of(made, n=N_TEXT, seed=1):
    return np.random.default_rng(seed).integers(0, made.vocab_size, n).tolist()


def evaluate(engine, tokens):
    return engine.evaluate(tokens, position=0, all_logits=True)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_stepwise_any_configuration_gives_the_decoders_bits_and_every_activation(
    opened, name, kv_type
):
    made, engine = opened(CONFIGS[name])
    shapes, tokens = activation_shapes(made), tokens_of(made)
    recorder = Recorder(shapes)
    logits = evaluate(engine(recorder, kv_type=kv_type), tokens)
    np.testing.assert_array_equal(logits, evaluate(engine(kv_type=kv_type), tokens))
    np.testing.assert_array_equal(recorder["logits"], logits)
    assert list(recorder.seen) == list(shapes)
    sizes = {N_TOKENS: N_TEXT, N_POSITIONS: N_TEXT}
    for name, shape in shapes.items():
        assert recorder[name].shape == tuple(sizes.get(n, n) for n in shape)
        assert recorder.places[name] == [(0, list(range(N_TEXT)))]


@pytest.mark.parametrize("types", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_stepwise_any_weight_types_and_threads_give_the_decoders_bits(opened, types, n_threads):
    made, engine = opened(EVERYTHING, types)
    tokens = tokens_of(made)
    for n in (1, 2, N_TEXT):  # a lone token is packed by every thread for itself
        recorder = Recorder(activation_shapes(made))
        logits = evaluate(engine(recorder, n_threads=n_threads), tokens[:n])
        np.testing.assert_array_equal(logits, evaluate(engine(), tokens[:n]))


def test_stepwise_layers_of_which_nothing_is_wanted_run_as_ever(opened):
    made, engine = opened({"num_hidden_layers": 5})
    tokens, shapes = tokens_of(made), activation_shapes(made)
    whole = Recorder(shapes)
    expected = evaluate(engine(whole), tokens)
    for name in shapes:
        recorder = Recorder([name])
        np.testing.assert_array_equal(evaluate(engine(recorder), tokens), expected)
        np.testing.assert_array_equal(recorder[name], whole[name])


def test_stepwise_ragged_batches_show_each_text_alone(opened):
    made, engine = opened({"sliding_window": 9})
    texts = {slot: tokens_of(made, 12, seed=slot) for slot in range(3)}
    alone = {}
    for slot, text in texts.items():
        alone[slot] = Recorder(activation_shapes(made))
        evaluate(engine(alone[slot]), text)
    recorder = Recorder(activation_shapes(made))
    together = engine(recorder, n_slots=3)
    for slot, n in ((0, 7), (2, 3)):
        together.evaluate(texts[slot][:n], position=0, slot=slot)
    recorder.seen.clear()
    recorder.places.clear()
    counts = ((1, 0, 12), (2, 3, 4), (0, 7, 12))
    arrays = [
        np.concatenate(parts).astype(np.int32)
        for parts in (
            [texts[slot][start:end] for slot, start, end in counts],
            [range(start, end) for _, start, end in counts],
            [[slot] * (end - start) for slot, start, end in counts],
        )
    ]
    together.forward(*arrays, [12, 17, 3])  # one output a text
    outputs = {1: [3], 2: [3], 0: [11]}
    for name, shape in activation_shapes(made).items():
        expected = [(slot, list(range(start, end))) for slot, start, end in counts]
        if name in ("norm.output", "logits"):
            expected = [(slot, outputs[slot]) for slot in (2, 0, 1)]
        assert recorder.places[name] == expected
        for (slot, places), values in zip(expected, recorder.seen[name], strict=True):
            text = alone[slot][name]
            part = text[:, places, : places[-1] + 1] if N_POSITIONS in shape else text[places]
            if N_POSITIONS in shape:  # numpy's own products, in other groups
                np.testing.assert_allclose(values, part, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(values, part)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 5}, {"num_attention_heads": 7, "num_key_value_heads": 1}]
)
def test_stepwise_weights_times_values_are_what_attention_gives(opened, changes, kv_type):
    made, engine = opened(changes)
    recorder = Recorder(activation_shapes(made))
    evaluate(engine(recorder, kv_type=kv_type, n_batch=512), tokens_of(made, CHUNK + 40))
    for layer in ("layers.0.self_attn.", "layers.1.self_attn."):
        weights, scores = recorder[layer + "weights"], recorder[layer + "scores"]
        v = recorder[layer + "v_proj.output"]
        padded = np.pad(v, ((0, 0), (0, 0), (0, -made.head_dim % 32)))
        held = ops.kv_rounded(padded, kv_type)[..., : made.head_dim]
        held = np.repeat(held, made.num_attention_heads // made.num_key_value_heads, axis=1)
        expected = np.einsum("htp,phd->thd", weights.astype(np.float64), held)
        # Each score is off by gamma(head_dim) of the terms' magnitudes on either side, a weight
        # by as much twice (numerator and denominator) and by exp, and the sum by gamma(n).
        q, k = recorder[layer + "q"], recorder[layer + "k"]
        terms = np.abs(q).sum(-1).max() * np.abs(k).max() * made.head_dim**-0.5
        bound = 4 * U * (2 * made.head_dim * terms + len(v) + 16) * np.abs(held).max()
        error = np.abs(recorder[layer + "o_proj.input"] - expected).max()
        assert error <= bound < 0.05 * np.abs(expected).std()
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        seen = np.isfinite(scores[0]).sum(-1)
        window = made.sliding_window or len(v)
        assert seen.tolist() == [min(i + 1, window) for i in range(len(v))]
