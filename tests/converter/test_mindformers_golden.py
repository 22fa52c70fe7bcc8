"""Checkpoints that three releases of MindFormers saved, and the logits that they computed.

`golden/make_mindformers.py` made the files: the very modules of MindFormers 0.6, 1.3 and 1.5,
run on MindSpore 2.10. Row orders are theirs, so nothing here can agree by a shared mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.mindformers_names import FUSED_LAYOUTS, ROPE_LAYOUTS
from converter.sources.mindspore_file import ChecksumCheck, scan
from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.model.reference import forward

GOLDEN = Path(__file__).parent / "golden"

# Name -> --rope-layout, --fused-layout.
RELEASES = {
    "mindformers-0.6": ("interleaved", None),
    "mindformers-1.3-fused": ("half-split", "stacked"),
    "mindformers-1.5-fused": ("half-split", "grouped"),
    "mindformers-1.5": ("half-split", None),
}

# All of a release's arithmetic is in float32, of numbers that are exact in 16 bits; logits are of
# magnitudes up to 6, and two layers of sums of 32 to 96 products round differently.
TOLERANCE = 1e-4


class Opened:
    """The weights of a source, as `forward` takes those of a file."""

    def __init__(self, source: Any) -> None:
        self.config = source.config
        self.tensors = source.tensors

    def matrix(self, name: str) -> np.ndarray:
        return self.tensors[name].read(0, self.tensors[name].shape[0])

    vector = matrix


def difference(name: str, rope: str, fused: str | None) -> float:
    options = SourceOptions(config=GOLDEN / f"{name}.yaml", rope_layout=rope, fused_layout=fused)
    source = open_source(GOLDEN / f"{name}.ckpt", options)
    expected = np.load(GOLDEN / f"{name}.npz")
    logits = forward(Opened(source), expected["ids"].tolist())
    return float(np.abs(logits - expected["logits"]).max())


@pytest.mark.parametrize("name", RELEASES)
def test_mindformers_s_checkpoint_gives_mindformers_s_logits(name):
    assert difference(name, *RELEASES[name]) < TOLERANCE


@pytest.mark.parametrize("name", RELEASES)
def test_mindformers_s_checkpoint_in_another_row_order_does_not(name):
    rope, fused = RELEASES[name]
    for other in {(r, f) for r in ROPE_LAYOUTS for f in FUSED_LAYOUTS} - {(rope, fused)}:
        if fused is not None or other[0] != rope:
            assert difference(name, *other) > 1


@pytest.mark.parametrize("name", RELEASES)
def test_mindformers_s_checkpoint_is_sliced_and_its_checksum_agrees(name):
    file = scan(GOLDEN / f"{name}.ckpt")
    checksum = ChecksumCheck(file.path)
    assert checksum.crc is not None
    checksum.update(memoryview(file.path.read_bytes()))
    assert any(len(entry.extents) > 1 for entry in file.entries.values())
