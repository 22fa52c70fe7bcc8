"""Scores of single tokens against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qllama.evaluation.scores import Comparison, compare, negative_log_likelihoods

# Logits are float32, whose rounding moves a log-probability of this size by 1e-7.
NEAR = {"rel": 1e-6, "abs": 1e-6}

P = [[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]
BASE = [[1 / 4, 1 / 2, 1 / 4], [1 / 8, 1 / 4, 5 / 8]]
TARGETS = np.array([1, 2], np.int32)


def logits(probabilities, offset=0.0):
    return (np.log(probabilities) + offset).astype(np.float32)


def test_nll_is_minus_the_log_of_the_probability_of_the_token_that_came():
    nll = negative_log_likelihoods(logits(P), TARGETS)
    assert nll == pytest.approx([math.log(4), math.log(4 / 3)], **NEAR)


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_nll_of_logits_beyond_the_exponentials_range_is_the_same(offset):
    # At 1000 a float32 is a multiple of 6.1e-5: half of that wrong at each end of a difference.
    nll = negative_log_likelihoods(logits(P, offset), TARGETS)
    assert nll == pytest.approx([math.log(4), math.log(4 / 3)], abs=1e-4)


def test_nll_does_not_change_the_logits():
    given = logits(P)
    negative_log_likelihoods(given, TARGETS)
    assert np.array_equal(given, logits(P))


def test_compare_gives_the_hand_computed_values():
    scores = compare(logits(P, 3.0), logits(BASE, -2.0), TARGETS)
    assert scores.nll == pytest.approx([math.log(4), math.log(4 / 3)], **NEAR)
    assert scores.base_nll == pytest.approx([math.log(2), math.log(8 / 5)], **NEAR)
    # 1/4 ln(1/4 : 1/2) + 1/2 ln(1/2 : 1/4) and 1/4 ln(1/4 : 1/8) + 5/8 ln(5/8 : 3/4)
    expected = [math.log(2) / 4, math.log(2) / 4 + 5 / 8 * math.log(5 / 6)]
    assert scores.kld == pytest.approx(expected, **NEAR)
    assert scores.delta_p == pytest.approx([-1 / 4, 1 / 8], **NEAR)
    assert scores.same_top.tolist() == [False, True]


def test_compare_with_itself_differs_nowhere():
    scores = compare(logits(P), logits(P), TARGETS)
    assert scores.kld.tolist() == [0, 0]
    assert scores.delta_p.tolist() == [0, 0]
    assert scores.same_top.all()


def test_compare_divergence_of_rounding_alone_is_not_negative():
    rng = np.random.default_rng(1)
    base = rng.standard_normal((200, 50)).astype(np.float32)
    scores = compare(base + np.float32(0.1), base, np.zeros(200, np.int32))
    assert scores.kld.min() >= 0
    assert scores.kld.max() < 1e-12


def test_comparison_joined_keeps_the_order():
    whole = compare(logits(P), logits(BASE), TARGETS)
    rows = [slice(0, 1), slice(1, 2)]
    joined = Comparison.joined([compare(logits(P)[r], logits(BASE)[r], TARGETS[r]) for r in rows])
    for name in ("nll", "base_nll", "kld", "delta_p", "same_top"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name)), name
