"""What shapes the next token's distribution: penalties and candidate filters.

Pure functions on float32 logits, one a published method; none knows of seeds,
sessions or text. A filter returns the positions it keeps, ascending, so that
filters compose by indexing and a tie always goes to the lowest token id: the
result depends on the logits alone, never on how this machine's numpy happens
to partition or sort.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qllama.kernels.selection import first_largest, nucleus

__all__ = ["apply_logit_bias", "apply_penalties", "min_p", "top_k", "top_p"]

# How many strides top_k folds into one maximum: of 16, 64 and 256 the fastest at
# vocabularies of 49k and 128k.
_FOLD = 64


def apply_logit_bias(
    logits: npt.NDArray[np.float32], bias: Mapping[int, float]
) -> npt.NDArray[np.float32]:
    """Add a bias to single tokens' logits.

    Parameters
    ----------
    logits : float32, (vocab_size,)
        Not modified.
    bias : mapping of int to float
        Token id to what is added; -inf forbids the token.

    Returns
    -------
    float32, (vocab_size,)
        A new array, or `logits` itself when there is no bias.

    Raises
    ------
    ValueError
        When a token id is outside the vocabulary.
    """
    if not bias:
        return logits
    for token in bias:
        if not 0 <= token < logits.size:
            raise ValueError(
                f"logit_bias: expected token ids in 0..{logits.size - 1}, found {token}"
            )
    ids = np.fromiter(bias.keys(), np.int64, len(bias))
    biased = np.array(logits)
    biased[ids] += np.fromiter(bias.values(), np.float32, len(bias))
    return biased


def apply_penalties(
    logits: npt.NDArray[np.float32],
    recent: npt.NDArray[np.int32],
    *,
    repeat: float,
    presence: float,
    frequency: float,
) -> npt.NDArray[np.float32]:
    """Make recently used tokens less likely, by llama.cpp's rule.

    A token used c > 0 times has its logit l replaced by
    `(l / repeat if l > 0 else l * repeat) - c * frequency - presence`.

    Parameters
    ----------
    logits : float32, (vocab_size,)
        Not modified.
    recent : int32, (n_recent,)
        The tokens that count, prompt included, in any order.
    repeat : float
        Above 1 discourages, 1 is off.
    presence, frequency : float
        Subtracted once a token, and once a use; 0 is off.

    Returns
    -------
    float32, (vocab_size,)
        A new array, or `logits` itself when nothing is penalized.

    Raises
    ------
    ValueError
        When `repeat` is not above 0.

    References
    ----------
    `repeat`: Keskar et al. 2019, CTRL: A Conditional Transformer Language Model for
    Controllable Generation, arXiv:1909.05858, section 4.1; there every logit is
    divided, which would favour repeats of negative ones. `presence`, `frequency`:
    the OpenAI API.
    """
    if not repeat > 0:
        raise ValueError(f"repeat: expected > 0, found {repeat}")
    if recent.size == 0 or (repeat == 1 and presence == 0 and frequency == 0):
        return logits
    ids, counts = np.unique(recent, return_counts=True)
    penalized = np.array(logits)
    used = logits[ids]
    used = np.where(used > 0, used / np.float32(repeat), used * np.float32(repeat))
    penalized[ids] = used - counts.astype(np.float32) * np.float32(frequency) - np.float32(presence)
    return penalized


def top_k(logits: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Positions of the `k` largest logits.

    Parameters
    ----------
    logits : float32, (n,)
        Without NaN.
    k : int
        How many to keep, at least 1; of equal logits the first are kept.

    Returns
    -------
    intp, (min(k, n),)
        Ascending.

    Raises
    ------
    ValueError
        When `k` is below 1.

    References
    ----------
    Fan, Lewis and Dauphin 2018, Hierarchical Neural Story Generation, arXiv:1805.04833.
    """
    if k < 1:
        raise ValueError(f"k: expected >= 1, found {k}")
    if k >= logits.size:
        return np.arange(logits.size)
    n_groups = logits.size // _FOLD
    if n_groups > k:
        # k groups each hold an element >= the k-th largest group maximum, so the
        # k-th largest element is at least that: everything below is out without
        # a partition over the whole vocabulary.
        maxima = logits[: n_groups * _FOLD].reshape(_FOLD, n_groups).max(axis=0)
        pool = np.flatnonzero(logits >= _kth_largest(maxima, k))
    else:
        pool = np.arange(logits.size)
    values = logits[pool]
    return pool[_first_k(values, _kth_largest(values, k), k)]


def top_p(logits: npt.NDArray[np.float32], p: float) -> npt.NDArray[np.intp]:
    """Positions of the nucleus: the fewest largest logits that have probability `p`.

    Parameters
    ----------
    logits : float32, (n,)
        At least one finite, without NaN.
    p : float
        0 to 1; 0 keeps the largest alone, 1 keeps all.

    Returns
    -------
    intp, (n_kept,)
        Ascending; at least one.

    Raises
    ------
    ValueError
        When `p` is outside 0..1.

    References
    ----------
    Holtzman et al. 2019, The Curious Case of Neural Text Degeneration,
    arXiv:1904.09751.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected 0 to 1, found {p}")
    if p == 1:
        return np.arange(logits.size)
    threshold, n_equal = nucleus(logits, logits.max(), float(p))
    kept: npt.NDArray[np.intp] = first_largest(logits, threshold, n_equal)
    return kept


def min_p(logits: npt.NDArray[np.float32], p: float) -> npt.NDArray[np.intp]:
    """Positions whose probability is at least `p` times the largest probability.

    Parameters
    ----------
    logits : float32, (n,)
        At least one finite, without NaN.
    p : float
        0 to 1; 0 keeps all, 1 keeps the largest logit and its equals.

    Returns
    -------
    intp, (n_kept,)
        Ascending; at least one.

    Raises
    ------
    ValueError
        When `p` is outside 0..1.

    References
    ----------
    Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling for Creative and
    Coherent LLM Outputs, arXiv:2407.01082.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected 0 to 1, found {p}")
    if p == 0:
        return np.arange(logits.size)
    return np.flatnonzero(logits >= logits.max() + np.float32(math.log(p)))


def _kth_largest(values: npt.NDArray[np.float32], k: int) -> np.float32:
    value: np.float32 = np.partition(values, values.size - k)[values.size - k]
    return value


def _first_k(
    values: npt.NDArray[np.float32], threshold: np.float32, k: int
) -> npt.NDArray[np.intp]:
    """Positions of the `k` largest values, of which `threshold` is the smallest."""
    keep = values > threshold
    equal = np.flatnonzero(values == threshold)
    keep[equal[: k - int(np.count_nonzero(keep))]] = True
    return np.flatnonzero(keep)
