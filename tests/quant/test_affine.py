from __future__ import annotations

import gguf
import hypothesis.extra.numpy as st_np
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qllama.quant import codec

Q4_1 = gguf.GGMLQuantizationType.Q4_1
#: The greatest code.
TYPES = {"q4": 15, "q5": 31, "q6": 63}

#: Of scale and minimum, in units of the row's factors.
STEPS = {"q4": 255, "q5": 63, "q6": 255}
#: How far the row's factors may be off, relative: those of q5 have 8 bits.
ROUNDING = {"q4": 2**-24, "q5": 2**-8, "q6": 2**-24}

each_type = pytest.mark.parametrize("name", TYPES)


def round_trip(name, w):
    return codec(name).dequantize(codec(name).quantize(w), *w.shape)


def relative_rmse(decoded, w):
    error = np.sum(np.square(decoded - w, dtype=np.float64))
    return np.sqrt(error / np.sum(np.square(w, dtype=np.float64)))


def row_factors(name, data):
    """Row scales and minimum scales of a one-tile matrix."""
    if name == "q5":
        tail = (data[-64:].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        tail = data[-128:].view(np.float32)
    return tail[:16], tail[16:]


DRAWS = {
    "gaussian": lambda rng: rng.standard_normal((64, 1024)),
    "student5": lambda rng: rng.standard_t(5, (64, 1024)),
    "uniform": lambda rng: rng.uniform(-1, 1, (64, 1024)),
    "positive": lambda rng: np.abs(rng.standard_normal((64, 1024))),
}


# The limits are what the search reaches, plus 0.3%: fewer starts or refits break them.
# ggml's Q6_K, of as many bits as q6, has 0.0178 of Gaussian weights and 0.0215 of Student's.
@pytest.mark.parametrize(
    ("name", "draw", "limit"),
    [
        ("q4", "gaussian", 0.0692),
        ("q4", "student5", 0.0796),
        ("q4", "uniform", 0.0530),
        ("q4", "positive", 0.0405),
        ("q5", "gaussian", 0.0353),
        ("q5", "student5", 0.0412),
        ("q5", "uniform", 0.02664),
        ("q5", "positive", 0.0195),
        ("q6", "gaussian", 0.01637),
        ("q6", "student5", 0.01904),
        ("q6", "uniform", 0.01250),
        ("q6", "positive", 0.00931),
    ],
)
def test_affine_error_is_what_the_search_reaches(name, draw, limit, rng):
    w = (DRAWS[draw](rng) * 0.02).astype(np.float32)
    assert relative_rmse(round_trip(name, w), w) < limit


@pytest.mark.parametrize("draw", DRAWS)
def test_q4_error_is_below_ggml_q4_1(draw, rng):
    # Which spends half a bit more a weight; that has to be won back and more.
    w = (DRAWS[draw](rng) * 0.02).astype(np.float32)
    ggml = gguf.quants.dequantize(gguf.quants.quantize(w, Q4_1), Q4_1)
    assert relative_rmse(round_trip("q4", w), w) < 0.93 * relative_rmse(ggml, w)


@each_type
def test_affine_grid_loses_only_the_rounding_of_scale_and_minimum(name, rng):
    # As a checkpoint of few bits holds them: scales differ from block to block.
    codes = rng.integers(0, TYPES[name] + 1, (64, 32, 32))
    codes[:, :, :2] = 0, TYPES[name]
    scales = rng.uniform(0.5, 1, (64, 32, 1))
    middle = TYPES[name] * rng.uniform(0.4, 0.6, (64, 32, 1))
    w = (scales * (codes - middle)).reshape(64, 1024).astype(np.float32)
    # Scale and minimum steps are 1/255 of the largest: about 0.4% of the weights' size.
    assert relative_rmse(round_trip(name, w), w) < 1.28 / STEPS[name]


@each_type
def test_affine_grid_without_its_first_or_last_level_is_met_exactly(name):
    # 15 of 16 levels in use, as ggml's Q4_0 leaves blocks; one block, so no rounding of codes.
    greatest = TYPES[name]
    codes = np.append(np.arange(31) * greatest // 31, greatest - 1)
    for w in (codes - greatest // 2, greatest // 2 - codes):
        w = w.astype(np.float32)[None]
        limit = 1e-5 + 2 * ROUNDING[name] * greatest
        np.testing.assert_allclose(round_trip(name, w), w, rtol=0, atol=limit)


@each_type
@settings(deadline=None, max_examples=60)
@given(
    w=st_np.arrays(
        np.float32,
        st.tuples(st.integers(1, 16), st.sampled_from([32, 64, 96])),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_affine_error_is_within_the_plain_grid_and_the_rounding_of_factors(name, w):
    """The search never ends worse than where it starts.

    A start is the grid over the block's range, half a step (range / 30) off at most.
    Rounding moves the scale by half of d, 7.5 d at the largest code, and the minimum
    by half of m: root mean squares add up by the triangle inequality. So with 63 for 15.
    Fits are compared by sums, four terms of 32 roundings of 2**-24 of the squares' size: a
    fit may be kept whose root mean square is 2**-8.5 of the weights' above the best.
    """
    rows, k = w.shape
    greatest = TYPES[name]
    data = codec(name).quantize(w)
    d, m = (a[:rows, None] for a in row_factors(name, data))
    blocks = w.reshape(rows, -1, 32)
    span = blocks.max(axis=2) - np.minimum(blocks.min(axis=2), 0)
    error = codec(name).dequantize(data, rows, k).reshape(blocks.shape) - blocks
    rms = np.sqrt(np.mean(np.square(error, dtype=np.float64), axis=2))
    rounding = 2**-8.5 * np.abs(blocks).max(axis=2)
    assert (rms <= span / (2 * greatest) + greatest * d / 2 + m / 2 + rounding + 1e-30).all()


@each_type
@given(value=st.floats(2**-60, 2**40, width=32), sign=st.sampled_from([-1, 1]))
def test_affine_constant_block_keeps_its_value(name, value, sign):
    w = np.full((3, 64), sign * value, np.float32)
    np.testing.assert_allclose(round_trip(name, w), w, rtol=1e-6 + 2 * ROUNDING[name])


@each_type
def test_affine_positive_block_counts_from_near_zero(name):
    # Starts lie up to 3.2 codes inside the range.
    w = np.linspace(1, 2, 32, dtype=np.float32)[None]
    d, m = row_factors(name, codec(name).quantize(w))
    assert 0 <= m[0] < 4 * d[0]


@each_type
def test_affine_negative_block_is_lifted_by_its_minimum(name):
    w = np.linspace(-2, -1, 32, dtype=np.float32)[None]
    # Half a step of a range of 1, of weights of 1.5.
    assert relative_rmse(round_trip(name, w), w) < 1 / (2 * TYPES[name])


@each_type
def test_affine_zero_blocks_beside_others_stay_zero(name, rng):
    w = rng.standard_normal((16, 96), dtype=np.float32)
    w[:, 32:64] = 0
    assert np.abs(round_trip(name, w)[:, 32:64]).max() == 0


@each_type
def test_affine_single_outlier_keeps_its_value(name):
    w = np.zeros((1, 64), np.float32)
    w[0, 40] = -5.0
    back = round_trip(name, w)
    limit = 1e-5 + 2 * ROUNDING[name]
    assert back[0, 40] == pytest.approx(-5.0, rel=limit)
    assert np.abs(np.delete(back[0], 40)).max() < 5 * limit


@each_type
def test_affine_block_far_below_its_row_decodes_near_zero(name, rng):
    # Its scale rounds to code 0 or 1: the error stays below the row's step.
    w = rng.standard_normal((1, 64)).astype(np.float32)
    w[0, 32:] *= 1e-4
    d, m = row_factors(name, codec(name).quantize(w))
    assert np.abs(round_trip(name, w)[0, 32:] - w[0, 32:]).max() <= TYPES[name] * d[0] + m[0]


@each_type
@pytest.mark.parametrize("size", [1e-30, 1e-34, 1e-36, 1e-38, 1e-40, 1e14])
def test_affine_weights_of_any_size_decode_to_that_size(name, size, rng):
    w = (rng.standard_normal((16, 64)) * size).astype(np.float32)
    data = codec(name).quantize(w)
    least_normal = np.finfo(np.float32).smallest_normal
    for factor in row_factors(name, data):
        assert ((factor == 0) | (factor >= least_normal)).all()
    # Factors that would be subnormal count as 0: nothing is left of such rows.
    bound = np.maximum(np.abs(w).max() / 7, 255 * 16 * least_normal)
    assert np.abs(codec(name).dequantize(data, *w.shape) - w).max() <= bound


@each_type
def test_affine_requantizing_decoded_weights_changes_them_little(name, rng):
    w = rng.standard_normal((16, 128), dtype=np.float32)
    once = round_trip(name, w)
    # Not to the bit: the row factors are found anew, a rounding of 1/255 each.
    assert relative_rmse(round_trip(name, once), once) < 1 / STEPS[name]


def test_q4_smollm2_weights_come_back_within_half_a_percent(smollm2_gguf):
    # The checkpoint's blocks are grids of 16 levels; ggml's Q4_0 leaves 8.4-9.9% of them.
    tensors = {t.name: t for t in gguf.GGUFReader(smollm2_gguf).tensors}
    for name in ("blk.0.attn_q.weight", "blk.10.attn_v.weight", "blk.15.ffn_down.weight"):
        tensor = tensors[name]
        w = gguf.quants.dequantize(tensor.data[:128], tensor.tensor_type)
        assert relative_rmse(round_trip("q4", w), w) < 0.005
