"""Damaged MindSpore checkpoints: one clear line each, and nothing written."""

from __future__ import annotations

import numpy as np
import pytest
import raw_mindspore as raw
from tiny_hf import config_of, random_weights, shapes_of
from tiny_mindspore import in_mindformers, write

from converter.pipeline import convert
from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.errors import ConversionError, QllamaError, UnsupportedModelError


@pytest.fixture
def weights():
    return random_weights(shapes_of(config_of()), "bf16")


@pytest.fixture
def tags(weights):
    return in_mindformers(weights)


def replaced(tag, values):
    return lambda tags: raw.checkpoint({**tags, tag: values})


NORM = "model.norm_out.weight"
MALFORMED = {
    "missing tensor": (
        lambda tags: raw.checkpoint({k: v for k, v in tags.items() if k != NORM}),
        r"missing tensor\(s\): model.norm.weight",
    ),
    "extra tensor": (
        lambda tags: raw.checkpoint({**tags, "model.extra": np.ones(3, np.float32)}),
        "Llama does not have: model.extra",
    ),
    "a layer too many": (
        lambda tags: raw.checkpoint(
            {**tags, "model.layers.2.ffn_norm.weight": np.ones(64, np.float32)}
        ),
        "layers.2.post_attention_layernorm",
    ),
    "wrong shape": (replaced(NORM, np.ones(63, np.float32)), r"expected shape \(64,\), found"),
    "scalar": (replaced(NORM, np.ones((), np.float32)), r"expected shape \(64,\), found \(\)"),
    "three dims": (replaced(NORM, np.ones((1, 64, 1), np.float32)), r"found \(1, 64, 1\)"),
    "integers": (replaced(NORM, np.ones(64, np.int8)), "is of type 'Int8', expected Float16"),
    "a slice of a parallel training": (
        replaced("lm_head.weight", np.ones((135, 64), np.float32)),
        "one of 2 slices from training",
    ),
    "slice too short": (
        lambda tags: (
            raw.checkpoint({k: v for k, v in tags.items() if k != NORM})
            + raw.message(NORM, [64], "Float32", bytes(255))
        ),
        r"expected 256 bytes for float32 \(64,\), found 255",
    ),
    "slice lost": (
        lambda tags: (
            raw.checkpoint({k: v for k, v in tags.items() if k != NORM})
            + raw.message(NORM, [64], "Float32", bytes(128))
        ),
        "expected 256 bytes .* found 128",
    ),
    "absurd dims": (
        lambda tags: (
            raw.checkpoint({k: v for k, v in tags.items() if k != NORM})
            + raw.message(NORM, [2**62, 2**62], "Float32", bytes(4))
        ),
        "expected 85070591730234615865843651857942052864 bytes",
    ),
    "truncated file": (lambda tags: raw.checkpoint(tags)[:-1], "truncated"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_mindspore_malformed_checkpoint_is_one_clear_line(tmp_path, tags, name):
    damage, expected = MALFORMED[name]
    path = write(tmp_path / "m", damage(tags))
    with pytest.raises(QllamaError, match=expected) as caught:
        convert(path, tmp_path / "out.qlm")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.qlm").exists()


def test_mindspore_unknown_layout_is_refused(tmp_path, tags):
    path = write(tmp_path, raw.checkpoint(tags))
    with pytest.raises(ConversionError, match="--rope-layout: expected half-split or interleaved"):
        open_source(path, SourceOptions(rope_layout="gptj"))


def test_mindspore_quantized_checkpoint_is_refused(tmp_path, tags):
    stored = {**tags, "model.layers.0.attention.wq.weight": np.ones((64, 64), np.int8)}
    with pytest.raises(UnsupportedModelError, match="convert the one that it was made from"):
        open_source(write(tmp_path, raw.checkpoint(stored)))


def test_mindspore_config_of_another_model_is_refused(tmp_path, tags):
    config = config_of(hidden_size=48)
    with pytest.raises(ConversionError, match="expected shape"):
        open_source(write(tmp_path, raw.checkpoint(tags), config))
