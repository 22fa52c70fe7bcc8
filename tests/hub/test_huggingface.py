"""The way to the Hugging Face hub: the real client against a stand-in on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from hub_server import COMMIT, serving
from tiny_hf import config_of, write_repository

from qllama.errors import ConversionError, ModelNotFoundError, UnsupportedModelError
from qllama.format.reader import QlmFile
from qllama.hub import huggingface
from qllama.hub.huggingface import HubReference, parse
from qllama.hub.resolve import resolve_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path) -> dict[str, bytes]:
    """The files of a small model in two shards."""
    directory = write_repository(tmp_path / "repository", shards=2)
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def hub(monkeypatch):
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
        yield server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubReference("org/name")),
        ("HuggingFaceTB/SmolLM2-135M-GGUF", HubReference("HuggingFaceTB/SmolLM2-135M-GGUF")),
        ("org/name:q8_0", HubReference("org/name", "q8_0")),
        ("org/name:sub/model.gguf", HubReference("org/name", "sub/model.gguf")),
        ("name", None),
        ("./org/name", None),
        ("../name", None),
        ("/abs/name", None),
        ("~/name", None),
        ("a/b/c", None),
        ("org/name:", None),
        ("org/model.gguf", None),
        ("org/model.qlm", None),
        ("org/name with space", None),
    ],
)
def test_parse_reads_only_the_notation_of_the_hub(text, expected):
    assert parse(text) == expected


def test_reference_cache_name_is_one_file_name():
    assert HubReference("org/name", "sub/m.gguf").cache_name == "org--name--sub--m.gguf"


def test_resolve_fetches_converts_and_then_asks_no_more(hub, gguf_file, cache):
    content = gguf_file.read_bytes()
    hub.repos["org/name"] = {"tiny.Q8_0.gguf": content, "README.md": b"Hello."}
    seen: list[str] = []

    path = resolve_model("org/name", on_progress=lambda stage, *_: seen.append(stage))

    assert path == cache / "models" / "org--name-q4.qlm"
    assert list(dict.fromkeys(seen)) == [
        "downloading org/name",
        "checking tiny.Q8_0.gguf",
        "preparing the quantizers",
        "converting tiny.Q8_0.gguf",
    ]
    with QlmFile.open(path) as file:
        assert file.provenance["origin"] == f"hf:org/name/tiny.Q8_0.gguf@{COMMIT}"
        assert file.provenance["sha256"] == hashlib.sha256(content).hexdigest()
    n_requests = len(hub.requests)
    assert resolve_model("org/name") == path
    assert len(hub.requests) == n_requests


def test_fetch_takes_the_wanted_file_at_the_listed_commit(hub):
    hub.repos["org/name"] = {"a.Q8_0.gguf": b"8", "sub/a.Q4_0.gguf": b"4"}
    found = huggingface.fetch(HubReference("org/name", "q4_0"), lambda *_: None)
    assert found.path.read_bytes() == b"4"
    assert any(f"/resolve/{COMMIT}/sub/a.Q4_0.gguf" in r for r in hub.requests)


@pytest.mark.parametrize("error", [RuntimeError("stop"), ConnectionError("stop"), OSError("stop")])
def test_fetch_what_the_progress_callback_raises_comes_through(hub, error):
    hub.repos["org/name"] = {"a.gguf": b"content"}

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("downloading"):
            raise error

    with pytest.raises(type(error)) as caught:
        huggingface.fetch(HubReference("org/name"), stop)
    assert caught.value is error


def test_fetch_that_the_disk_cannot_hold_is_refused_unless_it_is_there_already(
    hub, repository, monkeypatch
):
    hub.repos["org/name"] = repository
    reference = HubReference("org/name")
    with monkeypatch.context() as context:
        context.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(ModelNotFoundError) as refused:
            huggingface.fetch(reference, lambda *_: None)
    weights = [n for n in repository if "tensors" in n]
    total = sum(len(content) for name, content in repository.items() if name != "README.md")
    assert len(weights) == 3
    assert f"org/name: no space to download it: it needs {total} bytes, 10 are free" in str(
        refused.value
    )
    assert not any("/resolve/" in asked for asked in hub.requests)

    huggingface.fetch(reference, lambda *_: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    assert huggingface.fetch(reference, lambda *_: None).path.is_file()


def test_fetch_file_with_another_hash_is_refused(hub):
    hub.repos["org/name"] = {"a.gguf": b"content"}
    hub.wrong_hashes.add("a.gguf")
    with pytest.raises(ModelNotFoundError, match="not the file that the hub describes"):
        huggingface.fetch(HubReference("org/name"), lambda *_: None)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "GatedRepo", "gated: accept its terms"),
        (403, "GatedRepo", "gated: accept its terms"),
        (404, "RepoNotFound", "no such repository on the Hugging Face hub"),
        (401, "RepoNotFound", "no such repository on the Hugging Face hub"),
        (403, "", "could not be reached or refused"),
        (400, "", "could not be reached or refused"),
    ],
)
def test_fetch_refusal_is_one_line(hub, status, code, expected):
    hub.refusals["org/name"] = (status, code)
    with pytest.raises(ModelNotFoundError, match=expected) as caught:
        huggingface.fetch(HubReference("org/name"), lambda *_: None)
    assert str(caught.value).startswith("org/name: ")
    assert "\n" not in str(caught.value)


def test_resolve_repository_without_gguf_is_converted_from_its_shards(hub, cache, repository):
    others = ("consolidated.safetensors", "pytorch_model.bin", "README.md")
    hub.repos["org/name"] = repository | dict.fromkeys(others, b"other")
    seen: list[tuple[str, int, int]] = []

    path = resolve_model("org/name", type="f32", on_progress=lambda *step: seen.append(step))

    assert path == cache / "models" / "org--name-f32.qlm"
    with QlmFile.open(path) as file:
        assert file.provenance["origin"] == f"hf:org/name@{COMMIT}"
        assert {f["name"]: f["sha256"] for f in file.provenance["files"]} == {
            name: hashlib.sha256(content).hexdigest()
            for name, content in repository.items()
            if name.endswith(".safetensors")
        }
    steps = [(done, total) for stage, done, total in seen if stage == "downloading org/name"]
    total = sum(len(content) for content in repository.values())
    assert steps[-1] == (total, total)
    assert steps == sorted(steps)
    assert not any(other in request for other in others for request in hub.requests)


def test_resolve_repository_with_a_damaged_shard_leaves_nothing(hub, cache, repository):
    hub.repos["org/name"] = repository
    hub.damaged.add("model-00002-of-00002.safetensors")
    with pytest.raises(ConversionError, match=r"model-00002-.*: expected sha256"):
        resolve_model("org/name", type="f32")
    assert not list((cache / "models").glob("*.qlm"))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"model_type": "gemma3"}, UnsupportedModelError),
        ({"rope_scaling": {"type": "longrope"}}, UnsupportedModelError),
        ({"model_type": None}, ConversionError),
    ],
)
def test_fetch_model_that_cannot_run_is_refused_before_its_weights(hub, repository, config, error):
    content = json.dumps(config_of(**config)).encode()
    hub.repos["org/name"] = repository | {"config.json": content}
    with pytest.raises(error, match=next(iter(config))):
        huggingface.fetch(HubReference("org/name"), lambda *_: None)
    assert not any("safetensors" in request for request in hub.requests)


def test_fetch_unreachable_hub_is_one_line():
    with pytest.raises(ModelNotFoundError, match="could not be reached or refused") as caught:
        huggingface.fetch(HubReference("org/name"), lambda *_: None)
    assert "\n" not in str(caught.value)


def test_fetch_offline_mode_is_named(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        huggingface.fetch(HubReference("org/name"), lambda *_: None)
    assert hub.requests == []


def test_fetch_and_its_verification_import_no_numba(hub, tmp_path):
    hub.repos["org/name"] = {"a.gguf": b"content"}
    program = """
import sys
from qllama.hub.huggingface import HubReference, fetch
stages = []
fetch(HubReference("org/name"), lambda stage, *_: stages.append(stage))
print(stages[-1], "numba" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "checking a.gguf False\n"


def test_resolve_in_a_new_process_honours_the_environment(hub, gguf_file, cache, tmp_path):
    hub.repos["org/name"] = {"tiny.gguf": gguf_file.read_bytes()}
    program = "from qllama.hub.resolve import resolve_model; print(resolve_model('org/name'))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(cache / "models" / "org--name-q4.qlm")
    assert (tmp_path / "home" / "hub" / "models--org--name").is_dir()
    # Progress is for the caller to show.
    assert result.stderr == ""
