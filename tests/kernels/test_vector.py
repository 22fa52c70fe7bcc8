"""Vectors of 16 float32 inside compiled code: exp, reductions, lanes, loads and stores."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from packing import address, aligned, aligned_copy

from qllama.kernels import vector as v


@numba.njit
def _exp(source, target, n_bytes):
    for i in range(0, n_bytes, 64):
        v.store(target + i, v.exp(v.load(source + i)))


def exp(values):
    padded = aligned_copy(np.pad(np.float32(values), (0, -len(values) % v.LANES)))
    out = aligned(len(padded))
    _exp(address(padded), address(out), padded.nbytes)
    return out[: len(values)]


def exp_arguments():
    """Float32 over the whole range, densest where the reduction to +-ln2/2 is widest."""
    even = np.linspace(-87, 88, 400_000)
    edges = (np.arange(-125, 127) + 0.5) * np.log(2)
    near = (edges[:, None] + np.linspace(-1e-4, 1e-4, 401)).ravel()
    tiny = np.ldexp(np.linspace(1, 2, 64), np.arange(-149, 1)[:, None]).ravel()
    values = np.concatenate([even, near, tiny, -tiny]).astype(np.float32)
    return values[(values >= -87) & (values <= 88)]


def test_exp_relative_error_is_below_the_stated_bound():
    values = exp_arguments()
    expected = np.exp(values.astype(np.float64))
    assert np.abs(exp(values) / expected - 1).max() < 3e-7


def test_exp_of_zero_is_exactly_one():
    np.testing.assert_array_equal(exp([0.0, -0.0]), [1, 1])


def test_exp_beyond_its_range_is_zero_or_the_largest_it_gives():
    lowest, highest = exp([-87]), exp([88])
    np.testing.assert_array_equal(exp([-87.001, -1e30, -np.inf]), [0] * 3)
    np.testing.assert_array_equal(exp([88.001, 1e30, np.inf]), [highest[0]] * 3)
    assert lowest[0] > 0
    assert highest[0] < np.inf


def test_exp_of_not_a_number_is_not_a_number():
    assert np.isnan(exp([np.nan, -np.nan])).all()


@numba.njit
def _reduce(source):
    x = v.load(source)
    return v.reduce_add(x), v.reduce_max(x)


def test_reduce_add_folds_halves_in_the_stated_order():
    rng = np.random.default_rng(2)
    for _ in range(50):
        x = aligned_copy((rng.standard_normal(16) * 10.0 ** rng.integers(-6, 6, 16)).astype("f4"))
        folded = x
        while len(folded) > 1:
            folded = folded[: len(folded) // 2] + folded[len(folded) // 2 :]
        assert _reduce(address(x))[0] == folded[0]


@pytest.mark.parametrize("lane", range(16))
def test_reduce_max_finds_the_largest_lane(lane):
    x = aligned(16, fill=-5)
    x[lane] = -3
    assert _reduce(address(x))[1] == -3


@pytest.mark.parametrize("lane", range(16))
def test_reduce_not_a_number_in_any_lane_shows(lane):
    x = aligned(16, fill=1)
    x[lane] = np.nan
    assert np.isnan(_reduce(address(x))).all()


@numba.njit
def _keep_lanes(x, first, end, other, out):
    v.store(out, v.keep_lanes(v.load(x), first, end, v.load(other)))


def test_keep_lanes_any_range_takes_the_rest_from_the_other():
    x, other, out = (aligned_copy(np.arange(16, dtype=np.float32) + n) for n in (0, 100, 0))
    lanes = np.arange(16)
    for first in (-300, -1, 0, 1, 7, 15, 16, 300):
        for end in (-300, -1, 0, 1, 8, 15, 16, 300):
            _keep_lanes(address(x), first, end, address(other), address(out))
            inside = (lanes >= first) & (lanes < end)
            np.testing.assert_array_equal(out, np.where(inside, x, other), f"{first} {end}")


@numba.njit
def _lanewise(x, y, out):
    a, b = v.load(x), v.load(y)
    v.store(out, a + b)
    v.store(out + 64, a - b)
    v.store(out + 128, a * b)
    v.store(out + 192, a / b)
    v.store(out + 256, v.maximum(a, b))
    v.store(out + 320, v.absolute(a))
    v.store(out + 384, v.splat(v.load_scalar(y + 4)))


def test_vector_operators_act_lane_by_lane():
    rng = np.random.default_rng(3)
    x, y = (aligned_copy(rng.standard_normal(16).astype(np.float32)) for _ in range(2))
    x[3] = np.nan
    out = aligned((7, 16))
    _lanewise(address(x), address(y), address(out))
    expected = [x + y, x - y, x * y, x / y, np.maximum(x, y), np.abs(x), np.full(16, y[1])]
    np.testing.assert_array_equal(out, expected)


@numba.njit
def _comparisons(x, y, out):
    a, b = v.load(x), v.load(y)
    v.store(out, v.smaller(a, b))
    v.store(out + 64, v.larger(a, b))
    v.store(out + 128, v.where_less(a, b, v.splat(np.float32(1)), a))


def test_vector_comparisons_take_the_second_where_one_is_no_number():
    rng = np.random.default_rng(4)
    x, y = (aligned_copy(rng.standard_normal(16).astype(np.float32)) for _ in range(2))
    x[3] = y[4] = np.nan
    x[5] = y[5]
    out = aligned((3, 16))
    _comparisons(address(x), address(y), address(out))
    expected = [np.where(x < y, x, y), np.where(x > y, x, y), np.where(x < y, 1, x)]
    np.testing.assert_array_equal(out, np.float32(expected))


@numba.njit
def _round_to_halves(source, out):
    v.store(out, v.rounded_to_half(v.load(source)))


def test_vector_rounded_to_half_is_the_nearest_finite_half():
    values = aligned(16)
    values[:12] = [
        0.1,
        -0.1,
        1 + 2**-11,
        1 + 3 * 2**-11,
        1e-5,
        3e-8,
        2.9e-8,
        2**-126,
        65519,
        65521,
        -1e9,
        -0.0,
    ]
    out = aligned(16)
    _round_to_halves(address(values), address(out))
    expected = np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(expected))


@numba.njit
def _store_bytes(source, out):
    v.store_bytes(out, v.load(source))


def test_vector_store_bytes_writes_sixteen_of_any_value():
    values = aligned_copy(
        np.float32([0, 1, 2, 3, 15, 16, 63, 64, 100, 127, 128, 129, 200, 253, 254, 255])
    )
    out = aligned(18, np.uint8, fill=7)
    _store_bytes(address(values), address(out) + 1)
    np.testing.assert_array_equal(out, [7, *values.astype(np.uint8), 7])


@numba.njit
def _scalars(source, out):
    v.store_scalar(out, v.load_f16_scalar(source))
    v.store_scalar(out + 4, v.load_bf16_scalar(source + 2))
    v.store_scalar(out + 8, v.load_scalar(source + 4))
    v.store_scalar(out + 12, np.float32(v.load_byte(source + 8)))
    v.store_scalar(out + 16, np.float32(v.load_int(source + 12)))
    v.store_f16(out + 20, v.load_scalar(source + 4))
    v.store(out + 64, v.load_f16(source + 16))


def test_vector_scalars_are_read_by_their_own_format():
    memory = aligned(64, np.uint8)
    memory[:2] = np.float16([-1.5]).view(np.uint8)
    memory[2:4] = [0x49, 0x40]  # 3.140625 in bfloat16
    memory[4:8] = np.float32([0.1]).view(np.uint8)
    memory[8] = 200
    memory[12:16] = np.int32([-7]).view(np.uint8)
    halves = np.linspace(-3, 3, 16).astype(np.float16)
    memory[16:48] = halves.view(np.uint8)
    out = aligned(32)
    _scalars(address(memory), address(out))
    np.testing.assert_array_equal(out[:5], np.float32([-1.5, 3.140625, 0.1, 200, -7]))
    assert out[5:6].view(np.float16)[0] == np.float16(np.float32(0.1))
    np.testing.assert_array_equal(out[16:], halves.astype(np.float32))


@numba.njit
def _store_halves(source, out, n):
    for i in range(n):
        v.store_f16(out + 2 * i, v.load_scalar(source + 4 * i))


def test_vector_store_f16_beyond_the_largest_half_is_that_half():
    values = aligned(8)
    values[:] = [65504, 65519, 65536, 1e30, np.inf, -1e5, -np.inf, np.nan]
    out = aligned(8, np.uint16)
    _store_halves(address(values), address(out), 8)
    expected = np.float16([65504, 65504, 65504, 65504, 65504, -65504, -65504, np.nan])
    np.testing.assert_array_equal(out.view(np.float16), expected)
