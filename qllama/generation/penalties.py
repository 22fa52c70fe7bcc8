"""What changes single logits before anything is chosen: bias and penalties.

Pure functions on float32 logits, one a published method, in the order of
`sampling.Sampler`; none knows of seeds, sessions or text.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["apply_dry", "apply_logit_bias", "apply_penalties"]


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


def apply_dry(
    logits: npt.NDArray[np.float32],
    recent: npt.NDArray[np.int32],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Container[int] = (),
) -> npt.NDArray[np.float32]:
    """Make tokens less likely that would go on repeating a run of recent ones.

    If the last n >= `allowed_length` tokens stood together before, what followed them
    there loses `multiplier * base ** (n - allowed_length)`; the longest such n counts.

    Parameters
    ----------
    logits : float32, (vocab_size,)
        Not modified.
    recent : int32, (n_recent,)
        The tokens that count, prompt included, in their order.
    multiplier : float
        0 is off.
    base : float
        At least 1.
    allowed_length : int
        Runs that are shorter may be repeated.
    breakers : container of int
        Tokens that no run goes beyond; they are not penalized.

    Returns
    -------
    float32, (vocab_size,)
        A new array, or `logits` itself when nothing is penalized.

    References
    ----------
    p-e-w 2024, DRY: A modern repetition penalty that reliably prevents looping,
    oobabooga/text-generation-webui pull request 5677; there is no paper.
    """
    last = recent.size - 1
    longest = next((n for n in range(recent.size) if int(recent[last - n]) in breakers), last)
    if multiplier == 0 or longest < max(allowed_length, 1):
        return logits
    # Ends of earlier runs that equal the last `length` tokens.
    ends = np.flatnonzero(recent[:last] == recent[last])
    lengths = np.zeros(last, np.int64)
    length = 0
    while ends.size and length < longest:
        lengths[ends] += 1
        length += 1
        ends = ends[ends >= length]
        ends = ends[recent[ends - length] == recent[last - length]]
    penalized = np.array(logits)
    follow = recent[1:]
    for token in np.unique(follow[lengths >= allowed_length]).tolist():
        if token not in breakers:
            n = int(lengths[follow == token].max())
            with np.errstate(over="ignore"):  # -inf, which forbids the token, is meant
                factor = np.float64(base) ** (n - allowed_length)
                penalized[token] -= np.float32(multiplier * factor)
    return penalized
