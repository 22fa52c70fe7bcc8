"""Means, errors and what follows from them, against llama.cpp's own formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qllama.evaluation.estimates import agreement, mean, perplexity, rms
from qllama.evaluation.scores import Comparison


@pytest.fixture
def scores():
    rng = np.random.default_rng(3)
    base_nll = rng.exponential(2.0, 500)
    nll = np.maximum(base_nll + 0.1 * rng.standard_normal(500), 0.01)
    return Comparison(nll, base_nll, rng.exponential(0.01, 500), rng.random(500) < 0.9)


def test_mean_has_the_standard_error_of_independent_values():
    # Mean 2, squared deviations 1 + 0 + 1 = 2, variance 2/3, error sqrt(2/3 / 2).
    assert mean(np.array([1.0, 2.0, 3.0])) == pytest.approx((2, math.sqrt(1 / 3)))


def test_rms_is_the_root_with_half_its_relative_error():
    # Squares 1 and 9: mean 5, error 4 of it, so sqrt(5) and 4 / (2 sqrt(5)).
    assert rms(np.array([-1.0, 3.0])) == pytest.approx((math.sqrt(5), 2 / math.sqrt(5)))


def test_rms_of_nothing_but_zeros_is_zero():
    assert rms(np.zeros(4)) == (0, 0)


def test_perplexity_of_likelihoods_is_the_inverse_of_their_geometric_mean():
    nll = -np.log([1 / 2, 1 / 8])
    # ln 4 on average, each ln 2 away from it.
    assert perplexity(nll) == pytest.approx((4, 4 * math.log(2)))


def test_agreement_follows_llama_cpps_formulas_of_sums(scores):
    """The way of tools/perplexity: sums of values, squares and products."""
    n, a, b = len(scores.nll), scores.nll, scores.base_nll

    def mean_and_uncertainty(values):
        value = values.sum() / n
        return value, math.sqrt(((values**2).sum() / n - value**2) / (n - 1))

    (log_a, error_a), (log_b, error_b) = mean_and_uncertainty(a), mean_and_uncertainty(b)
    covariance = ((a * b).sum() / n - a.sum() / n * b.sum() / n) / (n - 1)
    ratio_error = math.sqrt(error_a**2 + error_b**2 - 2 * covariance)
    ppl_a, ppl_b = math.exp(log_a), math.exp(log_b)
    ratio = ppl_a / ppl_b
    square, square_error = mean_and_uncertainty(scores.delta_p**2)
    top = np.count_nonzero(scores.same_top) / n
    expected = {
        "ppl": (ppl_a, ppl_a * error_a),
        "base_ppl": (ppl_b, ppl_b * error_b),
        "correlation": covariance / (error_a * error_b),
        "ln_ppl_ratio": (log_a - log_b, ratio_error),
        "ppl_ratio": (ratio, ratio * ratio_error),
        "ppl_difference": (
            ppl_a - ppl_b,
            math.sqrt(
                (ppl_a * error_a) ** 2 + (ppl_b * error_b) ** 2 - 2 * ppl_a * ppl_b * covariance
            ),
        ),
        "mean_kld": mean_and_uncertainty(scores.kld),
        "mean_delta_p": mean_and_uncertainty(scores.delta_p),
        "rms_delta_p": (math.sqrt(square), 0.5 / math.sqrt(square) * square_error),
        "same_top": (top, math.sqrt(top * (1 - top) / (n - 1))),
    }
    found = agreement(scores)._asdict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Sums of squares cancel: llama.cpp's way loses digits here, ours does not.
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_agreement_of_a_model_that_never_wavers_has_no_correlation(scores):
    constant = Comparison(np.full(4, 0.5), scores.base_nll[:4], np.zeros(4), np.ones(4, bool))
    with np.errstate(all="raise"):
        assert math.isnan(agreement(constant).correlation)
