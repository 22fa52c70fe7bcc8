"""Compiled comparison of weights with their storage, against the codecs."""

from __future__ import annotations

import numpy as np
import pytest

from qllama.kernels.quantize import quantize_measured
from qllama.kernels.quantize_error import decode_rows, quantization_error
from qllama.quant import QUANT_TYPES, TILE_ROWS, codec

SHAPES = [(1, 1), (16, 32), (17, 33), (40, 96), (31, 63)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANT_TYPES)
def test_quantization_error_equals_the_definition_tile_by_tile(name, shape):
    w = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    data = codec(name).quantize(w)
    v = codec(name).dequantize(data, *shape).astype(np.float64)
    found = quantization_error(name, w, data)
    assert found.shape == (-(-shape[0] // TILE_ROWS), 5)
    for tile, sums in enumerate(found):
        rows = slice(tile * TILE_ROWS, (tile + 1) * TILE_ROWS)
        a, b = w[rows].astype(np.float64), v[rows]
        squares = [np.sum(a * a), np.sum(b * b), np.sum(a * b), np.sum((a - b) ** 2)]
        # At most 16 * 96 products of doubles, added in another order.
        np.testing.assert_allclose(sums[:4], squares, rtol=1e-12, atol=1e-12)
        assert sums[4] == np.abs(a - b).max()


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANT_TYPES)
def test_quantize_measured_tells_the_errors_of_what_it_stored(name, shape, n_threads):
    # Off 0, so that the padding's zeros are stored as something else.
    w = np.random.default_rng(7).normal(3, size=shape).astype(np.float32)
    for importance in (None, np.linspace(0, 1, shape[1], dtype=np.float32)):
        data, found = quantize_measured(name, w, n_threads, importance)
        np.testing.assert_array_equal(data, codec(name).quantize(w, importance))
        expected = quantization_error(name, w, data)
        np.testing.assert_allclose(found[:, :4], expected[:, :4], rtol=1e-12, atol=0)
        np.testing.assert_array_equal(found[:, 4], expected[:, 4])


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_quantization_error_sees_one_changed_byte(name):
    w = np.random.default_rng(7).normal(size=(16, 64)).astype(np.float32)
    data = codec(name).quantize(w)
    before = quantization_error(name, w, data)
    # The high byte of a float, a code of the others.
    data[3] ^= 0x3C
    assert (quantization_error(name, w, data) != before).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANT_TYPES)
def test_decode_rows_equals_the_codec(name, shape):
    w = np.random.default_rng(8).normal(size=shape).astype(np.float32)
    data = codec(name).quantize(w)
    np.testing.assert_array_equal(
        decode_rows(name, data, *shape), codec(name).dequantize(data, *shape)
    )
