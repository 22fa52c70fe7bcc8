"""Estimates of speed follow from what a token reads."""

from __future__ import annotations

import math

import pytest

from qllama.bench import estimate
from qllama.bench.counts import ModelCounts

COUNTS = ModelCounts(
    n_bytes=2_000_000,
    n_params=4_000_000,
    step_bytes=1_000_000,
    layer_weights=3_000_000,
    head_weights=1_000_000,
    kv_bytes=500,
    attention_ops=4000,
    sliding_window=None,
)


def test_estimate_token_reads_weights_and_context_at_the_typical_share_of_the_speed(monkeypatch):
    monkeypatch.setattr(estimate, "TYPICAL_SHARE", 0.5)
    # 1 MB of weights, and 2000 positions of 500 bytes, at 10 GB/s.
    assert estimate.tokens_per_second(COUNTS, 2000, 20.0) == pytest.approx(10e9 / 2e6)


def test_estimate_read_speed_is_the_median_of_what_the_limits_measure(monkeypatch):
    closed = []

    class FakeLimits:
        def __init__(self, n_threads, memory):
            self.samples = iter([1.0, 9.0, 2.0, 3.0, 2.5])
            assert (n_threads, memory) == (3, "memory")

        def read_once(self, memory):
            return next(self.samples)

        def close(self):
            closed.append(True)

    monkeypatch.setattr(estimate, "stream_memory", lambda: "memory")
    monkeypatch.setattr(estimate, "Limits", FakeLimits)
    assert estimate.measured_read_gb_s(3) == 2.5
    assert closed == [True]


def test_estimate_read_speed_of_this_machine_is_a_number():
    assert 0 < estimate.measured_read_gb_s(1) < math.inf
