"""Packing of activations: equal to the numpy packing to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from packing import BATCHES, address, aligned, aligned_copy
from packing import pack_f32 as expected_f32
from packing import pack_q8 as expected_q8

from qllama.kernels import reference
from qllama.kernels.activation import group_of, pack_f32, pack_q8, q8_residual, token_groups
from qllama.kernels.isa import ISAS, current_isa
from qllama.kernels.weight_kernels import Q8_BYTES


def pack(kernel, x, token_bytes):
    """Pack float32 (n_tokens, k) with the kernel, token by token, last token first."""
    n_tokens, k = x.shape
    packed = aligned(n_tokens * token_bytes, np.uint8, fill=0xAA)
    for token in reversed(range(n_tokens)):
        first, width = group_of(token, n_tokens)
        row = aligned_copy(x[token])
        start = address(packed) + first * token_bytes
        kernel(address(row), k // 32, start, width, token - first)
    return packed


def pack_with_kernel_q8(x):
    return pack(pack_q8, x, x.shape[1] // 32 * Q8_BYTES)


def columns(packed, n_blocks):
    """Of a single packed token: start128, start8, scale, sum, codes, by block."""
    blocks = packed.view(np.int32).reshape(n_blocks, Q8_BYTES // 4)
    floats = blocks[:, 2:4].copy().view(np.float32)
    return blocks[:, 0], blocks[:, 1], floats[:, 0], floats[:, 1], blocks[:, 4:].copy().view("i1")


def test_token_groups_cover_every_token_once_widest_first():
    for isa in ISAS.values():
        assert isa.widths[-1] == 1
        for n_tokens in range(200):
            groups = token_groups(n_tokens, isa)
            covered = [first + i for first, width in groups for i in range(width)]
            assert covered == list(range(n_tokens))
            widths = [width for _, width in groups]
            assert widths == sorted(widths, reverse=True)
            assert set(widths) <= set(isa.widths)
            assert widths.count(isa.widths[0]) == n_tokens // isa.widths[0]


def test_group_of_agrees_with_token_groups():
    for n_tokens in range(1, 60):
        groups = token_groups(n_tokens, current_isa())
        owners = [(first, width) for first, width in groups for _ in range(width)]
        assert [group_of(token, n_tokens) for token in range(n_tokens)] == owners


@pytest.mark.parametrize("n_tokens", BATCHES)
def test_pack_f32_equals_the_reference(n_tokens):
    x = np.random.default_rng(n_tokens).standard_normal((n_tokens, 96)).astype(np.float32)
    np.testing.assert_array_equal(pack(pack_f32, x, 4 * 96), expected_f32(x, current_isa()))


@pytest.mark.parametrize("n_tokens", BATCHES)
def test_pack_q8_equals_the_reference(n_tokens):
    rng = np.random.default_rng(n_tokens)
    x = rng.standard_t(3, (n_tokens, 96)) * 10.0 ** rng.integers(-30, 30, (n_tokens, 1))
    x = x.astype(np.float32)
    expected = expected_q8(*reference.quantize_activations(x), current_isa())
    np.testing.assert_array_equal(pack_with_kernel_q8(x), expected)


def test_pack_q8_ties_round_to_even():
    halves = np.arange(-16, 16, dtype=np.float32) + np.float32(0.5)
    halves[0] = 127  # scale 1: the codes are the rounded values
    *_, codes = columns(pack_with_kernel_q8(halves[None]), 1)
    np.testing.assert_array_equal(codes[0], np.rint(halves))


def test_pack_q8_extremes_reach_127_and_never_minus_128():
    rng = np.random.default_rng(5)
    x = np.float32(rng.uniform(1, 2, (64, 32))) * np.float32([1, -1] * 16)
    for row in x:
        *_, codes = columns(pack_with_kernel_q8(row[None]), 1)
        assert np.abs(codes.astype(int)).max() == 127
        np.testing.assert_array_equal(np.sign(codes), np.sign(row)[None])


def test_pack_q8_zero_block_is_zero_and_leaves_its_neighbours():
    x = np.random.default_rng(6).standard_normal((1, 96)).astype(np.float32)
    alone = columns(pack_with_kernel_q8(x), 3)
    x[0, 32:64] = 0
    x[0, 40] = -0.0
    for before, after in zip(alone, columns(pack_with_kernel_q8(x), 3), strict=True):
        assert not after[1].any()
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def test_pack_q8_block_too_small_to_scale_has_codes_0():
    x = np.full((1, 32), 1e-38, np.float32)
    start128, start8, _scale, total, codes = columns(pack_with_kernel_q8(x), 1)
    assert not any(part.any() for part in (start128, start8, total, codes))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 13, 31])
def test_pack_q8_not_finite_poisons_its_block_only(bad, place):
    x = np.random.default_rng(7).standard_normal((1, 96)).astype(np.float32)
    good = columns(pack_with_kernel_q8(x), 3)
    x[0, 32 + place] = bad
    poisoned = columns(pack_with_kernel_q8(x), 3)
    assert np.isnan(poisoned[2][1])
    assert np.isnan(poisoned[3][1])
    for before, after in zip(good, poisoned, strict=True):
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def test_pack_q8_largest_finite_values_keep_a_finite_scale():
    largest = np.finfo(np.float32).max
    x = largest * np.linspace(-1, 1, 32, dtype=np.float32)[None]
    expected = expected_q8(*reference.quantize_activations(x), current_isa())
    packed = pack_with_kernel_q8(x)
    np.testing.assert_array_equal(packed, expected)
    assert np.isfinite(columns(packed, 1)[2]).all()


def test_q8_residual_is_exactly_what_the_packing_rounds_away():
    x = np.random.default_rng(8).standard_t(3, (1, 96)).astype(np.float32)
    x[0, 32:64] = 0
    codes, scales = reference.quantize_activations(x)
    row = aligned_copy(x[0])
    q8_residual(address(row), 3)
    np.testing.assert_array_equal(row, (x - reference.dequantize_activations(codes, scales))[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_q8_residual_not_finite_poisons_its_block_only(bad):
    row = aligned(64, fill=1)
    row[40] = bad
    q8_residual(address(row), 2)
    assert np.isfinite(row[:32]).all()
    assert np.isnan(row[32:]).all()
