"""Thresholds and draws over a vocabulary, against sorting and adding up in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qllama.kernels.selection import draw, first_largest, nucleus

SIZES = (1, 2, 255, 256, 257, 5000)
SCALES = (0.0, 1e-4, 3.0, 30.0, 400.0)


def logits_of(n, scale, decimals=None):
    """Return noise around 0; few `decimals` give many ties."""
    logits = np.random.default_rng(n).normal(0, scale, n)
    return (logits if decimals is None else logits.round(decimals)).astype(np.float32)


def weights_of(logits, temperature=1.0):
    return np.exp((logits - logits.max()).astype(np.float64) / temperature)


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", SIZES)
def test_nucleus_any_distribution_is_the_head_of_a_sort(n, scale, decimals):
    logits = logits_of(n, scale, decimals)
    falling = np.sort(logits)[::-1]
    mass = np.cumsum(weights_of(falling))
    for p in (0.0, 0.1, 0.5, 0.95, 0.999, 1.0):
        smallest, n_equal = nucleus(logits, logits.max(), p)
        n_kept = int(np.count_nonzero(logits > smallest)) + n_equal
        assert falling[n_kept - 1] == np.float32(smallest)
        # The exponentials are right to 1e-11.
        assert mass[n_kept - 1] >= p * mass[-1] * (1 - 2e-11)
        assert n_kept == 1 or mass[n_kept - 2] < p * mass[-1] * (1 + 2e-11)


def test_nucleus_of_everything_leaves_forbidden_tokens_out():
    logits = np.array([-math.inf, 2, -math.inf, -3, 2], np.float32)
    assert nucleus(logits, np.float32(2), 1.0) == (-3, 1)


@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0]])
def test_nucleus_both_zeros_are_equal(zeros):
    logits = np.array([*zeros, -1.0], np.float32)
    smallest, n_equal = nucleus(logits, np.float32(0), 0.6)
    assert (smallest, n_equal) == (0, 2)


def test_first_largest_of_equals_keeps_the_first():
    logits = np.array([1, 3, 2, 2, 3, 2, -1], np.float32)
    assert first_largest(logits, 2.0, 2).tolist() == [1, 2, 3, 4]
    assert first_largest(logits, 3.0, 1).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.5])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", SIZES)
def test_draw_any_distribution_is_the_place_in_the_running_sum(n, scale, temperature):
    logits = logits_of(n, scale)
    mass = np.cumsum(weights_of(logits, temperature))
    for point in np.random.default_rng(1).random(50):
        position = draw(logits, logits.max(), temperature, point)
        # The exponentials are right to 1e-11.
        assert mass[position] >= point * mass[-1] * (1 - 2e-11)
        assert position == 0 or mass[position - 1] <= point * mass[-1] * (1 + 2e-11)


@pytest.mark.parametrize("point", [0.0, 1 - 2.0**-53])
def test_draw_smallest_and_largest_numbers_take_no_forbidden_token(point):
    logits = np.full(1000, -math.inf, np.float32)
    logits[[300, 700]] = -5
    assert draw(logits, np.float32(-5), 1.0, point) == (300 if point == 0 else 700)


def test_draw_tiny_temperature_takes_the_likeliest():
    logits = logits_of(1000, 3.0)
    assert draw(logits, logits.max(), 1e-320, 0.999) == logits.argmax()
