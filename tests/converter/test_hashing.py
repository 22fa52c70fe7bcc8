"""Hashes of a checkpoint's files, computed beside its conversion."""

from __future__ import annotations

import hashlib
import threading

import pytest

from converter import hashing
from converter.hashing import SourceHashes
from qllama.errors import ConversionError


def silent(done: int, total: int) -> None:
    """Take progress."""


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.bin", tmp_path / "b.bin", tmp_path / "empty.bin"]
    for path, size in zip(paths, (1000, 70_000, 0), strict=True):
        path.write_bytes(path.name.encode() * size)
    return paths


def test_hashes_are_those_of_the_files(files):
    with SourceHashes(files, {}) as hashes:
        found = hashes.finish(silent)
    assert found == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_hashes_that_are_known_are_not_computed(files):
    files[0].unlink()
    with SourceHashes(files, {files[0]: "ab"}) as hashes:
        assert hashes.finish(silent)[files[0]] == "ab"


def test_hashes_follow_the_conversion(files, monkeypatch):
    monkeypatch.setattr(hashing, "_CHUNK", 100)
    monkeypatch.setattr(hashing, "_AHEAD", 1000)
    with SourceHashes(files, {}) as hashes:
        hashes.follow(0.0)
        with hashes._moved:
            waits = hashes._moved.wait_for(lambda: False, 0.2)
        assert waits is False
        assert hashes._done <= 1100
        hashes.finish(silent)
        assert hashes._done == sum(path.stat().st_size for path in files)


def test_hashes_progress_ends_at_the_total(files):
    seen = []
    with SourceHashes(files, {}) as hashes:
        hashes.finish(lambda done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in files)
    assert seen[-1] == (total, total)


def test_hashes_file_that_vanished_is_named(files):
    hashes = SourceHashes(files, {})
    files[1].unlink()
    with hashes, pytest.raises(ConversionError, match=r"b\.bin: cannot be read: No such file"):
        hashes.finish(silent)


def test_hashes_thread_ends_with_the_block(files):
    before = set(threading.enumerate())
    with SourceHashes(files, {}):
        (thread,) = set(threading.enumerate()) - before
    assert not thread.is_alive()
