from __future__ import annotations

import numpy as np
import pytest

from qllama.errors import ConversionError
from qllama.quant import codec
from qllama.quant.importance import LEAST_IMPORTANCE, block_importance


def weighted_error(name, w, importance, weights):
    found = codec(name)
    decoded = found.dequantize(found.quantize(w, importance), *w.shape)
    return np.sqrt((weights * (decoded - w) ** 2).sum() / (weights * w * w).sum())


def test_block_importance_is_relative_to_the_greatest_of_each_block():
    importance = np.r_[np.arange(32), np.full(8, 1e-20), np.full(24, 5e-21)].astype(np.float32)
    h = block_importance(importance, 64)
    assert h[0] == LEAST_IMPORTANCE
    assert h[31] == h[32] == 1
    assert h[16] == np.float32(16) / np.float32(31)
    np.testing.assert_allclose(h[40:], 0.5, rtol=1e-6)


def test_block_importance_without_any_weights_columns_alike():
    np.testing.assert_array_equal(block_importance(np.zeros(64, np.float32), 64), np.ones(64))


def test_block_importance_padding_counts_least():
    h = block_importance(np.ones(40, np.float32), 40)
    np.testing.assert_array_equal(h, np.r_[np.ones(40), np.full(24, LEAST_IMPORTANCE)])


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(39, np.float32), r"expected float32 \(40,\).*found float32 \(39,\)"),
        (np.ones(40), r"expected float32 \(40,\).*found float64 \(40,\)"),
        (np.r_[np.ones(39), np.nan].astype(np.float32), "column 39: .* found nan"),
        (np.r_[1, np.inf, np.ones(38)].astype(np.float32), "column 1: .* found inf"),
        (np.r_[-1, np.ones(39)].astype(np.float32), "column 0: .* found -1"),
    ],
)
def test_block_importance_that_is_none_is_refused(importance, message):
    with pytest.raises(ConversionError, match=message):
        block_importance(importance, 40)


# The limits are what the searches reach, plus 0.3%: fewer starts or no refit break them.
# Columns vary as the squares of Gaussian channels do; ggml's rounding gives 0.0860 and 0.00536.
# `share` is of the plain search's error.
@pytest.mark.parametrize(
    ("name", "limit", "share"),
    [
        ("q4", 0.0598, 0.9),
        ("q5", 0.03143, 0.91),
        ("q6", 0.0141, 0.9),
        ("q4_0", 0.0742, 0.93),
        ("q8_0", 0.00418, 0.91),
    ],
)
def test_quantize_with_importance_lowers_the_weighted_error(name, limit, share):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 1024)).astype(np.float32)
    importance = (rng.standard_normal(1024) ** 2).astype(np.float32)
    error = weighted_error(name, w, importance, importance)
    assert error < limit
    assert error < share * weighted_error(name, w, None, importance)


@pytest.mark.parametrize(("name", "limit"), [("q4_0", 0.0813), ("q8_0", 0.00471)])
def test_quantize_with_equal_importance_searches_the_scale(name, limit):
    w = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    ones = np.ones(1024, np.float32)
    assert weighted_error(name, w, ones, ones) < limit


def test_q4_with_equal_importance_is_the_plain_search(rng):
    w = rng.standard_t(3, (20, 96)).astype(np.float32)
    q4 = codec("q4")
    np.testing.assert_array_equal(q4.quantize(w, np.ones(96, np.float32)), q4.quantize(w))


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_quantize_with_importance_meets_a_grid_of_its_own_exactly(name, rng):
    # What the type itself made is not changed by quantizing it again.
    found = codec(name)
    w = found.dequantize(found.quantize(rng.standard_normal((16, 64), np.float32)), 16, 64)
    assert weighted_error(name, w, np.ones(64, np.float32), np.float32(1)) < 1e-7


@pytest.mark.parametrize("name", ["q4", "q5", "q6", "q4_0", "q8_0"])
def test_quantize_a_single_important_column_keeps_its_value(name, rng):
    w = rng.standard_normal((16, 32)).astype(np.float32)
    importance = np.eye(1, 32, 5, dtype=np.float32)[0]
    found = codec(name)
    error = np.abs(found.dequantize(found.quantize(w, importance), 16, 32) - w)
    # A step of the code is at most the block's range over 15 (q4_0's reaches over 7.5).
    assert error[:, 5].max() < 0.1 * np.abs(w).max()
    assert error[:, 5].mean() < error.mean() / 3
