"""`convert --feedback`: moments of the right inputs reach the right matrices."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_gguf import write_gguf

from converter import watched
from converter.calibration import calibrate, open_weights
from converter.feedback import CalibrationText, Moments
from converter.pipeline import convert
from converter.sources.gguf import GgufSource
from qllama.errors import ContextLengthError, ConversionError
from qllama.format import QlmFile
from qllama.kernels import reference as ops
from qllama.model import reference
from qllama.progress import silent
from qllama.quant import codec
from qllama.quant.feedback import feedback_factor, with_feedback
from qllama.tensors import EMBEDDING, HEAD

WINDOWS = np.random.default_rng(0).integers(0, 270, (3, 16), np.int32)
NORMS = {f"blk.{i}.attn_norm.weight": np.ones(256, np.float32) for i in range(2)}
TEXT = CalibrationText("a.txt", lambda tokenizer: WINDOWS)


def on_layer(done, total):
    """Take progress."""


@pytest.fixture
def source(tmp_path):
    return write_gguf(tmp_path / "m.gguf", tied=False, extra=NORMS)


def test_moments_are_those_of_the_reference(tmp_path, source, monkeypatch):
    monkeypatch.setattr(watched, "_TOKENS_TOGETHER", 32)
    convert(source, tmp_path / "m.qlm", "f32", check=False)
    inputs = []
    linear = ops.linear
    with monkeypatch.context() as patch, QlmFile.open(tmp_path / "m.qlm") as file:
        patch.setattr(ops, "linear", lambda x, *rest: (inputs.append(x), linear(x, *rest))[1])
        for window in WINDOWS.tolist():
            reference.forward(file, window)
        names = [n for n, t in file.tensors.items() if len(t.shape) == 2 and n != EMBEDDING]
    with open_weights(source) as (weights, _):
        moments = Moments(weights, WINDOWS, on_layer)
        assert moments.of(EMBEDDING) is None
        for i, name in enumerate(names):
            x = np.concatenate(inputs[i :: len(names)])
            found = moments.of(name)
            np.testing.assert_allclose(found.importance, np.square(x).mean(axis=0), rtol=1e-3)
            if name == HEAD:
                assert found.factor is None
            else:
                # A factor's entries hang on all the moments: compare what it undoes.
                expected = feedback_factor(x.T @ x, WINDOWS.size)
                np.testing.assert_allclose(found.factor, expected, atol=1e-3 * expected.max())


def test_moments_of_matrices_with_the_same_inputs_are_one(source):
    with open_weights(source) as (weights, _):
        moments = Moments(weights, WINDOWS, on_layer)
        q, k, o = (moments.of(f"model.layers.0.self_attn.{n}_proj.weight") for n in "qko")
        gate, up = (moments.of(f"model.layers.0.mlp.{n}_proj.weight") for n in ("gate", "up"))
    assert q is k
    assert gate is up
    assert q is not o


def test_convert_with_feedback_stores_what_it_chooses_and_says_so(tmp_path, source):
    convert(source, tmp_path / "m.qlm", "q4", feedback=TEXT, check=False)
    tensors = GgufSource(source).tensors
    with open_weights(source) as (weights, _), QlmFile.open(tmp_path / "m.qlm") as file:
        assert file.provenance["feedback"] == {"text": "a.txt"}
        moments = Moments(weights, WINDOWS, on_layer)
        for name, info in file.tensors.items():
            if len(info.shape) == 2:
                w, known = tensors[name].read(0, info.shape[0]), moments.of(name)
                data = codec(info.type).quantize(w, None if known is None else known.importance)
                if known is not None and known.factor is not None:
                    data = with_feedback(info.type, w, data, known.factor)
                np.testing.assert_array_equal(file.data(name), data)


def test_convert_with_feedback_passes_the_check(tmp_path, source):
    report = convert(source, tmp_path / "m.qlm", "q4", feedback=TEXT)
    assert report.out.exists()


def test_convert_with_feedback_to_floats_changes_nothing(tmp_path, source):
    convert(source, tmp_path / "a.qlm", "f16", feedback=TEXT, check=False)
    convert(source, tmp_path / "b.qlm", "f16", check=False)
    with QlmFile.open(tmp_path / "a.qlm") as a, QlmFile.open(tmp_path / "b.qlm") as b:
        for name in a.tensors:
            np.testing.assert_array_equal(a.data(name), b.data(name))


def test_moments_of_windows_past_the_context_are_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", context_length=4)
    with open_weights(path) as (weights, _), pytest.raises(ContextLengthError, match="at most 4"):
        Moments(weights, WINDOWS, on_layer)


def test_moments_that_are_not_finite_are_refused_by_the_matrix(tmp_path):
    damaged = {"blk.1.attn_norm.weight": np.full(256, np.inf, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", extra=damaged)
    message = r"model\.layers\.1\.self_attn\.q_proj\.weight: expected finite"
    with pytest.raises(ConversionError, match=message):
        convert(path, tmp_path / "m.qlm", feedback=TEXT, check=False)
    assert not (tmp_path / "m.qlm").exists()


def test_importance_of_a_file_comes_before_that_of_the_text(tmp_path, source):
    from converter.importance import write_importance

    with open_weights(source) as (weights, _):
        sums = calibrate(weights, WINDOWS, silent)
    flat = {name: np.ones_like(values) for name, values in sums.items()}
    write_importance(tmp_path / "i.gguf", flat, 1, model="m", text="t", n_windows=1)
    for name, importance in (("a", None), ("b", tmp_path / "i.gguf")):
        out = tmp_path / f"{name}.qlm"
        convert(source, out, "q4", feedback=TEXT, importance=importance, check=False)
    with QlmFile.open(tmp_path / "a.qlm") as a, QlmFile.open(tmp_path / "b.qlm") as b:
        assert not np.array_equal(*(f.data("model.layers.0.mlp.up_proj.weight") for f in (a, b)))
