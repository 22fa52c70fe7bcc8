"""The limits are sane numbers of the right work; how large they are is the machine's affair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qllama.bench import limits as limits_module
from qllama.bench.limits import Limits, stream_memory
from qllama.kernels import probes


@pytest.fixture
def limits():
    made = Limits(2, np.ones(2**20, np.uint8))
    yield made
    made.close()


def test_limits_sample_takes_each_limit_once(limits):
    limits.sample()
    limits.sample()
    assert limits.n_samples == 2
    for samples in (limits.read_gb_s, limits.read_ahead_gb_s, limits.dot4_gop_s):
        assert len(samples) == 2
        assert all(math.isfinite(sample) and sample > 0 for sample in samples)


def test_limits_dot_products_outrun_the_memory_that_would_feed_them(limits):
    # Each operand byte takes part in two operations: fed from memory alone, the rates in
    # 10^9 would be at most twice apart. Registers are far ahead on any CPU.
    big = Limits(1, stream_memory()[: 64 * 2**20])
    big.sample()
    assert big.dot4_gop_s[0] > 2 * max(big.read_gb_s[0], big.read_ahead_gb_s[0])
    big.close()


def test_limits_best_read_is_the_method_of_the_larger_median(limits):
    limits.read_gb_s, limits.read_ahead_gb_s = [5.0, 9.0, 1.0], [4.0, 4.0, 20.0]
    assert limits.best_read == ("plain", [5.0, 9.0, 1.0])
    limits.read_ahead_gb_s = [6.0, 6.0, 1.0]
    assert limits.best_read == ("prefetched", [6.0, 6.0, 1.0])


@pytest.mark.parametrize("n_bytes", [576, 5000, 3 * 2**20])
def test_limits_rate_counts_what_was_read(limits, monkeypatch, n_bytes):
    """The rate is that of the bytes that the probe was told to read, nearly all there are."""
    told = []

    def seconds(probe, address, piece_bytes, n_pieces):
        told.append((piece_bytes, n_pieces))
        assert address % 64 == 0
        return 0.5

    monkeypatch.setattr(limits, "_seconds", seconds)
    rate = limits.read_once(np.zeros(n_bytes, np.uint8))
    piece_bytes, n_pieces = told[0]
    assert piece_bytes % probes.READ_UNIT == 0
    assert rate == piece_bytes * n_pieces / 0.5 / 1e9
    assert n_bytes - 64 - piece_bytes < piece_bytes * n_pieces <= n_bytes


def test_limits_stream_memory_takes_a_part_of_what_there_is(monkeypatch):
    class Little:
        available = 4 * 2**20

    assert stream_memory().nbytes <= 512 * 2**20
    monkeypatch.setattr(limits_module.psutil, "virtual_memory", Little)
    assert stream_memory().nbytes == 2**20
