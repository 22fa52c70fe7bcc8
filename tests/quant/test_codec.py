"""What holds for every weight type."""

from __future__ import annotations

import hypothesis.extra.numpy as st_np
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qllama.errors import BadTensorError, ConversionError, UnsupportedModelError
from qllama.quant import QUANT_TYPES, codec, matrix_n_bytes

TYPES = list(QUANT_TYPES)
# Largest error of a Gaussian weight over the largest weight of all; q4 and q4_0 have a block's
# range in 15 steps, q5 in 31, q6 in 63, each element half a step off, a clipped one a whole.
RELATIVE_ERROR = {
    "f32": 0,
    "f16": 2**-11,
    "bf16": 2**-8,
    "q8_0": 1 / 225,
    "q4_0": 1 / 7,
    "q4": 1 / 7,
    "q5": 1 / 15,
    "q6": 1 / 31,
}


@pytest.mark.parametrize("name", TYPES)
def test_codec_every_type_has_one_of_its_name(name):
    assert codec(name).kind is QUANT_TYPES[name]


def test_codec_unknown_type_is_refused():
    with pytest.raises(UnsupportedModelError, match="'q3'"):
        codec("q3")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 32), (15, 31), (16, 32), (17, 33), (32, 160), (5, 1000)]
)
def test_codec_any_shape_comes_back_near(name, shape, rng):
    w = rng.standard_normal(shape, dtype=np.float32)
    data = codec(name).quantize(w)
    assert data.dtype == np.uint8
    assert data.shape == (matrix_n_bytes(name, *shape),)
    back = codec(name).dequantize(data, *shape)
    assert back.dtype == np.float32
    assert back.flags.c_contiguous
    np.testing.assert_allclose(back, w, rtol=0, atol=RELATIVE_ERROR[name] * np.abs(w).max())


@pytest.mark.parametrize("name", TYPES)
def test_codec_padding_decodes_to_zero(name, rng):
    w = rng.standard_normal((17, 32), dtype=np.float32)
    padded = codec(name).dequantize(codec(name).quantize(w), 32, 32)
    assert np.abs(padded[17:]).max() == 0


@pytest.mark.parametrize("name", TYPES)
def test_codec_zeros_stay_zeros(name):
    w = np.zeros((16, 64), np.float32)
    w[3, 5] = -0.0
    assert np.abs(codec(name).dequantize(codec(name).quantize(w), 16, 64)).max() == 0


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("size", [1e-20, 1e-36, 1e-39, 1e-45, 60000.0])
def test_codec_extreme_weights_cause_no_undefined_operation(name, size, rng):
    w = (rng.uniform(-1, 1, (16, 64)) * size).astype(np.float32)
    w[0, ::2] = 0
    with np.errstate(all="raise", under="ignore"):
        codec(name).dequantize(codec(name).quantize(w), 16, 64)


@pytest.mark.parametrize("name", TYPES)
def test_codec_slabs_of_whole_tiles_concatenate(name, rng):
    w = rng.standard_normal((70, 96), dtype=np.float32)
    slabs = [codec(name).quantize(w[a:b]) for a, b in ((0, 16), (16, 64), (64, 70))]
    np.testing.assert_array_equal(np.concatenate(slabs), codec(name).quantize(w))


@pytest.mark.parametrize("name", TYPES)
def test_codec_strided_weights_equal_contiguous_ones(name, rng):
    w = rng.standard_normal((64, 40), dtype=np.float32).T
    contiguous = np.ascontiguousarray(w)
    np.testing.assert_array_equal(codec(name).quantize(w), codec(name).quantize(contiguous))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_codec_not_a_finite_number_is_refused_by_place(name, bad):
    w = np.zeros((20, 40), np.float32)
    w[7, 33] = bad
    with pytest.raises(
        ConversionError, match=rf"weight \[7, 33\].*for {name}, found {bad}; the checkpoint"
    ):
        codec(name).quantize(w)


@pytest.mark.parametrize("name", [name for name in TYPES if name != "f32"])
@pytest.mark.parametrize("sign", [1, -1])
def test_codec_largest_magnitude_fits_and_a_larger_one_is_refused(name, sign):
    found = codec(name)
    w = np.zeros((16, 32), np.float32)
    w[0, 0] = sign * found.max_magnitude
    back = found.dequantize(found.quantize(w), 16, 32)
    # Of q5 both row factors are bfloat16: half a unit of 8 bits each.
    precision = 2**-7 if name == "q5" else 2**-20
    np.testing.assert_allclose(back, w, rtol=0, atol=precision * found.max_magnitude)
    w[0, 0] = sign * np.nextafter(np.float32(found.max_magnitude), np.float32(np.inf))
    with pytest.raises(ConversionError, match="choose bf16 or f32"):
        found.quantize(w)


def test_codec_f32_holds_the_largest_float():
    w = np.full((1, 2), np.finfo(np.float32).max)
    np.testing.assert_array_equal(codec("f32").dequantize(codec("f32").quantize(w), 1, 2), w)


@pytest.mark.parametrize(
    "w", [np.zeros((16, 32)), np.zeros(32, np.float32), np.zeros((0, 32), "f4")]
)
def test_codec_other_than_a_float32_matrix_is_refused(w):
    with pytest.raises(ConversionError, match="weights for q4: expected"):
        codec("q4").quantize(w)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("surplus", [-1, 1])
def test_codec_storage_of_another_size_is_refused(name, surplus):
    data = np.zeros(matrix_n_bytes(name, 16, 32) + surplus, np.uint8)
    with pytest.raises(BadTensorError, match=f"{name} matrix of 16 x 32: expected"):
        codec(name).dequantize(data, 16, 32)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@settings(deadline=None)
@given(
    w=st_np.arrays(
        np.float32,
        st_np.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(2**-16, 1000, width=32) | st.floats(-1000, -(2**-16), width=32),
    )
)
def test_codec_requantizing_decoded_weights_changes_nothing(name, w):
    found = codec(name)
    data = found.quantize(w)
    np.testing.assert_array_equal(found.quantize(found.dequantize(data, *w.shape)), data)
