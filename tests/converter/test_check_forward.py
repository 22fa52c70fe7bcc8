"""The self-check's forward pass: the reference's numbers, from slabs of weights."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from tiny_gguf import write_gguf

from converter.check import weights as weights_module
from converter.check.forward import Reading, Text, hidden_states, losses
from converter.check.weights import SourceWeights, StoredWeights
from converter.pipeline import convert
from converter.sources.gguf import GgufSource
from converter.sources.views import interleaved_to_half_split
from qllama.format.reader import QlmFile
from qllama.model.reference import forward

TOKENS = (7, 1, 200, 7, 33, 269, 0, 90)
DIVISORS = np.linspace(1, 8, 32, dtype=np.float32)


# With norms of 1, attention matters: weights of 0.05 alone would drown it.
NORMS = {f"blk.{i}.attn_norm.weight": np.ones(256, np.float32) for i in range(2)}


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def silent(done, total):
    """Take progress."""


@pytest.fixture(
    params=[
        {"tied": False, "extra": NORMS},
        {"arch": "qwen2", "extra": NORMS},
        {"arch": "qwen3", "keys": {"attention.key_length": 64, "attention.value_length": 64}},
        {"keys": {"rope.freq_base": 500000.0}, "extra": {"rope_freqs.weight": DIVISORS} | NORMS},
    ],
    ids=["llama", "biases", "q/k norm", "divisors"],
)
def files(request, tmp_path):
    """A source and its conversion, read in slabs of one tile."""
    source = write_gguf(tmp_path / "m.gguf", **request.param)
    convert(source, tmp_path / "m.qlm", type="f32", check=False)
    return source, tmp_path / "m.qlm"


def test_forward_equals_the_reference(files, monkeypatch):
    monkeypatch.setattr(weights_module, "_SLAB_VALUES", 1)
    source, path = files
    opened = GgufSource(source)
    with QlmFile.open(path) as file:
        expected = log_softmax(forward(file, TOKENS))
        # The second text must not see the first.
        text = Text(TOKENS, range(len(TOKENS)), Reading(file.config.rope_theta))
        other = Text((1, 2, 3), (0, 1, 2), text.reading)
        for weights in (
            StoredWeights(file),
            SourceWeights(opened.config, opened.tensors),
        ):
            _, states = hidden_states(weights, [other, text], 2, silent)
            found = losses(weights, states[:-1], TOKENS[1:])
            wanted = -expected[np.arange(len(TOKENS) - 1), TOKENS[1:]]
            # Sums in float32 instead of float64: some 1e-6 of logits around 1.
            np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_forward_reading_undoes_a_wrong_order_of_rows(tmp_path):
    source = GgufSource(write_gguf(tmp_path / "m.gguf", extra=NORMS))
    right = SourceWeights(source.config, source.tensors)
    text = Text(TOKENS, range(len(TOKENS)), Reading(1e4))
    (expected,) = hidden_states(right, [text], 2, silent)
    for name, tensor in source.tensors.items():
        if "q_proj" in name or "k_proj" in name:
            order = interleaved_to_half_split(tensor.shape[0], 64)
            # As GGUF stores them: the source's own order is that one undone.
            np.testing.assert_array_equal(tensor.row_order, order)
            tensor.row_order = None
    texts = [
        Text(TOKENS, text.positions, Reading(1e4, rows)) for rows in ("kept", "from interleaved")
    ]
    kept, undone = hidden_states(right, texts, 2, silent)
    # Products of other slabs sum up in another order.
    np.testing.assert_allclose(undone, expected, atol=1e-4)
    assert np.abs(kept - expected).max() > 1e-2


def test_forward_distance_between_words_counts(tmp_path):
    source = GgufSource(write_gguf(tmp_path / "m.gguf", extra=NORMS))
    weights = SourceWeights(source.config, source.tensors)
    texts = [
        Text(TOKENS, positions, Reading(1e4))
        for positions in (range(8), range(50, 58), (*range(7), 100))
    ]
    near, moved, far = hidden_states(weights, texts, 2, silent)
    # Rotations by larger angles are rounded otherwise, nothing else.
    np.testing.assert_allclose(moved, near, atol=1e-5)
    np.testing.assert_array_equal(far[:7], near[:7])
    assert np.abs(far[7] - near[7]).max() > 1e-4


@pytest.mark.parametrize("preset", ["q4", "q8_0", "f16"])
def test_weights_of_a_file_are_its_own(tmp_path, preset, monkeypatch):
    monkeypatch.setattr(weights_module, "_SLAB_VALUES", 1)
    convert(write_gguf(tmp_path / "m.gguf"), tmp_path / "m.qlm", type=preset, check=False)
    name = "model.embed_tokens.weight"
    with QlmFile.open(tmp_path / "m.qlm") as file:
        weights, expected = StoredWeights(file), file.matrix(name)
        np.testing.assert_array_equal(weights.rows(name, [269, 0, 17]), expected[[269, 0, 17]])
        starts, slabs = zip(*weights.slabs(name), strict=True)
        assert starts == tuple(range(0, 270, 16))
        np.testing.assert_array_equal(np.concatenate(slabs), expected)


def test_forward_multiplies_on_its_own_threads_alone(tmp_path, monkeypatch):
    def blas():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    source = GgufSource(write_gguf(tmp_path / "m.gguf"))
    weights = SourceWeights(source.config, source.tensors)
    meanwhile = []
    read = SourceWeights.read
    monkeypatch.setattr(
        SourceWeights, "read", lambda *args: (meanwhile.extend(blas()), read(*args))[1]
    )
    with threadpool_limits(3, "blas"):
        before = blas()
        if not before:
            pytest.skip("numpy's BLAS has no threads that could be limited")
        hidden_states(weights, [Text(TOKENS, range(8), Reading(1e4))], 1, silent)
        assert blas() == before
    assert set(before) == {3}
    assert set(meanwhile) == {1}
