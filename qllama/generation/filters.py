"""Which tokens may come next: candidate filters.

Pure functions on float32 logits, one a published method; none knows of seeds,
sessions or text. A filter returns the positions it keeps, ascending, so that
filters compose by indexing and a tie always goes to the lowest token id: the
result depends on the logits alone, never on how this machine's numpy happens
to partition or sort.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qllama.kernels.selection import first_largest, nucleus

__all__ = ["min_p", "mirostat", "top_k", "top_p", "typical", "xtc"]

# How many strides top_k folds into one maximum: of 16, 64 and 256 the fastest at
# vocabularies of 49k and 128k.
_FOLD = 64


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


def typical(logits: npt.NDArray[np.float32], p: float) -> npt.NDArray[np.intp]:
    """Positions of the locally typical tokens: those nearest the expected information.

    Tokens are taken in order of how far their information, -log of the probability, is
    from the distribution's entropy, until their probability is above `p`.

    Parameters
    ----------
    logits : float32, (n,)
        At least one finite, without NaN.
    p : float
        0 to 1; 0 keeps the most typical alone, 1 keeps all.

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
    Meister, Pimentel, Wiher and Cotterell 2022, Locally Typical Sampling,
    arXiv:2202.00666, equation 8.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected 0 to 1, found {p}")
    if p == 1:
        return np.arange(logits.size)
    probabilities = _softmax(logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = -np.log(probabilities)
        entropy = np.where(probabilities > 0, probabilities * information, 0).sum()
    order = np.argsort(np.abs(information - entropy), kind="stable")
    reached = np.cumsum(probabilities[order]) > p
    n_kept = int(reached.argmax()) + 1 if reached.any() else logits.size
    return np.sort(order[:n_kept])


def xtc(logits: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.intp]:
    """Positions that stay when top choices are excluded.

    Of the tokens with a probability of at least `threshold` only the least likely stays,
    and all below.

    Parameters
    ----------
    logits : float32, (n,)
        At least one finite, without NaN.
    threshold : float
        Above 0.5 no two tokens can reach it: all stay.

    Returns
    -------
    intp, (n_kept,)
        Ascending; at least one.

    References
    ----------
    p-e-w 2024, Exclude Top Choices (XTC): A sampler that boosts creativity,
    oobabooga/text-generation-webui pull request 6335; there is no paper.
    """
    keep = np.ones(logits.size, np.bool_)
    probabilities = _softmax(logits)
    # A token that cannot come is no choice, also where the threshold is 0.
    (top,) = np.nonzero((probabilities >= threshold) & (probabilities > 0))
    if top.size > 1:
        keep[top] = False
        # Of equal ones the last: it is the last in any stable order by likelihood.
        keep[top[np.flatnonzero(logits[top] == logits[top].min())[-1]]] = True
    return np.flatnonzero(keep)


def mirostat(logits: npt.NDArray[np.float32], mu: float) -> npt.NDArray[np.intp]:
    """Positions of tokens whose surprise, -log2 of the probability, is at most `mu`.

    Parameters
    ----------
    logits : float32, (n,)
        At least one finite, without NaN; already divided by the temperature.
    mu : float
        In bits; follows the surprise of the tokens that come, as `sampling` sees to.

    Returns
    -------
    intp, (n_kept,)
        Ascending; at least one, the likeliest.

    References
    ----------
    Basu, Ramachandran, Keskar and Varshney 2021, Mirostat, arXiv:2007.14966; its second
    version, https://github.com/basusourya/mirostat, algorithm 2 of the repository.
    """
    with np.errstate(divide="ignore"):
        keep = -np.log2(_softmax(logits)) <= mu
    if not keep.any():
        keep[logits.argmax()] = True
    return np.flatnonzero(keep)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.subtract(logits, logits.max(), dtype=np.float64)
    np.exp(weights, out=weights)
    weights /= weights.sum()
    return weights


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
