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


def test_penalties_hand_computed_numbers_are_met():
    logits = float32(2, -1, 0, 4, 1)
    penalized = filters.apply_penalties(
        logits, np.array([0, 1, 0, 3, 2, 0], np.int32), repeat=2, presence=0.5, frequency=0.25
    )
    # used 3, 1, 1, 1, 0 times: 2/2-0.75-0.5, -1*2-0.25-0.5, 0-0.25-0.5, 4/2-0.25-0.5
    assert penalized.tolist() == [-0.25, -2.75, -0.75, 1.25, 1]
    assert penalized.dtype == np.float32
    assert logits.tolist() == [2, -1, 0, 4, 1]


def test_penalties_forbidden_token_stays_forbidden():
    recent = np.array([0], np.int32)
    out = filters.apply_penalties(float32(-INF, 0), recent, repeat=1.5, presence=-1, frequency=0)
    assert out.tolist() == [-INF, 0]


@pytest.mark.parametrize(
    ("recent", "repeat"), [([], 2.0), ([0, 1], 1.0)], ids=["nothing used", "all off"]
)
def test_penalties_without_effect_return_the_logits_themselves(recent, repeat):
    logits = float32(1, 2)
    out = filters.apply_penalties(
        logits, np.array(recent, np.int32), repeat=repeat, presence=0, frequency=0
    )
    assert out is logits


def test_logit_bias_is_added_and_can_forbid():
    logits = float32(1, 2, 3)
    assert filters.apply_logit_bias(logits, {0: 0.5, 2: -INF}).tolist() == [1.5, 2, -INF]
    assert logits.tolist() == [1, 2, 3]


@pytest.mark.parametrize("token", [-1, 3])
def test_logit_bias_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=rf"logit_bias: .* 0\.\.2, found {token}"):
        filters.apply_logit_bias(float32(1, 2, 3), {token: 1.0})


@pytest.mark.parametrize(
    "call",
    [
        lambda x: filters.top_k(x, 0),
        lambda x: filters.top_p(x, 1.01),
        lambda x: filters.top_p(x, math.nan),
        lambda x: filters.min_p(x, -0.01),
        lambda x: filters.apply_penalties(
            x, np.array([0], np.int32), repeat=0, presence=0, frequency=0
        ),
    ],
)
def test_filters_parameter_out_of_range_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call(float32(1, 2, 3))
