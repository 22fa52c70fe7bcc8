"""Hugging Face's tensor names to the canonical ones; what is fused, tied or superfluous."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_hf import config_of, random_weights, shapes_of

from converter.hf_config import config_from_hugging_face
from converter.hf_tensors import canonical_tensors
from converter.sources.base import SourceTensor
from converter.sources.stored import Extent, StoredArray
from qllama.errors import ConversionError
from qllama.tensors import expected_shapes

WHERE = Path("repository")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


class Held(SourceTensor):
    """An array that is in memory already."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.where = f"{WHERE}: tensor {name}"
        self.shape = values.shape
        self.source_type = values.dtype.name
        self.n_bytes = values.nbytes
        self.values = values

    def read(self, start, stop):
        assert 0 <= start < stop <= self.shape[0]
        return self.values[start:stop].astype(np.float32)


def canonical(changes=None, weights=None, **more) -> dict[str, SourceTensor]:
    """Canonical tensors of a model with `changes` of its config, `weights` and some `more`."""
    values = config_of(**(changes or {}))
    weights = weights or random_weights(shapes_of(values))
    raw = {name: Held(name, array) for name, array in {**weights, **more}.items()}
    return canonical_tensors(WHERE, raw, config_from_hugging_face(WHERE, values, raw))


def test_hf_tensors_plain_names_stay_in_reading_order():
    values = config_of()
    weights = random_weights(shapes_of(values))
    found = canonical(weights=dict(reversed(weights.items())))
    config = config_from_hugging_face(WHERE, values, weights)
    assert list(found) == list(expected_shapes(config))
    np.testing.assert_array_equal(found[Q_PROJ].read(0, 64), weights[Q_PROJ])


def test_hf_tensors_of_a_model_saved_without_its_head_get_the_prefix():
    values = config_of(tie_word_embeddings=True)
    weights = random_weights(shapes_of(values))
    bare = {name.removeprefix("model."): array for name, array in weights.items()}
    found = canonical({"tie_word_embeddings": True}, bare)
    assert found.keys() == weights.keys()


def test_hf_tensors_rotary_tables_are_left_out():
    table = np.ones(8, np.float32)
    names = ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq")
    assert canonical(None, None, **dict.fromkeys(names, table)).keys() == canonical().keys()


def test_hf_tensors_fused_matrices_are_taken_apart():
    values = config_of(model_type="phi3")
    weights = random_weights(shapes_of(values))
    found = canonical({"model_type": "phi3"}, weights)
    qkv = weights["model.layers.1.self_attn.qkv_proj.weight"]
    gate_up = weights["model.layers.1.mlp.gate_up_proj.weight"]
    rows = {
        "self_attn.q_proj": qkv[:64],
        "self_attn.k_proj": qkv[64:96],
        "self_attn.v_proj": qkv[96:],
        "mlp.gate_proj": gate_up[:96],
        "mlp.up_proj": gate_up[96:],
    }
    for name, expected in rows.items():
        tensor = found[f"model.layers.1.{name}.weight"]
        np.testing.assert_array_equal(tensor.read(0, tensor.shape[0]), expected, err_msg=name)


@pytest.mark.parametrize("shape", [(127, 64), (), (64,)])
def test_hf_tensors_fused_matrix_of_another_height_is_named(shape):
    name = "model.layers.1.self_attn.qkv_proj.weight"
    with pytest.raises(ConversionError, match=rf"{name}: expected 128 rows, found the shape"):
        canonical({"model_type": "phi3"}, None, **{name: np.zeros(shape, np.float32)})


def test_hf_tensors_fused_matrix_beside_its_parts_is_refused():
    with pytest.raises(ConversionError, match=r"qkv_proj.*q_proj\.weight is there as well"):
        canonical({"model_type": "phi3"}, None, **{Q_PROJ: np.zeros((64, 64), np.float32)})


@pytest.fixture
def with_head():
    weights = random_weights(shapes_of(config_of()))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    return weights


def test_hf_tensors_tied_head_that_is_the_embedding_is_dropped(with_head):
    found = canonical({"tie_word_embeddings": True}, with_head)
    assert "lm_head.weight" not in found
    embedding = found["model.embed_tokens.weight"]
    expected = with_head["model.embed_tokens.weight"]
    np.testing.assert_array_equal(embedding.read(100, 270), expected[100:], strict=True)


@pytest.mark.parametrize("row", [0, 150, 269])
def test_hf_tensors_tied_head_of_its_own_is_refused_where_it_is_read(row, with_head):
    with_head["lm_head.weight"][row, 5] += 1
    embedding = canonical({"tie_word_embeddings": True}, with_head)["model.embed_tokens.weight"]
    with pytest.raises(ConversionError, match=r"lm_head\.weight: differs from .*set it to false"):
        embedding.read(row, row + 1)


def test_hf_tensors_tied_head_of_another_shape_is_refused(with_head):
    with_head["lm_head.weight"] = with_head["lm_head.weight"][:100]
    with pytest.raises(ConversionError, match=r"lm_head\.weight: differs from .*set it to false"):
        canonical({"tie_word_embeddings": True}, with_head)


def test_hf_tensors_missing_head_that_nothing_ties_is_refused():
    weights = random_weights(shapes_of(config_of()))
    del weights["lm_head.weight"]
    with pytest.raises(ConversionError, match=r"lm_head\.weight is missing, .*true.* --config$"):
        canonical(None, weights)


def test_hf_tensors_one_in_two_spellings_is_refused():
    norm = np.ones(64, np.float32)
    with pytest.raises(ConversionError, match=r"model\.norm\.weight is there twice"):
        canonical(None, None, **{"norm.weight": norm})


@pytest.mark.parametrize(
    ("dtype", "name"), [("<f8", "float64"), ("<i8", "int64"), ("i1", "int8"), ("?", "bool")]
)
def test_hf_tensors_of_another_type_are_named(dtype, name):
    values = config_of()
    raw: dict[str, SourceTensor] = {
        name: Held(name, array) for name, array in random_weights(shapes_of(values)).items()
    }
    size = np.dtype(dtype).itemsize
    raw[Q_PROJ] = StoredArray(Q_PROJ, WHERE, dtype, (64, 64), [Extent(0, 64 * 64 * size)])
    config = config_from_hugging_face(WHERE, values, raw)
    with pytest.raises(ConversionError, match=rf"^{Q_PROJ}: expected .* found {name}$"):
        canonical_tensors(WHERE, raw, config)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"model.layers.2.mlp.up_proj.weight": np.ones((96, 64))}, r"no use for.*layers\.2\."),
        ({"lm_head.bias": np.ones(270)}, r"no use for.*lm_head\.bias"),
        ({"model.layers.0.mlp.up_proj.qweight": np.ones((8, 64))}, r"no use for.*qweight"),
        ({Q_PROJ: np.ones((64, 32))}, r"expected shape \(64, 64\), found \(64, 32\)"),
        ({Q_PROJ: np.ones((64, 64, 1))}, r"expected shape \(64, 64\), found \(64, 64, 1\)"),
        ({"model.norm.weight": np.ones(())}, r"expected shape \(64,\), found \(\)"),
    ],
)
def test_hf_tensors_that_are_not_the_config_s_are_named(more, complaint):
    with pytest.raises(ConversionError, match=rf"^repository: .*{complaint}"):
        canonical(None, None, **more)


def test_hf_tensors_missing_one_is_named():
    weights = random_weights(shapes_of(config_of()))
    del weights[Q_PROJ]
    with pytest.raises(ConversionError, match=rf"missing tensor\(s\): {Q_PROJ}"):
        canonical(None, weights)
