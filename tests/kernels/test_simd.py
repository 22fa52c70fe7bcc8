"""Vector instructions of every instruction set: half precision, fma."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from emitted import compiled
from packing import runnable_isas

from qllama.kernels import simd
from qllama.kernels.simd import F32, I16

each_isa = pytest.mark.parametrize("isa", runnable_isas(), ids=lambda isa: isa.name)
each_shape = pytest.mark.parametrize("lanes", [0, 4, 16], ids=["scalar", "v4", "v16"])


@each_isa
@each_shape
def test_f16_to_f32_every_half_is_exact(isa, lanes):
    halves = np.arange(2**16, dtype=np.uint16)
    convert = compiled(lambda b, x: simd.f16_to_f32(b, isa, x), [I16], F32, lanes)
    with np.errstate(invalid="ignore"):
        expected = halves.view(np.float16).astype(np.float32)
    values = convert(halves)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(values.view("u4")[numbers], expected.view("u4")[numbers])
    assert np.isnan(values[~numbers]).all()


@each_isa
@each_shape
def test_f32_to_f16_every_half_comes_back(isa, lanes):
    halves = np.arange(2**16, dtype=np.uint16)
    convert = compiled(lambda b, x: simd.f32_to_f16(b, isa, x), [F32], I16, lanes)
    with np.errstate(invalid="ignore"):
        result = convert(halves.view(np.float16).astype(np.float32))
    numbers = ~np.isnan(halves.view(np.float16))
    np.testing.assert_array_equal(result[numbers], halves[numbers])
    assert np.isnan(result[~numbers].view(np.float16)).all()


def hard_to_round():
    """Float32 where rounding to half precision decides: ties, limits, subnormals, NaN."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    limits = np.float32([65504, 65519.996, 65520, 65536, 1e38, np.inf, 2**-24, 2**-25, 2**-149, 0])
    nans = np.uint32([0x7FC00000, 0x7F800001, 0x7FFFFFFF]).view(np.float32)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**31, 20000, np.uint32).view(np.float32)
    sizes = np.ldexp(rng.uniform(1, 2, 20000), rng.integers(-27, 17, 20000)).astype(np.float32)
    some = np.concatenate([limits, ties, bits, sizes])
    some = some[~np.isnan(some)]
    near = [np.nextafter(some, np.float32(0)), np.nextafter(some, np.float32(np.inf))]
    positive = np.concatenate([some, *near, nans])
    both = np.concatenate([positive, -positive])
    return np.pad(both, (0, -len(both) % 16))


@each_isa
@each_shape
def test_f32_to_f16_rounds_to_nearest_even(isa, lanes):
    values = hard_to_round()
    convert = compiled(lambda b, x: simd.f32_to_f16(b, isa, x), [F32], I16, lanes)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    result = convert(values)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(result[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(result[~numbers].view(np.float16)).all()


@each_shape
def test_bf16_to_f32_every_half_is_exact(lanes):
    halves = np.arange(2**16, dtype=np.uint16)
    convert = compiled(simd.bf16_to_f32, [I16], F32, lanes)
    expected = halves.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(convert(halves).view("u4"), expected.view("u4"))


@each_isa
@each_shape
def test_fma_rounds_once_where_the_machine_can(isa, lanes):
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal(4096).astype(np.float32) for _ in range(2))
    z = -(x * y) * (1 + rng.integers(-3, 4, 4096).astype(np.float32) * np.float32(2.0**-22))
    result = compiled(lambda b, *v: simd.fma(b, isa, *v), [F32, F32, F32], F32, lanes)(x, y, z)
    once = (x.astype(np.float64) * y + z).astype(np.float32)
    twice = x * y + z
    assert (once != twice).any()
    np.testing.assert_array_equal(result, once if isa.has_fma else twice)
