"""Means with their errors, percentiles, and what follows for perplexities.

The definitions are llama.cpp's: an error is one standard error of the mean, as if tokens
were independent of each other. Knows no model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qllama.evaluation.scores import Comparison

__all__ = ["Agreement", "Estimate", "agreement", "mean", "perplexity", "rms"]

Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure of the whole text, estimated from the tokens that were scored.

    Parameters
    ----------
    value : float
    error : float
        One standard error.
    """

    value: float
    error: float


class Agreement(NamedTuple):
    """How near a model is to its base.

    Parameters
    ----------
    ppl, base_ppl : Estimate
        Perplexities of the model and of the base.
    correlation : float
        Of the log-likelihoods of both; NaN where one of them never varies.
    ln_ppl_ratio, ppl_ratio, ppl_difference : Estimate
        Of the model's perplexity and the base's. Both stumble over the same tokens, so
        that these errors are smaller than those of the perplexities.
    mean_kld, mean_delta_p, rms_delta_p, same_top : Estimate
        Over tokens; `same_top` is the share of them on whose likeliest successor both agree.
    """

    ppl: Estimate
    base_ppl: Estimate
    correlation: float
    ln_ppl_ratio: Estimate
    ppl_ratio: Estimate
    ppl_difference: Estimate
    mean_kld: Estimate
    mean_delta_p: Estimate
    rms_delta_p: Estimate
    same_top: Estimate


def mean(values: Array) -> Estimate:
    """Return the mean.

    Parameters
    ----------
    values : float64, (n,)
        At least two.
    """
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(values.size - 1)))


def rms(values: Array) -> Estimate:
    """Return the root of the mean square.

    Parameters
    ----------
    values : float64, (n,)
        At least two.
    """
    square, error = mean(values**2)
    root = math.sqrt(square)
    return Estimate(root, error / (2 * root) if root else 0.0)


def perplexity(nll: Array) -> Estimate:
    """Return the perplexity: e to the mean negative log-likelihood.

    Parameters
    ----------
    nll : float64, (n,)
        At least two.
    """
    return _exponential(mean(nll))


def agreement(scores: Comparison) -> Agreement:
    """Return the figures of all scored tokens, at least two."""
    nll, base_nll = scores.nll, scores.base_nll
    ppl, base_ppl = perplexity(nll), perplexity(base_nll)
    ratio = mean(nll - base_nll)
    # To first order a perplexity errs by itself times the error of its logarithm.
    difference = mean(ppl.value * nll - base_ppl.value * base_nll)
    deviations = nll.std() * base_nll.std()
    covariance = ((nll - nll.mean()) * (base_nll - base_nll.mean())).mean()
    return Agreement(
        ppl=ppl,
        base_ppl=base_ppl,
        correlation=float(covariance / deviations) if deviations else math.nan,
        ln_ppl_ratio=ratio,
        ppl_ratio=_exponential(ratio),
        ppl_difference=Estimate(ppl.value - base_ppl.value, difference.error),
        mean_kld=mean(scores.kld),
        mean_delta_p=mean(scores.delta_p),
        rms_delta_p=rms(scores.delta_p),
        same_top=mean(scores.same_top.astype(np.float64)),
    )


def _exponential(logarithm: Estimate) -> Estimate:
    value = math.exp(logarithm.value)
    return Estimate(value, value * logarithm.error)
