"""Statistics of a row, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from qllama.bench import plan
from qllama.bench.counts import ModelCounts
from qllama.bench.results import BenchModel, Row

COUNTS = ModelCounts(
    n_bytes=1000,
    n_params=900,
    step_bytes=10**9,
    layer_weights=3 * 10**9,
    head_weights=10**9,
    kv_bytes=10**6,
    attention_ops=10**6,
    sliding_window=None,
)


def measured(test, *seconds):
    return Row(BenchModel("m", "m.qlm"), COUNTS, test, 2, 256, "f16", True, list(seconds))


def test_results_rates_have_mean_and_sample_deviation():
    made = measured(plan.Test(0, 12), 1.0, 2.0, 4.0)
    assert made.samples == [12, 6, 3]
    assert made.mean == 7
    # Distances 5, -1 and -4: 42 over n - 1.
    assert made.deviation == pytest.approx(21**0.5)


def test_results_single_sample_has_no_deviation():
    assert measured(plan.Test(8, 0), 0.5).deviation == 0


def test_results_decode_reads_what_its_mean_speed_takes():
    # 12 steps of 1 GB and 78 positions of 1 MB, at 7 of 12 tokens a second.
    assert measured(plan.Test(0, 12), 1.0, 2.0, 4.0).read_gb_s == pytest.approx(12.078 * 7 / 12)


@pytest.mark.parametrize("test", [plan.Test(8, 0), plan.Test(8, 4)])
def test_results_prompt_has_no_read_rate(test):
    assert measured(test, 1.0).read_gb_s is None


def test_results_operations_are_those_of_all_tokens():
    # 4 tokens of 3e9 weights, logits of the last, 10 positions seen; in half a second.
    assert measured(plan.Test(4, 0), 0.5).gop_s == pytest.approx((2 * (12 + 1) + 0.01) / 0.5)
