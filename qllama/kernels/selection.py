"""Choosing among the logits of a whole vocabulary: thresholds and the draw.

A threshold is found by radix selection, 8 bits of the numbers at a time: no sort, and
no case that takes long. Weights are exp(logit - peak) in float64, from
multiplications and additions alone, so they are the same bits on every machine.

Throughout: `logits` are float32, (n,), without NaN, and `peak` is their maximum,
finite.
"""

from __future__ import annotations

import numpy as np
from numba import types

from qllama.kernels._jit import njit

__all__ = ["compile_selection", "draw", "first_largest", "nucleus"]

# Logits whose weights are computed together.
_BLOCK = 256
_DIGIT_BITS = 8
_DIGIT_MASK = (1 << _DIGIT_BITS) - 1
_KEY_BITS = 32
# Histograms that take turns: most logits fall on few digits, and additions to one
# place wait for each other.
_TURNS = 8

_LOG2_E = 1.4426950408889634
# Adding it rounds to an integer, which is then in the low bits.
_ROUND = 6755399441055744.0
# log(2) in two parts: n times the first is exact.
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_LOWEST = -708.0


@njit
def _exp(x):
    """e**x of x <= 0, relative error below 1e-11; 0 below the normal numbers."""
    shifted = max(x, _LOWEST) * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = max(x, _LOWEST) - n * _LN2_HIGH - n * _LN2_LOW
    # Taylor: |r| <= ln(2) / 2, so the next term is below 7e-12.
    p = 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    exponent = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52)
    return p * exponent.view(np.float64) if x >= _LOWEST else 0.0


@njit
def _weigh(logits, peak, rate, weights):
    """Write exp(rate * (logit - peak)) of up to _BLOCK logits, then 0; returns the sum."""
    for i in range(len(logits)):
        weights[i] = _exp(np.float64(logits[i] - peak) * rate)
    weights[len(logits) :] = 0.0
    # Four sums: additions to one would wait for each other.
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for i in range(0, _BLOCK, 4):
        a += weights[i]
        b += weights[i + 1]
        c += weights[i + 2]
        d += weights[i + 3]
    return (a + b) + (c + d)


@njit
def _key(logit):
    """An integer from 0 to 2**32 - 1 that grows with the logit."""
    bits = np.int64(np.float32(logit + np.float32(0.0)).view(np.int32))  # -0 becomes 0
    return bits + 2147483648 if bits >= 0 else -1 - bits


@njit
def _keep_at_least(logits, threshold, kept):
    """Write the logits that are no smaller than `threshold` to `kept`; returns how many."""
    n = 0
    for i in range(len(logits)):
        kept[n] = logits[i]
        n += logits[i] >= threshold
    return n


@njit
def nucleus(logits, peak, p):
    """The fewest largest logits that have at least the share `p` of all weight.

    Parameters
    ----------
    logits : float32, (n,)
    peak : float32
    p : float64
        0 to 1.

    Returns
    -------
    (float64, int64)
        The smallest of them, and how many equal to it belong to them.
    """
    weights = np.empty(_BLOCK, np.float64)
    total = 0.0
    for first in range(0, len(logits), _BLOCK):
        total += _weigh(logits[first : first + _BLOCK], peak, 1.0, weights)
    # What weighs less than this has less than 1 - p together. The margin is for the
    # rounding of the threshold, and infinite where p is 1.
    lightest = max((1.0 - p) * total / len(logits), 1e-300)
    threshold = np.float32(peak + np.log(lightest) * (1.0 + 1e-6) - 1e-6 * abs(peak))
    pool = np.empty(len(logits) + 1, np.float32)
    n = _keep_at_least(logits, threshold, pool)
    masses = np.empty((_TURNS, 1 << _DIGIT_BITS), np.float64)
    wanted, above = p * total, 0.0
    for shift in range(_KEY_BITS - _DIGIT_BITS, -1, -_DIGIT_BITS):
        masses[:] = 0.0
        for first in range(0, n, _BLOCK):
            part = pool[first : min(first + _BLOCK, n)]
            _weigh(part, peak, 1.0, weights)
            for i in range(len(part)):
                masses[i % _TURNS, _key(part[i]) >> shift & _DIGIT_MASK] += weights[i]
        chosen = -1
        before = 0.0
        for digit in range(_DIGIT_MASK, -1, -1):
            mass = 0.0
            for turn in range(_TURNS):
                mass += masses[turn, digit]
            if mass == 0:
                continue
            if chosen >= 0:
                above += before
            chosen, before = digit, mass
            if above + mass >= wanted:
                break
        n_members = 0
        for i in range(n):
            logit = pool[i]
            pool[n_members] = logit
            n_members += _key(logit) >> shift & _DIGIT_MASK == chosen
        n = n_members
    n_equal = np.int64(np.ceil((wanted - above) / _exp(np.float64(pool[0] - peak))))
    return np.float64(pool[0]), max(1, min(n, n_equal))


@njit
def first_largest(logits, threshold, n_equal):
    """Positions of the logits above `threshold` and of the first `n_equal` equal to it.

    Parameters
    ----------
    logits : float32, (n,)
    threshold : float64
    n_equal : int64
        At most as many as there are.

    Returns
    -------
    intp, (n_kept,)
        Ascending.
    """
    n_kept = n_equal
    for i in range(len(logits)):
        n_kept += logits[i] > threshold
    positions = np.empty(n_kept + 1, np.intp)
    n = 0
    for i in range(len(logits)):
        is_equal = logits[i] == threshold
        positions[n] = i
        n += (logits[i] > threshold) | (is_equal & (n_equal > 0))
        n_equal -= is_equal
    return positions[:n_kept]


@njit
def draw(logits, peak, temperature, point):
    """The position that a number drawn evenly from 0 .. 1 stands for.

    Parameters
    ----------
    logits : float32, (n,)
    peak : float32
    temperature : float64
        Above 0; divides `logit - peak`.
    point : float64
        0 <= point < 1.

    Returns
    -------
    int64
        The first position whose weight and all before it are more than the share
        `point` of all weight.
    """
    # A tiny temperature's is finite: the likeliest token's weight must be 1.
    rate = min(1.0 / temperature, 1e300)
    weights = np.empty(_BLOCK, np.float64)
    sums = np.empty((len(logits) + _BLOCK - 1) // _BLOCK, np.float64)
    total = 0.0
    for block in range(len(sums)):
        part = logits[_BLOCK * block : _BLOCK * (block + 1)]
        sums[block] = _weigh(part, peak, rate, weights)
        total += sums[block]
    left = point * total
    chosen = 0
    for block in range(len(sums)):
        if sums[block] > 0:
            chosen = block
            if left < sums[block]:
                break
            left -= sums[block]
    part = logits[_BLOCK * chosen : _BLOCK * (chosen + 1)]
    _weigh(part, peak, rate, weights)
    position = -1
    for i in range(len(part)):
        if weights[i] > 0:
            position = _BLOCK * chosen + i
            if left < weights[i]:
                break
            left -= weights[i]
    return position


def compile_selection() -> None:
    """Compile what samplers call, or load it from the cache."""
    logits = types.Array(types.float32, 1, "C")
    nucleus.compile((logits, types.float32, types.float64))
    first_largest.compile((logits, types.float64, types.int64))
    draw.compile((logits, types.float32, types.float64, types.float64))
