"""Kernels that work on one row: norm, rotary embedding, gated activation, embedding."""

from __future__ import annotations

import numpy as np
import pytest
from packing import KERNELS, address, aligned, aligned_copy, gamma, padded

from qllama.kernels import reference
from qllama.kernels.embedding import embed_row
from qllama.kernels.norm import rms_norm
from qllama.kernels.rope import rope
from qllama.kernels.swiglu import swiglu
from qllama.quant import codec

NORM_SIZES = [1, 15, 16, 17, 40, 64, 80, 576, 1000]
EPS = np.float32(1e-5)


def norm(x, weight, n_padded, in_place=False):
    row, factors = aligned(n_padded), aligned(n_padded)
    row[: len(x)], factors[: len(x)] = x, weight
    out = row if in_place else aligned(n_padded, fill=np.nan)
    rms_norm(address(row), address(factors), address(out), len(x), n_padded, EPS)
    return out


@pytest.mark.parametrize("n", NORM_SIZES)
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_rms_norm_equals_the_reference_within_rounding(n, size):
    rng = np.random.default_rng(n)
    x, weight = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    x *= np.float32(size)
    expected = reference.rms_norm(x, weight, EPS)
    out = norm(x, weight, padded(n, 16))
    # The sum of squares takes n / 16 additions of products, 4 folds; then the mean, eps
    # and their root (which halves what came before), its inverse, two products; and the
    # reference rounds once.
    limit = gamma(padded(n, 16) / 16 + 9)
    assert (np.abs(out[:n] - expected) <= limit * np.abs(expected)).all()
    assert not out[n:].any()


def test_rms_norm_one_changed_element_is_seen():
    x = np.random.default_rng(0).standard_normal(576).astype(np.float32)
    weight = np.ones(576, np.float32)
    expected = reference.rms_norm(x, weight, EPS)
    x[575] *= np.float32(1.1)
    error = np.abs(norm(x, weight, 576) - expected)
    assert (error > gamma(576 / 16 + 9) * np.abs(expected)).all()


@pytest.mark.parametrize("n", NORM_SIZES)
def test_rms_norm_in_place_and_wider_padding_give_the_same_bits(n):
    rng = np.random.default_rng(n)
    x, weight = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    out = norm(x, weight, padded(n, 16))
    np.testing.assert_array_equal(norm(x, weight, padded(n, 16), in_place=True), out)
    np.testing.assert_array_equal(norm(x, weight, padded(n, 32))[:n], out[:n])


@pytest.mark.parametrize("head_dim", [2, 10, 16, 64, 80, 96, 128])
def test_rope_equals_the_reference_exactly(head_dim):
    rng = np.random.default_rng(head_dim)
    angles = rng.uniform(-100, 100, (3, head_dim // 2))
    cos, sin = (np.float32(f(angles)) for f in (np.cos, np.sin))
    x = rng.standard_normal((3, 2, head_dim)).astype(np.float32)
    expected = reference.rope(x, cos, sin)
    heads = aligned_copy(x)
    for token in range(3):
        for head in range(2):
            row, c, s = aligned_copy(x[token, head]), aligned_copy(cos[token]), sin[token].copy()
            rope(address(row), address(c), address(s), head_dim)
            heads[token, head] = row
    np.testing.assert_array_equal(heads, expected)


def test_rope_turns_the_pairs_of_the_two_halves():
    # A quarter turn of pair 1 of 4: (x[1], x[5]) becomes (-x[5], x[1]).
    head = aligned_copy(np.arange(8, dtype=np.float32))
    cos, sin = np.float32([1, 0, 1, 1]), np.float32([0, 1, 0, 0])
    rope(address(head), address(cos), address(sin), 8)
    np.testing.assert_array_equal(head, [0, -5, 2, 3, 4, 1, 6, 7])


def gate_and_up(gates):
    gate, out = aligned_copy(np.float32(gates)), aligned(16)
    up = aligned_copy(np.random.default_rng(1).standard_normal(16).astype(np.float32))
    swiglu(address(gate), address(up), address(out))
    return gate, up, out


@pytest.mark.parametrize("span", [1e-6, 1, 10, 60, 87])
def test_swiglu_equals_the_reference_within_rounding(span):
    gate, up, out = gate_and_up(np.linspace(-span, span, 16))
    expected = reference.swiglu(gate.astype(np.float64), up.astype(np.float64))
    # exp is off by 3e-7; one sum, one quotient and one product follow.
    assert (np.abs(out - expected) <= (3e-7 + gamma(4)) * np.abs(expected)).all()


def test_swiglu_far_from_zero_is_the_gate_or_nothing():
    gate, up, out = gate_and_up([200, -200, 1e30, -1e30] * 4)
    np.testing.assert_array_equal(out[0::2], gate[0::2] * up[0::2])
    # exp is clamped at 88: what is left is below the gate times exp(-88).
    assert (np.abs(out[1::2]) <= np.abs(gate[1::2] * up[1::2]) * np.exp(-87.99)).all()


def test_swiglu_into_its_own_input_gives_the_same_bits():
    gate, up, out = gate_and_up(np.linspace(-4, 4, 16))
    for target in (0, 1):
        pair = [aligned_copy(gate), aligned_copy(up)]
        swiglu(address(pair[0]), address(pair[1]), address(pair[target]))
        np.testing.assert_array_equal(pair[target], out)


def test_swiglu_not_a_number_stays():
    assert np.isnan(gate_and_up([np.nan] * 16)[2]).all()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("k", [1, 31, 32, 33, 100, 576])
def test_embed_row_equals_the_codec_exactly(name, k):
    rng = np.random.default_rng(k)
    rows = 40
    data = aligned_copy(codec(name).quantize(rng.standard_normal((rows, k)).astype(np.float32)))
    expected = codec(name).dequantize(data, rows, padded(k))  # the columns of padding too
    n_blocks, index = padded(k) // 32, list(KERNELS).index(name)
    tile_bytes = KERNELS[name].tile_bytes(n_blocks)
    for row in range(rows):
        out = aligned(padded(k) + 1, fill=np.nan)
        tile = address(data) + row // 16 * tile_bytes
        embed_row(index, tile, row % 16, n_blocks, address(out))
        np.testing.assert_array_equal(out[:-1], expected[row])
        assert np.isnan(out[-1])
