"""How likely a model holds tokens to be, from its logits as they are.

Temperature, penalties and filters do not enter: these are the model's own
probabilities, as in the OpenAI API. All sums in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qllama.generation.filters import top_k

__all__ = ["TokenLogprob", "log_sum_exp", "token_logprob"]


class TokenLogprob(NamedTuple):
    """A chosen token and how likely it was.

    Parameters
    ----------
    token_id : int
    logprob : float
        Natural logarithm of its probability.
    top : tuple of (int, float)
        The likeliest tokens and their logarithms, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: npt.NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    """Return how likely a token was, and the likeliest ones.

    Parameters
    ----------
    logits : float32, (vocab_size,)
    token : int
    n_top : int
        How many of the likeliest.
    """
    total = log_sum_exp(logits)
    top: list[int] = []
    if n_top:
        likeliest = top_k(logits, n_top)
        top = likeliest[np.argsort(-logits[likeliest], kind="stable")].tolist()
    return TokenLogprob(
        token,
        float(logits[token]) - total,
        tuple((other, float(logits[other]) - total) for other in top),
    )


def log_sum_exp(logits: npt.NDArray[np.float32]) -> float:
    """Return what a logit exceeds the logarithm of its token's probability by.

    Parameters
    ----------
    logits : float32, (vocab_size,)
    """
    peak = logits.max()
    weights = np.subtract(logits, peak, dtype=np.float64)
    return float(peak) + float(np.log(np.exp(weights, out=weights).sum()))
