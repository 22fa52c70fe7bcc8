"""Memory that is committed as it is touched, and no sooner."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import psutil
import pytest

from qllama import control_groups, memory
from qllama.memory import available_bytes, populate, zeroed_pages

MIB = 2**20


def rss():
    return psutil.Process().memory_info().rss


def test_zeroed_pages_are_zero_and_start_on_a_page():
    memory = zeroed_pages(5000)
    assert memory.dtype == np.uint8
    assert memory.shape == (5000,)
    assert not memory.any()
    assert memory.ctypes.data % 4096 == 0
    memory[:] = 1


@pytest.mark.parametrize("n_bytes", [2**50, 2**70])
def test_zeroed_pages_past_all_memory_are_a_memory_error(n_bytes):
    with pytest.raises(MemoryError):
        zeroed_pages(n_bytes)


def test_zeroed_pages_touched_here_and_there_commit_little():
    memory = zeroed_pages(256 * MIB)
    before = rss()
    memory[:: 2 * MIB] = 1
    assert rss() - before < 16 * MIB


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A mapped file of 16 MiB and some bytes, of which nothing was touched, in pieces of 1 MiB."""
    monkeypatch.setattr(memory, "_PIECE", MIB)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4096 * 16 + b"end")
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the process' page table")
@pytest.mark.parametrize("offset", [0, 100, 5000])
def test_populate_maps_every_page_of_a_file(mapped, offset):
    before = rss()
    populate(mapped[offset:], lambda: True)
    assert rss() - before >= 16 * MIB - 8192
    assert mapped[-3:].tobytes() == b"end"


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is populated there")
def test_populate_stops_when_the_rest_is_not_wanted(mapped, monkeypatch):
    answers = iter([True, False])
    before = rss()
    populate(mapped, lambda: next(answers))
    assert rss() - before < 8 * MIB
    assert list(answers) == []


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Puts this process into a control group: its /proc/self/cgroup, and files at the root."""
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "_OWN", tmp_path / "own")

    def put(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    return put


VERSION_2 = {
    "memory.max": "max",
    "memory.current": "9000000",
    "a/memory.max": "5000000",
    "a/memory.current": "4000000",
    "a/memory.stat": "anon 3000000\nfile 700000\nfile_mapped 5\nkernel 1",
}
VERSION_1 = {
    "memory/a/memory.limit_in_bytes": "5000000",
    "memory/a/memory.usage_in_bytes": "4000000",
    "memory/a/memory.stat": "cache 1\ntotal_cache 600000\ntotal_rss 3000000",
    "memory/memory.limit_in_bytes": "9223372036854771712",
    "memory/memory.usage_in_bytes": "9000000",
}


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b", VERSION_2, 1_700_000),
        ("4:memory:/a\n3:cpu:/", VERSION_1, 1_600_000),
        ("0::/", VERSION_2, None),
        ("", {}, None),
    ],
)
def test_available_bytes_are_what_machine_and_group_leave(group, monkeypatch, own, files, expected):
    free = 10**12
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("memory", (), {"available": free})())
    group(own, files)
    assert available_bytes() == (free if expected is None else expected)
    free = 5
    assert available_bytes() == 5
