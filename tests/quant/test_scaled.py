"""q8_0 and q4_0 beside ggml's own rounding, as the gguf library has it."""

from __future__ import annotations

import gguf
import hypothesis.extra.numpy as st_np
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qllama.errors import BadTensorError, ConversionError
from qllama.quant import codec

TYPES = ["q8_0", "q4_0"]
GGML = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}


def codes_and_scales(name, w):
    found = codec(name)
    return found.unpack(found.quantize(w), *w.shape)


def block_errors(w, stored):
    return ((stored - w).astype(np.float64) ** 2).reshape(-1, 32).sum(axis=1)


def assert_no_block_worse_than_ggml(name, w):
    """Return the share of ggml's squared error that is left."""
    theirs = gguf.quants.dequantize(gguf.quants.quantize(w, GGML[name]), GGML[name])
    ours = codec(name).dequantize(codec(name).quantize(w), *w.shape)
    found, limit = block_errors(w, ours), block_errors(w, theirs)
    # A thousandth for float32: its sums of 32 errors choose the scale, and its quotients the codes.
    assert (found <= 1.001 * limit + 1e-12 * (w.reshape(-1, 32) ** 2).sum(axis=1)).all()
    return found.sum() / max(limit.sum(), np.finfo(np.float64).tiny)


# What the searches leave, plus a few percent; a least-squares
# scale for ggml's codes alone leaves 0.98 and 0.96.
@pytest.mark.parametrize(("name", "left"), [("q8_0", 0.82), ("q4_0", 0.94)])
@pytest.mark.parametrize("spread", [1e-4, 0.02, 100.0])
def test_scaled_codec_trained_like_weights_err_less_than_ggml(name, left, spread, rng):
    w = (rng.standard_t(4, (64, 320)) * spread).astype(np.float32)
    w[:, ::7] = 0
    assert assert_no_block_worse_than_ggml(name, w) < left


@pytest.mark.parametrize("name", TYPES)
@settings(deadline=None)
@given(w=st_np.arrays(np.float32, (2, 64), elements=st.floats(-1e5, 1e5, width=32)))
def test_scaled_codec_any_block_is_no_worse_than_ggml(name, w):
    # ggml divides by zero where 1 / d overflows: not defined there, so not compared.
    peak = np.abs(w.reshape(-1, 32)).max(axis=1)
    w[np.repeat((peak < 2**-116).reshape(2, 2), 32, axis=1)] = 0
    assert_no_block_worse_than_ggml(name, w)


@pytest.mark.parametrize("name", TYPES)
def test_scaled_codec_keeps_what_ggml_made(name, rng):
    w = (rng.standard_t(4, (64, 320)) * 0.02).astype(np.float32)
    made = gguf.quants.dequantize(gguf.quants.quantize(w, GGML[name]), GGML[name])
    np.testing.assert_array_equal(
        codec(name).dequantize(codec(name).quantize(made), *w.shape), made
    )


@pytest.mark.parametrize("name", TYPES)
def test_scaled_codec_subnormal_scale_gives_zero(name):
    w = np.full((1, 32), 1e-40, np.float32)
    codes, scales = codes_and_scales(name, w)
    assert np.unique(codes) == codec(name).zero_code
    assert np.abs(scales).max() == 0


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_scaled_codec_single_outlier_keeps_its_value(name, sign):
    w = np.zeros((1, 32), np.float32)
    w[0, 9] = sign * 3.0
    w[0, 10] = 0.001
    back = codec(name).dequantize(codec(name).quantize(w), 1, 32)
    assert back[0, 9] == pytest.approx(w[0, 9], rel=2**-11)
    assert np.count_nonzero(back) == 1


@pytest.mark.parametrize("name", TYPES)
def test_scaled_codec_constant_block_keeps_its_value(name):
    w = np.full((1, 32), -0.37, np.float32)
    back = codec(name).dequantize(codec(name).quantize(w), 1, 32)
    np.testing.assert_allclose(back, w, rtol=2**-11)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(1, 32), (17, 96), (16, 40)])
def test_scaled_codec_pack_and_unpack_lose_nothing(name, shape, rng):
    found = codec(name)
    low, high = {"q8_0": (-128, 128), "q4_0": (0, 16)}[name]
    codes = rng.integers(low, high, shape).astype(found.code_dtype)
    scales = rng.standard_normal((shape[0], -(-shape[1] // 32))).astype(np.float16)
    data = found.pack(codes, scales)
    codes_back, scales_back = found.unpack(data, *shape)
    np.testing.assert_array_equal(codes_back, codes)
    np.testing.assert_array_equal(scales_back, scales)
    data[0] ^= 1
    assert not np.array_equal(found.unpack(data, *shape)[0], codes)


@pytest.mark.parametrize("name", TYPES)
def test_scaled_codec_packs_the_padding_that_it_quantizes(name, rng):
    data = codec(name).quantize(rng.standard_normal((17, 40), dtype=np.float32))
    np.testing.assert_array_equal(codec(name).pack(*codec(name).unpack(data, 17, 40)), data)


def test_from_ggml_blocks_takes_low_nibbles_first():
    raw = np.array([[0x00, 0x3C, *range(0x10, 0x20)]], np.uint8)
    codes, scales = codec("q4_0").from_ggml_blocks(raw)
    assert codes.tolist() == [[*range(16), *[1] * 16]]
    assert scales.tolist() == [[1.0]]


def test_from_ggml_blocks_splits_rows_into_blocks():
    block = [0x00, 0x40, *range(0xF0, 0x100), *range(16)]
    codes, scales = codec("q8_0").from_ggml_blocks(np.array([block * 2] * 3, np.uint8))
    assert codes.shape == (3, 64)
    assert codes[2, 32:].tolist() == [*range(-16, 16)]
    assert scales.tolist() == [[2.0, 2.0]] * 3


@pytest.mark.parametrize("name", TYPES)
def test_from_ggml_blocks_part_of_a_block_is_refused(name):
    with pytest.raises(ConversionError, match=f"ggml {name} rows: expected uint8"):
        codec(name).from_ggml_blocks(np.zeros((2, 50), np.uint8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pack_scale_that_is_no_number_is_refused(bad):
    scales = np.array([[1.0, bad]], np.float16)
    with pytest.raises(ConversionError, match="the checkpoint is damaged"):
        codec("q8_0").pack(np.zeros((1, 64), np.int8), scales)


def test_pack_code_out_of_range_is_refused():
    with pytest.raises(ConversionError, match=r"expected 0..15, found 16"):
        codec("q4_0").pack(np.full((1, 32), 16, np.uint8), np.ones((1, 1), np.float16))


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        (np.zeros((1, 64), np.int8), np.ones((1, 1), np.float16)),
        (np.zeros((1, 64), np.uint8), np.ones((1, 2), np.float16)),
    ],
)
def test_pack_shapes_or_types_that_do_not_fit_are_refused(codes, scales):
    with pytest.raises(ConversionError, match="q8_0 codes and scales: expected int8"):
        codec("q8_0").pack(codes, scales)


def test_pack_float32_scales_are_refused():
    with pytest.raises(ConversionError, match="or float32"):
        codec("q8_0").pack(np.zeros((1, 32), np.int8), np.ones((1, 1), np.float32))


def test_unpack_of_another_size_is_refused():
    with pytest.raises(BadTensorError, match="expected 544 bytes"):
        codec("q8_0").unpack(np.zeros(543, np.uint8), 1, 32)
