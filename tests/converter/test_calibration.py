"""`qllama calibrate`: the sums of squares are those of the reference's forward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_gguf import write_gguf

from converter import watched
from converter.calibration import calibrate, open_weights
from converter.pipeline import convert
from qllama.errors import ContextLengthError, ConversionError
from qllama.format import QlmFile
from qllama.kernels import reference as ops
from qllama.model import reference
from qllama.progress import silent
from qllama.tensors import EMBEDDING, HEAD

WINDOWS = np.random.default_rng(0).integers(0, 270, (3, 8), np.int32)
NORMS = {f"blk.{i}.attn_norm.weight": np.ones(256, np.float32) for i in range(2)}


def inputs_of_linears(path, tokens, monkeypatch):
    """Inputs of all matrices, in the order in which the reference multiplies by them."""
    found = []
    linear = ops.linear
    with monkeypatch.context() as patch:
        patch.setattr(ops, "linear", lambda x, *rest: (found.append(x), linear(x, *rest))[1])
        with QlmFile.open(path) as file:
            reference.forward(file, tokens)
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_calibrate_sums_the_squares_of_what_matrices_are_multiplied_with(
    tmp_path, tied, monkeypatch
):
    source = write_gguf(tmp_path / "m.gguf", tied=tied, extra=NORMS)
    convert(source, tmp_path / "m.qlm", "f32", check=False)
    # Two windows at a time, and one.
    monkeypatch.setattr(watched, "_TOKENS_TOGETHER", 16)
    expected = [np.zeros(k) for k in (*(256, 256, 256, 256, 256, 256, 512) * 2, 256)]
    for window in WINDOWS.tolist():
        inputs = inputs_of_linears(tmp_path / "m.qlm", window, monkeypatch)
        for total, x in zip(expected, inputs, strict=True):
            total += np.square(x, dtype=np.float64).sum(axis=0)
    for path in (source, tmp_path / "m.qlm"):
        with open_weights(path) as (weights, _):
            sums = calibrate(weights, WINDOWS, silent)
        assert (HEAD in sums, EMBEDDING in sums) == (not tied, tied)
        head = sums.pop(EMBEDDING if tied else HEAD)
        for found, right in zip([*sums.values(), head], expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4)


def test_calibrate_a_sliding_window_is_seen(tmp_path):
    source = write_gguf(tmp_path / "m.gguf", extra=NORMS)
    with open_weights(source) as (weights, _):
        whole = calibrate(weights, WINDOWS, silent)
        weights.config = replace(weights.config, sliding_window=2)
        narrow = calibrate(weights, WINDOWS, silent)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert not np.allclose(whole[name], narrow[name], rtol=0.01)


def test_calibrate_windows_past_the_context_are_refused(tmp_path):
    with (
        open_weights(write_gguf(tmp_path / "m.gguf", context_length=4)) as (weights, _),
        pytest.raises(ContextLengthError, match=r"at most 4 tokens.*found 8.*-c"),
    ):
        calibrate(weights, WINDOWS, silent)


def test_calibrate_damaged_weights_are_refused_by_the_matrix_that_reads_them(tmp_path):
    damaged = {"blk.1.attn_norm.weight": np.full(256, np.inf, np.float32)}
    with (
        open_weights(write_gguf(tmp_path / "m.gguf", extra=damaged)) as (weights, _),
        pytest.raises(ConversionError, match=r"model.layers.1.self_attn.q_proj.weight.*NaN"),
    ):
        calibrate(weights, WINDOWS, silent)
