"""Error feedback: the codes it chooses, and what they are worth."""

from __future__ import annotations

import numpy as np
import pytest

from qllama.quant import BlockCodec, codec
from qllama.quant.feedback import feedback_factor, with_feedback

TYPES = ["q4", "q5", "q6", "q4_0", "q8_0"]


def correlated(rng, n, k):
    """Inputs of which a few directions make up most."""
    return (rng.standard_normal((n, 8)) @ rng.standard_normal((8, k))).astype(np.float32) + (
        0.3 * rng.standard_normal((n, k), np.float32)
    )


def output_error(name, data, w, x):
    error = (codec(name).dequantize(data, *w.shape) - w) @ x.T
    return float(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize("k", [1, 64, 65, 200])
def test_feedback_factor_inverts_the_damped_moments(k, rng):
    x = rng.standard_normal((500, k)).astype(np.float32)
    moments = x.T @ x
    damped = moments / np.diag(moments).mean() + (0.05 + 0.2 * k / 500) * np.eye(k)
    factor = feedback_factor(moments.copy(), 500)
    assert np.array_equal(factor, np.triu(factor))
    # Condition at most 10, so that float32 loses a few of its 24 bits.
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(k), atol=1e-4)


def test_feedback_factor_of_inputs_that_are_zero_asks_for_no_feedback():
    factor = feedback_factor(np.zeros((40, 40), np.float32), 10)
    assert np.array_equal(factor, np.diag(np.diag(factor)))
    assert np.isfinite(factor).all()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (20, 170)])
def test_with_feedback_of_uncorrelated_inputs_keeps_the_nearest_codes(name, shape, rng):
    w = rng.standard_normal(shape).astype(np.float32)
    found = codec(name)
    data = found.quantize(w, np.ones(shape[1], np.float32))
    again = with_feedback(name, w, data, np.eye(shape[1], dtype=np.float32))
    # Ties and last bits may round the other way: not a code in a thousand, and not by more.
    moved = found.dequantize(again, *shape) - found.dequantize(data, *shape)
    assert np.count_nonzero(moved) <= shape[0] * shape[1] // 1000
    assert again.shape == data.shape


@pytest.mark.parametrize("name", TYPES)
def test_with_feedback_lowers_the_error_of_outputs_on_other_inputs(name, rng):
    k = 96
    w = rng.standard_normal((40, k)).astype(np.float32)
    both = correlated(rng, 2000, k)
    x, other = both[:1000], both[1000:]
    data = codec(name).quantize(w, np.square(x).mean(axis=0))
    fed = with_feedback(name, w, data, feedback_factor(x.T @ x, len(x)))
    assert output_error(name, fed, w, other) < 0.6 * output_error(name, data, w, other)
    # The price: weights themselves are further off.
    assert output_error(name, fed, w, np.eye(k)) > output_error(name, data, w, np.eye(k))


def test_with_feedback_makes_up_for_an_error_in_the_next_column():
    w = np.array([[0.4, 3.0] + [0.0] * 29 + [-8.0]], np.float32)
    found = codec("q4_0")
    data = found.quantize(w)  # Scale 1: the first weight is 0.4 too low.
    assert found.dequantize(data, 1, 32)[0, :2].tolist() == [0, 3]
    moments = np.eye(32, dtype=np.float32)
    moments[:2, :2] = [[10, 6.5], [6.5, 5]]
    # Best beside 0 is 3 + 0.4 * 6.5 / (5 + damping of 0.07) = 3.51.
    fed = with_feedback("q4_0", w, data, feedback_factor(moments, 1 << 40))
    assert found.dequantize(fed, 1, 32)[0].tolist() == [0, 4] + [0] * 29 + [-8]


@pytest.mark.parametrize("name", TYPES)
def test_grid_with_its_codes_is_what_is_decoded(name, rng):
    w = rng.standard_t(3, (20, 70)).astype(np.float32)
    found = codec(name)
    assert isinstance(found, BlockCodec)
    data = found.quantize(w)
    grid = found.grid(data, *w.shape)
    codes = rng.integers(0, grid.greatest + 1, w.shape).astype(np.uint8)
    changed = found.dequantize(found.with_codes(data, codes), *w.shape)
    scales, offsets = (np.repeat(a.T, 32, axis=1)[:, :70] for a in (grid.scales, grid.offsets))
    expected = scales * codes - offsets
    np.testing.assert_allclose(changed, expected, atol=1e-6 * np.abs(expected).max())
    assert grid.greatest == {"q4": 15, "q5": 31, "q6": 63, "q4_0": 15, "q8_0": 255}[name]
