from __future__ import annotations

import math

import numpy as np
import pytest

from qllama.generation import filters

INF = math.inf


def float32(*values):
    return np.array(values, np.float32)


def random_logits(n, seed, scale=3.0, decimals=None):
    """Return noise; few `decimals` give many ties."""
    logits = np.random.default_rng(seed).normal(0, scale, n)
    return (logits if decimals is None else logits.round(decimals)).astype(np.float32)


def by_falling_logit(logits):
    return np.argsort(-logits, kind="stable")


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("k", [1, 2, 7, 40, 4999, 10**9])
def test_top_k_any_size_keeps_the_first_of_a_stable_sort(n, k, decimals):
    logits = random_logits(n, seed=n, decimals=decimals)
    kept = filters.top_k(logits, k)
    assert kept.tolist() == sorted(by_falling_logit(logits)[:k].tolist())


def test_top_k_forbidden_tokens_are_kept_only_when_nothing_else_is_left():
    logits = np.full(1000, -INF, np.float32)
    logits[[999, 500]] = 1
    assert filters.top_k(logits, 3).tolist() == [0, 500, 999]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0, [1]),
        (0.3, [1]),
        (0.4, [1]),
        (0.45, [1, 3]),
        (0.7, [1, 3]),
        (0.75, [1, 3, 4]),
        (0.95, [0, 1, 3, 4]),
        (1, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_known_probabilities_keeps_the_fewest_that_reach_p(p, kept):
    # 0.4000001: p=0.4 must not depend on how the sum rounds.
    logits = np.log(float32(0.1, 0.4000001, 0.01, 0.3, 0.19))
    assert filters.top_p(logits, p).tolist() == kept


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 40, 3000])
def test_top_p_any_distribution_keeps_the_smallest_head_that_reaches_p(n, p, scale):
    logits = random_logits(n, seed=7, scale=scale)
    kept = filters.top_p(logits, p)
    order = by_falling_logit(logits)
    assert kept.tolist() == sorted(order[: kept.size].tolist())
    mass = np.cumsum(np.exp(logits[order] - logits.max(), dtype=np.float64))
    mass /= mass[-1]
    # Float32 exponentials are right to an ulp or two (1.2e-7 each), and so is their sum.
    assert mass[kept.size - 1] >= p - 1e-6
    assert kept.size == 1 or mass[kept.size - 2] < p + 1e-6


def test_top_p_equal_logits_keeps_the_lowest_ids():
    assert filters.top_p(np.zeros(8, np.float32), 0.5).tolist() == [0, 1, 2, 3]


def test_top_p_forbidden_tokens_are_left_out():
    assert filters.top_p(float32(-INF, 2, -INF, 2), 0.999).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0, [0, 1, 2, 3]), (0.05, [0, 1, 3]), (0.2, [1, 3]), (0.8, [1]), (1, [1])],
)
def test_min_p_known_probabilities_keeps_those_near_the_largest(p, kept):
    logits = np.log(float32(0.1, 0.57, 0.02, 0.31))
    assert filters.min_p(logits, p).tolist() == kept


def test_min_p_of_one_keeps_all_equals_of_the_largest():
    assert filters.min_p(float32(3, 1, 3), 1).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0, [1]), (0.29, [1]), (0.31, [0, 1]), (0.79, [0, 1]), (0.9, [0, 1, 3]), (1, [0, 1, 2, 3])],
)
def test_typical_known_probabilities_keeps_those_nearest_the_entropy(p, kept):
    # Information 0.69, 1.20, 4.61, 1.66 nats, entropy 1.09: distances 0.39, 0.12, 3.5, 0.57.
    logits = np.log(float32(0.5, 0.3, 0.01, 0.19))
    assert filters.typical(logits, p).tolist() == kept


def test_typical_forbidden_tokens_do_not_spoil_the_entropy():
    assert filters.typical(float32(1, -INF, 1), 0.9).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        (0.6, [0, 1, 2, 3, 4]),
        (0.3, [0, 1, 2, 3, 4]),
        (0.2, [0, 2, 3, 4]),
        (0.1, [2]),
        (0, [2]),
    ],
)
def test_xtc_of_the_top_choices_only_the_last_stays(threshold, kept):
    logits = np.log(float32(0.1001, 0.4, 0.1001, 0.25, 0.1498))
    assert filters.xtc(logits, threshold).tolist() == kept


def test_xtc_leaves_out_no_choice_for_a_token_that_cannot_come():
    assert filters.xtc(float32(1, -np.inf, 2, -np.inf), 0.0).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("mu", "kept"), [(0.5, [1]), (1.1, [1]), (2.1, [1, 3]), (3.5, [0, 1, 3]), (9, [0, 1, 2, 3])]
)
def test_mirostat_keeps_what_surprises_at_most_so_much(mu, kept):
    # 3.06, 1, 6.06 and 2 bits, but for rounding.
    logits = np.log(float32(0.12, 0.5, 0.015, 0.25))
    assert filters.mirostat(logits, mu).tolist() == kept


@pytest.mark.parametrize(
    "call",
    [
        lambda x: filters.top_k(x, 0),
        lambda x: filters.top_p(x, 1.01),
        lambda x: filters.top_p(x, math.nan),
        lambda x: filters.min_p(x, -0.01),
        lambda x: filters.typical(x, -0.1),
    ],
)
def test_filters_parameter_out_of_range_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call(float32(1, 2, 3))
