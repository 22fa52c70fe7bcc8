"""Adapters in the compiled forward pass: what a model with merged weights computes.

The bound is that of `test_forward`: both sides compute the same sum in other orders, and
what roundings of the size of every product's do to the logits is measured on the numpy
reference. A product beside the matrix has fewer roundings than one of merged weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_forward import rounding_spread
from tiny_model import config, random_tensors, write_model

from qllama.errors import ConversionError
from qllama.format import QlmFile
from qllama.model import reference
from qllama.model.adapter import Adapter
from qllama.model.engine import Engine
from qllama.tensors import EMBEDDING, HEAD, expected_shapes

TOKENS = np.random.default_rng(3).integers(0, 51, 60).tolist()
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ODD = {"num_attention_heads": 6, "head_dim": 24, "intermediate_size": 112, "vocab_size": 51}
# Ranks below a tile, of one, of an odd number of them, and of more than two blocks.
RANKS = {"q_proj": 3, "k_proj": 16, "v_proj": 40, "gate_proj": 70, "embed_tokens": 33}


def random_updates(config, *parts, seed=0):
    """Updates of every matrix whose name has one of `parts`, large enough to show."""
    rng = np.random.default_rng(seed)
    updates = {}
    # The head of a tied model has an update of its own.
    for name, (rows, *k) in expected_shapes(replace(config, tie_word_embeddings=False)).items():
        module = name.split(".")[-2]
        if k and module in parts:
            rank = RANKS.get(module, 8)
            left, right = rng.standard_normal((rows, rank)), rng.standard_normal((rank, *k))
            scale = (rank * k[0]) ** -0.25
            updates[name] = [((scale * left).astype("f4"), (scale * right).astype("f4"))]
    return updates


def merged(tensors, updates):
    """Tensors with the updates in them, added up in float64."""
    result = dict(tensors)
    for name, pairs in updates.items():
        update = sum(left.astype("f8") @ right for left, right in pairs)
        result[name] = (tensors[name] + update).astype("f4")
    return result


def computed(path, adapter=None, tokens=TOKENS, *, n_threads=2, n_batch=16):
    with QlmFile.open(path) as file:
        engine = Engine(file, n_threads=n_threads, n_batch=n_batch)
        try:
            engine.adapt(adapter)
            return engine.evaluate(tokens, position=0, all_logits=True)
        finally:
            engine.close()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, EVERY),
        (ODD, (*EVERY, "embed_tokens", "lm_head")),
        *(({}, (part,)) for part in (*EVERY, "embed_tokens", "lm_head")),
        *(({"tie_word_embeddings": True}, (part,)) for part in ("embed_tokens", "lm_head")),
        ({"attention_bias": True, "mlp_bias": True}, EVERY),
    ],
    ids=str,
)
def test_adapter_logits_are_those_of_merged_weights(tmp_path, changes, parts):
    made = config(**changes)
    tensors = random_tensors(made)
    updates = random_updates(made, *parts)
    path = write_model(tmp_path / "base.qlm", made, tensors)
    whole = merged({HEAD: tensors[EMBEDDING], **tensors}, updates)
    untied = replace(made, tie_word_embeddings=False)
    with QlmFile.open(write_model(tmp_path / "merged.qlm", untied, whole)) as file:
        tokens = [token % made.vocab_size for token in TOKENS]
        expected = reference.forward(file, tokens, quantize_activations=True)
        limit = 4 * rounding_spread(file, tokens, expected)
    found = computed(path, Adapter(updates), tokens)
    assert np.abs(found - expected).max() <= limit
    assert np.abs(found - computed(path, tokens=tokens)).max() > 100 * limit


@pytest.mark.parametrize("types", ["f16", "q8_0", {"embed": "q8_0", "lm_head": "q6", "": "q4"}])
def test_adapter_of_zeros_changes_no_bit_whatever_the_weights(tmp_path, types):
    made = config(**ODD)
    path = write_model(tmp_path / "base.qlm", made, random_tensors(made), types)
    updates = random_updates(made, *EVERY, "embed_tokens", "lm_head")
    zeros = {name: [(0 * left, right)] for name, [(left, right)] in updates.items()}
    np.testing.assert_array_equal(computed(path, Adapter(zeros)), computed(path))
    assert (computed(path, Adapter(updates)) != computed(path)).any()


@pytest.mark.parametrize("types", ["f32", {"embed": "q8_0", "lm_head": "q6", "": "q4"}])
def test_adapter_bits_are_the_same_in_any_batch_on_any_threads(tmp_path, types):
    made = config(**ODD)
    path = write_model(tmp_path / "base.qlm", made, random_tensors(made), types)
    adapter = Adapter(random_updates(made, *EVERY, "embed_tokens", "lm_head"))
    one_by_one = computed(path, adapter, n_threads=1, n_batch=1)
    for n_threads, n_batch in ((1, 60), (2, 1), (2, 17), (3, 5), (5, 49)):
        found = computed(path, adapter, n_threads=n_threads, n_batch=n_batch)
        np.testing.assert_array_equal(found, one_by_one, f"{n_threads} threads, {n_batch} tokens")


def test_adapter_taken_away_leaves_the_bits_of_before(tmp_path):
    made = config(**ODD)
    path = write_model(tmp_path / "base.qlm", made, random_tensors(made), "q4")
    first, second = (random_updates(made, *parts) for parts in (EVERY, ("q_proj", "lm_head")))
    with QlmFile.open(path) as file:
        engine = Engine(file, n_threads=2, n_batch=16)
        plain = engine.evaluate(TOKENS, position=0, all_logits=True)
        for updates in (first, second):
            adapter = Adapter(updates)
            engine.adapt(adapter)
            found = engine.evaluate(TOKENS, position=0, all_logits=True)
            np.testing.assert_array_equal(found, computed(path, adapter))
        engine.adapt(None)
        found = engine.evaluate(TOKENS, position=0, all_logits=True)
        np.testing.assert_array_equal(found, plain)
        engine.close()


def test_adapter_of_two_adds_both_up(tmp_path):
    made = config(**ODD)
    path = write_model(tmp_path / "base.qlm", made, random_tensors(made))
    first, second = (random_updates(made, "q_proj", "down_proj", seed=seed) for seed in (1, 2))
    both = {name: first[name] + second[name] for name in first}
    joined = {
        name: [(np.hstack([a, c]), np.vstack([b, d]))] for name, [(a, b), (c, d)] in both.items()
    }
    assert Adapter(both).digest == Adapter(joined).digest
    assert Adapter(both).digest != Adapter(first).digest
    np.testing.assert_array_equal(computed(path, Adapter(both)), computed(path, Adapter(joined)))
    assert (computed(path, Adapter(both)) != computed(path, Adapter(first))).any()


def test_adapter_value_that_is_no_number_is_refused(tmp_path):
    updates = random_updates(config(), "q_proj")
    name = "model.layers.1.self_attn.q_proj.weight"
    updates[name][0][1][2, 5] = np.nan
    with pytest.raises(ConversionError, match=rf"update of {name}: weight \[2, 5\].*found nan"):
        Adapter(updates)
