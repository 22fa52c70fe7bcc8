"""The limits are sane numbers of the right work; how large they are is the machine's affair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qllama.bench import limits as limits_module
from qllama.bench.limits import Limits, stream_memory
from qllama.kernels import probes
from qllama.kernels.dot import MAX_STEPS
from qllama.kernels.isa import current_isa


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


def test_limits_dot_products_count_two_operations_a_byte(limits, monkeypatch):
    told = []

    def seconds(probe, address, n_blocks, n_pieces):
        told.append(n_blocks * n_pieces)
        return 0.5

    monkeypatch.setattr(limits, "_seconds", seconds)
    limits.sample()
    register_bytes = 4 * current_isa().lanes
    block_bytes = MAX_STEPS * probes.DOT_ROWS * probes.DOT_CODES * register_bytes
    assert limits.dot4_gop_s == [pytest.approx(2 * told[-1] * block_bytes / 0.5 / 1e9)]


@pytest.mark.parametrize(
    ("available", "taken"), [(2**40, 512 * 2**20), (400 * 2**20, 100 * 2**20), (0, 2**20)]
)
def test_limits_stream_memory_takes_a_part_of_what_a_container_leaves(
    monkeypatch, available, taken
):
    monkeypatch.setattr(limits_module, "available_bytes", lambda: available)
    assert stream_memory().nbytes == taken


def test_limits_least_memory_is_enough_for_a_rate(monkeypatch, limits):
    monkeypatch.setattr(limits_module, "available_bytes", lambda: 0)
    assert limits.read_once(stream_memory()) > 0
