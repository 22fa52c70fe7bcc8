"""Vector instructions of every instruction set: byte products, half precision, fma."""

from __future__ import annotations

import ml_dtypes
import numba
import numpy as np
import pytest
from numba import types
from packing import address, aligned, aligned_copy, runnable_isas

from qllama.kernels import simd
from qllama.kernels._jit import intrinsic
from qllama.kernels.simd import F32, I8, I16, I32, I64

each_isa = pytest.mark.parametrize("isa", runnable_isas(), ids=lambda isa: isa.name)
each_shape = pytest.mark.parametrize("lanes", [0, 4, 16], ids=["scalar", "v4", "v16"])
_NUMPY = {I16: np.uint16, I32: np.int32, F32: np.float32}


def compiled(emit, operands, result, lanes):
    """Compile `emit(b, *values)` over arrays; `lanes` 0 means scalars."""
    step = lanes or 1

    def pointer(b, base, index, element):
        offset = b.mul(index, I64(step * np.dtype(_NUMPY[element]).itemsize))
        return simd.at(b, b.inttoptr(base, I8.as_pointer()), offset)

    @intrinsic
    def apply(_context, sources, target, index):
        def codegen(context, b, _signature, values):
            bases, target, index = values
            loaded = [
                simd.load(
                    b,
                    pointer(b, b.extract_value(bases, i), index, element),
                    simd.vector(element, lanes) if lanes else element,
                    1,
                )
                for i, element in enumerate(operands)
            ]
            simd.store(b, emit(b, *loaded), pointer(b, target, index, result), 1)
            return context.get_dummy_value()

        return types.void(sources, target, index), codegen

    @numba.njit
    def loop(sources, target, n):
        for index in range(n):
            apply(sources, target, index)

    def over(*arrays):
        arrays = [aligned_copy(a) for a in arrays]
        out = aligned(len(arrays[0]), _NUMPY[result])
        assert len(out) % step == 0
        loop(tuple(map(address, arrays)), address(out), len(out) // step)
        return out

    return over


def byte_quads(rng, low, high, n):
    """Int32 (n,) of four random bytes each; the first ones hold the extremes."""
    quads = rng.integers(low, high + 1, (n, 4))
    quads[:16], quads[16:32], quads[32:48] = low, high, [low, high, high, low]
    return quads


@each_isa
@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_dot4_any_bytes_add_exactly(isa, bits):
    rng = np.random.default_rng(bits)
    weights = byte_quads(rng, 0, 2**bits - 1, 480)
    codes = np.roll(byte_quads(rng, -127, 127, 480), 8, axis=0)
    total = rng.integers(-(2**30), 2**30, 480).astype(np.int32)
    dot4 = compiled(
        lambda b, t, w, c: simd.dot4(b, isa, t, w, c, bits), [I32, I32, I32], I32, isa.lanes
    )
    packed = [a.astype(kind).view(np.int32)[:, 0] for a, kind in ((weights, "u1"), (codes, "i1"))]
    np.testing.assert_array_equal(dot4(total, *packed), total + (weights * codes).sum(1))


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
