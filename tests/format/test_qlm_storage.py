"""Mapped or read: the same data, what each costs, and what may go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from qlm_sample import BLOB, SPECS, contents, write_sample

from qllama.errors import OutOfMemoryError, TruncatedError
from qllama.format import QlmFile, reader, storage


@pytest.fixture
def path(tmp_path):
    return write_sample(tmp_path / "sample.qlm")


def data_bytes(path):
    return path.stat().st_size - 65536


def test_read_file_holds_what_the_mapped_one_does(path):
    file = QlmFile.open(path, use_mmap=False)
    path.write_bytes(b"")
    assert file.tokenizer_blob == BLOB
    for spec in SPECS:
        data = file.data(spec.name)
        np.testing.assert_array_equal(data, contents(spec))
        assert data.ctypes.data % 64 == 0
        assert not data.flags.writeable


def test_read_file_tells_how_far_it_is(path, monkeypatch):
    monkeypatch.setattr(storage, "_CHUNK", 300)
    told = []
    QlmFile.open(path, use_mmap=False, on_progress=lambda done, total: told.append((done, total)))
    n_bytes = data_bytes(path)
    assert told == [(min(300 * (i + 1), n_bytes), n_bytes) for i in range(-(-n_bytes // 300))]


def test_read_file_larger_than_free_memory_says_what_to_do(path, monkeypatch):
    monkeypatch.setattr(storage, "available_bytes", lambda: data_bytes(path) - 1)
    with pytest.raises(OutOfMemoryError, match=r"sample.qlm: .* are free; .* without --no-mmap"):
        QlmFile.open(path, use_mmap=False)
    QlmFile.open(path)


def test_read_file_not_granted_says_what_to_do(path, monkeypatch):
    def refuse(n_bytes, *, huge):
        raise MemoryError

    monkeypatch.setattr(storage, "zeroed_pages", refuse)
    with pytest.raises(OutOfMemoryError, match="map the file instead"):
        QlmFile.open(path, use_mmap=False)


def test_read_file_cut_meanwhile_is_truncated(path, monkeypatch):
    zeroed_pages = storage.zeroed_pages

    def cut(n_bytes, *, huge):
        path.write_bytes(path.read_bytes()[:-1])
        return zeroed_pages(n_bytes, huge=huge)

    monkeypatch.setattr(storage, "zeroed_pages", cut)
    with pytest.raises(TruncatedError, match=r"sample.qlm: the file became shorter"):
        QlmFile.open(path, use_mmap=False)


@pytest.fixture
def populated(monkeypatch):
    """What `prefetch` has brought in, each as (bytes, whether it was still wanted)."""
    calls = []
    monkeypatch.setattr(reader, "populate", lambda data, wanted: calls.append((data.size, wanted)))
    monkeypatch.setattr(reader.threading, "Thread", AtOnce)
    return calls


class AtOnce:
    """A thread that runs where it is started."""

    def __init__(self, *, target, args, daemon):
        assert daemon
        self.start = lambda: target(*args)


def test_prefetch_brings_in_a_mapped_file_once(path, populated):
    file = QlmFile.open(path)
    file.prefetch()
    file.prefetch()
    ((size, is_wanted),) = populated
    assert size == data_bytes(path)
    assert is_wanted()
    file.close()
    assert not is_wanted()


def test_prefetch_leaves_a_file_that_was_read(path, populated):
    QlmFile.open(path, use_mmap=False).prefetch()
    assert populated == []


def test_prefetch_leaves_a_file_larger_than_free_memory(path, populated, monkeypatch):
    monkeypatch.setattr(reader, "available_bytes", lambda: data_bytes(path) - 1)
    QlmFile.open(path).prefetch()
    assert populated == []
