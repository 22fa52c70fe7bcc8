"""What quantizing cost: measured of every matrix, and kept in the file."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Ggml
from test_gguf_source import expected_tensors
from tiny_gguf import write_gguf

from converter import slabs
from converter.pipeline import convert
from converter.quality import Quality
from qllama.format.reader import QlmFile

UP_PROJ = "model.layers.0.mlp.up_proj.weight"


def measured(w, v):
    """Figures by their definitions, in float64."""
    w, v = w.astype(np.float64), v.astype(np.float64)
    error = w - v
    return {
        "rmse": np.sqrt(np.mean(error**2)),
        "relative_rmse": np.sqrt(np.mean(error**2) / np.mean(w**2)),
        "cosine": np.sum(w * v) / np.sqrt(np.sum(w * w) * np.sum(v * v)),
        "max_error": np.abs(error).max(),
    }


@pytest.mark.parametrize("preset", ["q4", "q8_0", "f16"])
def test_quality_in_the_file_is_that_of_its_values(tmp_path, preset, monkeypatch):
    monkeypatch.setattr(slabs, "_SLAB_VALUES", 1)
    source = write_gguf(tmp_path / "m.gguf", tied=False)
    report = convert(source, tmp_path / "out.qlm", type=preset, n_threads=2)
    values = expected_tensors(source, permuted=True)
    with QlmFile.open(tmp_path / "out.qlm") as file:
        for name, info in file.tensors.items():
            if len(info.shape) == 1:
                assert info.quality is None
                continue
            expected = measured(values[name], file.matrix(name))
            # Figures are kept with six digits.
            assert info.quality == pytest.approx(expected, rel=1e-5), name
            assert info.quality == report.quality[name].to_dict()
    assert 0 < report.quality[UP_PROJ].rmse < report.quality[UP_PROJ].max_error


def test_quality_of_carried_blocks_is_perfect(tmp_path):
    source = write_gguf(tmp_path / "m.gguf", matrices=Ggml.Q8_0)
    report = convert(source, tmp_path / "out.qlm", type="q8")
    assert set(report.quality.values()) == {Quality(0.0, 0.0, 1.0, 0.0)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, Quality(0.0, 0.0, 1.0, 0.0)), (1e-30, Quality(1e-30, 1.0, 0.0, 1e-30))],
    ids=["zeros", "too small for the type"],
)
def test_quality_of_a_matrix_without_a_direction_is_a_number(tmp_path, value, expected):
    weights = np.full((512, 256), value, np.float32)
    source = write_gguf(tmp_path / "m.gguf", extra={"blk.0.ffn_up.weight": weights})
    report = convert(source, tmp_path / "out.qlm", type="q8_0")
    assert report.quality[UP_PROJ] == expected


def test_quality_worst_tensor_is_named_at_the_end(tmp_path):
    too_small = np.full((512, 256), 1e-30, np.float32)
    source = write_gguf(tmp_path / "m.gguf", extra={"blk.0.ffn_up.weight": too_small})
    report = convert(source, tmp_path / "out.qlm", type="q8_0")
    assert str(report).endswith(f"; largest relative error 100.00%, of {UP_PROJ}")
