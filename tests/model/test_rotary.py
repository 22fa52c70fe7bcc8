"""Rotary frequencies against the published formulas, written out dimension by dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_model import config

from qllama.model.rotary import RotaryTable

POSITIONS = np.array([0, 1, 2, 63, 64, 511, 8191, 131071])


def table(scaling=None, divisors=None, **changes):
    made = config(rope_scaling=scaling, **({"head_dim": 64, "rope_theta": 500000.0} | changes))
    return RotaryTable(made, divisors)


def check(rotary, frequencies, amplitude=1.0):
    cos, sin = rotary(POSITIONS)
    assert cos.dtype == sin.dtype == np.float32
    for row, position in enumerate(POSITIONS.tolist()):
        for i, frequency in enumerate(frequencies):
            angle = position * frequency
            # Half a unit of float32 at 2, and an angle of 2**17 in float64.
            assert cos[row, i] == pytest.approx(amplitude * math.cos(angle), rel=0, abs=2.0**-23)
            assert sin[row, i] == pytest.approx(amplitude * math.sin(angle), rel=0, abs=2.0**-23)


def plain(head_dim=64, theta=500000.0):
    return [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]


@pytest.mark.parametrize("head_dim", [2, 40, 64, 80, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
def test_rotary_plain_frequencies_fall_with_the_base(head_dim, theta):
    rotary = table(head_dim=head_dim, rope_theta=theta)
    check(rotary, plain(head_dim, theta))


def test_rotary_linear_divides_every_frequency():
    rotary = table({"rope_type": "linear", "factor": 4.0})
    check(rotary, [f / 4 for f in plain()])


def llama3(frequency, factor, low, high, original):
    """Llama 3.1's rule by wavelength, as Meta published it."""
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (2.0, 0.5, 16.0, 256)],
)
def test_rotary_llama3_scales_by_wavelength(factor, low, high, original):
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    expected = [llama3(f, factor, low, high, original) for f in plain()]
    kept = sum(a == b for a, b in zip(expected, plain(), strict=True))
    divided = sum(a == b / factor for a, b in zip(expected, plain(), strict=True))
    assert min(kept, divided, 32 - kept - divided) >= 1  # all three branches are met
    check(table(scaling), expected)


def yarn(i, head_dim, theta, factor, original, fast, slow):
    """Peng et al. 2023, eq. 18-23, with the ramp between whole dimensions."""
    frequency = theta ** (-2 * i / head_dim)

    def dimension(turns):
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(fast)), 0)
    high = min(math.ceil(dimension(slow)), head_dim - 1)
    if i <= low:
        return frequency
    if i >= high:
        return frequency / factor
    ramp = (i - low) / (high - low)
    return frequency * (1 - ramp) + frequency / factor * ramp


@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (8.0, 2.0)])
@pytest.mark.parametrize(("factor", "original"), [(4.0, 32768), (40.0, 4096)])
def test_rotary_yarn_ramps_over_dimensions(theta, fast, slow, factor, original):
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
    }
    expected = [yarn(i, 64, theta, factor, original, fast, slow) for i in range(32)]
    assert expected[0] == 1
    assert expected[-1] == pytest.approx(plain(64, theta)[-1] / factor)
    check(table(scaling, rope_theta=theta), expected, 0.1 * math.log(factor) + 1)


def test_rotary_yarn_attention_factor_replaces_the_default():
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 0.75,
    }
    cos, sin = table(scaling)(np.array([0]))
    np.testing.assert_array_equal(cos, 0.75)
    np.testing.assert_array_equal(sin, 0)


def test_rotary_divisors_divide_their_own_frequency():
    divisors = np.linspace(1, 8, 32, dtype=np.float32)
    rotary = table({"rope_type": "divisors"}, divisors)
    check(rotary, [f / d for f, d in zip(plain(), divisors.tolist(), strict=True)])


def test_rotary_divisors_as_gguf_stores_llama3_give_llama3():
    stored = np.float32([f / llama3(f, 8.0, 1.0, 4.0, 8192) for f in plain()])
    stretched = table(
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    )
    rotary = table({"rope_type": "divisors"}, stored)
    np.testing.assert_allclose(rotary.frequencies, stretched.frequencies, rtol=2.0**-23)
