"""A tiny model, converted once."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Ggml
from tiny_gguf import write_gguf

from converter.pipeline import convert


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Two layers of q8_0, with the head tied to the embedding and with one of its own."""
    directory = tmp_path_factory.mktemp("bench")
    paths = {}
    for name in ("tied", "untied"):
        source = write_gguf(directory / f"{name}.gguf", tied=name == "tied", matrices=Ggml.Q8_0)
        paths[name] = directory / f"{name}.qlm"
        convert(source, paths[name], type="q8_0")
    return paths
