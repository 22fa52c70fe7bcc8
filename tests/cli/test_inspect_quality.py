"""`qllama inspect --quality`: what quantizing cost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama.cli.inspection.quality import quality_sections
from qllama.cli.inspection.subject import TensorFacts

UP_PROJ = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path):
    """A file whose layer 0 has one matrix that is all but lost."""
    too_small = np.full((512, 256), 1e-30, np.float32)
    source = write_gguf(tmp_path / "m.gguf", extra={"blk.0.ffn_up.weight": too_small})
    convert(source, tmp_path / "m.qlm", type="q8", check=False)
    return tmp_path / "m.qlm"


def test_inspect_quality_names_the_worst_matrix_first(run, model):
    lines = run("inspect", str(model), "--quality", "--no-speed").stdout.splitlines()
    worst = lines.index("Quality: the worst matrices")
    assert lines[worst + 2].split() == [
        "q8_0",
        "100.00%",
        "1.00e-30",
        "0.000000",
        "1.00e-30",
        UP_PROJ,
    ]
    assert len([line for line in lines[worst + 2 :] if line]) == 10
    kinds = lines[lines.index("Quality: the worst of each kind") + 2 : worst]
    (up_projs,) = [line.split() for line in kinds if line.endswith(".up_proj.weight")]
    # The largest figure of each sort: the error is that of layer 1.
    assert up_projs[:3] == ["2", "q8_0", "100.00%"]
    assert float(up_projs[3]) > 1e-5
    assert up_projs[-1] == "model.layers.*.mlp.up_proj.weight"


def test_inspect_quality_in_json_is_the_tensors(run, model):
    tensors = json.loads(
        run("inspect", str(model), "--quality", "--no-speed", "--format", "json").stdout
    )["tensors"]
    quality = {t["name"]: t["quality"] for t in tensors}
    assert quality[UP_PROJ]["relative_rmse"] == 1.0
    assert quality["model.norm.weight"] is None


@pytest.mark.parametrize("quality", [None, {"rmse": 0.25}, {"rmse": "x"}])
def test_quality_of_a_file_without_figures_says_so(quality):
    tensors = [TensorFacts("a", "q8_0", (16, 32), 544, quality=quality)]
    (section,) = quality_sections(tensors)
    assert section.rows[0][1].startswith("none: ")
