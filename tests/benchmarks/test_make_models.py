"""Synthetic models: qllama takes them for what they imitate, and none is left half made."""

from __future__ import annotations

import numpy as np
import pytest

import make_models
from converter.sources.gguf import GgufSource

SHAPE = make_models.Shape(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=96,
)


@pytest.fixture
def small(monkeypatch):
    """Small models by the names of the large ones."""
    monkeypatch.setattr(make_models, "_VOCAB_SIZE", 300)
    monkeypatch.setattr(make_models, "SHAPES", {"1b": SHAPE, "3b": SHAPE})


def test_write_gguf_is_a_llama_of_the_shape(small, tmp_path):
    path = tmp_path / "tiny.gguf"
    make_models.write_gguf(SHAPE, "tiny", path)
    source = GgufSource(path)
    config = source.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 2, 300)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.head_dim, config.intermediate_size) == (16, 96)
    assert config.tie_word_embeddings
    assert config.rope_scaling is not None
    weights = source.tensors["model.layers.1.mlp.down_proj.weight"].read(0, 64)
    assert weights.shape == (64, 96)
    assert 0.015 < weights.std() < 0.025


def test_write_gguf_rotary_divisors_are_those_of_llama_3():
    divisors = make_models._rope_divisors(64)
    # transformers' inv_freq of Llama 3.2 1B, base 500000: kept, blended and divided by 32.
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 64, 2) / 64)
    assert (divisors[wavelengths < 8192 / 4] == 1).all()
    np.testing.assert_allclose(divisors[wavelengths > 8192], 32, rtol=1e-6)
    between = (wavelengths >= 8192 / 4) & (wavelengths <= 8192)
    assert between.any()
    assert ((divisors[between] > 1) & (divisors[between] < 32)).all()


def test_maker_failure_leaves_no_file_by_the_final_name(small, tmp_path):
    maker = make_models.Maker(tmp_path, "false")
    with pytest.raises(make_models.subprocess.CalledProcessError):
        maker.quantize("1b", "Q4_0", "--pure")
    assert not (tmp_path / "1b-Q4_0.gguf").exists()
    assert (tmp_path / "1b-F16.gguf").exists()


def test_maker_keeps_what_is_there(tmp_path):
    (tmp_path / "1b-Q4_0.gguf").write_text("kept")
    make_models.Maker(tmp_path, "false").quantize("1b", "Q4_0", "--pure")
    assert (tmp_path / "1b-Q4_0.gguf").read_text() == "kept"
    assert not (tmp_path / "1b-F16.gguf").exists()
