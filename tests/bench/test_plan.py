"""Names and order of tests are llama-bench's."""

from __future__ import annotations

import pytest

from qllama.bench import plan
from qllama.bench.plan import grid


@pytest.mark.parametrize(
    ("test", "name"),
    [
        (plan.Test(512, 0), "pp512"),
        (plan.Test(0, 128), "tg128"),
        (plan.Test(512, 0, depth=2048), "pp512 @ d2048"),
        (plan.Test(0, 64, depth=512, n_parallel=8), "tg64 x8 @ d512"),
        (plan.Test(256, 32), "pp256+tg32"),
    ],
)
def test_plan_test_is_named_as_llama_bench_does(test, name):
    assert test.name == name


def test_plan_test_counts_the_tokens_of_all_sequences():
    test = plan.Test(0, 16, depth=100, n_parallel=4)
    assert test.n_tokens == 64
    assert test.n_ctx == 116
    assert plan.Test(30, 12).n_tokens == 42


def test_plan_grid_lists_every_combination_depth_after_depth():
    tests = grid([8, 16], [4], [(8, 4)], [0, 32], [1, 3])
    shallow = ["pp8", "pp16", "tg4", "tg4 x3", "pp8+tg4"]
    assert [test.name for test in tests] == shallow + [f"{name} @ d32" for name in shallow]


def test_plan_grid_leaves_out_tests_of_zero_tokens():
    assert grid([0], [0]) == []
    assert [test.name for test in grid([0], [0, 5])] == ["tg5"]
