"""Memory that is committed as it is touched, and no sooner."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from qllama.memory import zeroed_pages

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
