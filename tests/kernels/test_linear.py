"""Matrix products of every weight type on every instruction set, against the codecs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from packing import (
    BATCHES,
    KERNELS,
    MANY,
    activations,
    aligned,
    aligned_copy,
    gamma,
    multiply,
    pack_f32,
    pack_q8,
    pad_columns,
    padded,
    runnable_isas,
)

from qllama.kernels import reference
from qllama.kernels.isa import current_isa
from qllama.kernels.linear import linear
from qllama.kernels.weight_kernels import WEIGHT_KERNELS
from qllama.quant import QUANT_TYPES, codec

ISAS = runnable_isas()
INTEGER = [name for name, kernel in KERNELS.items() if kernel.activation == "q8"]
K = (1, 31, 32, 33, 100, 288, 576, 1100)
ROWS = (1, 15, 16, 17, 40)

each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
each_type = pytest.mark.parametrize("name", KERNELS)


@cache
def weights(name, rows, k):
    """Storage of a random matrix."""
    rng = np.random.default_rng([rows, k])
    w = rng.standard_t(4, (rows, k)) * 10.0 ** rng.uniform(-1, 1, (rows, 1))
    return codec(name).quantize(w.astype(np.float32))


@cache
def inputs(k):
    """Activations of MANY tokens, with outliers as transformers have them."""
    rng = np.random.default_rng(k)
    return (rng.standard_t(3, (MANY, k)) * rng.uniform(0.1, 3, (MANY, 1))).astype(np.float32)


def magnitudes(name, data, shape):
    """Float64 (rows, k): |weight|, or the sum of the two terms it is the difference of."""
    w = codec(name).dequantize(data, *shape).astype(np.float64)
    if not KERNELS[name].has_minimum:
        return np.abs(w)
    codes_are_zero = codec(name).tiles(data.copy(), *shape)
    n_blocks, block = padded(shape[1]) // 32, KERNELS[name].block_bytes
    blocks = codes_are_zero[:, : block * n_blocks].reshape(-1, n_blocks, block)
    blocks[:, :, : 64 * KERNELS[name].bits] = 0
    minimums = -codec(name).dequantize(codes_are_zero.reshape(-1), *shape).astype(np.float64)
    return w + 2 * minimums


def bound(name, data, shape, x):
    """How far the kernel may be from the reference: float64 (n_tokens, rows).

    Every term |weight * activation| passes through at most so many roundings, each of
    relative size 2**-24 (integer sums are exact, Higham 2002, eq. 3.4 for the rest):

    - floats: two chains of K / 2 additions, one product (portable code rounds it apart
      from its addition), one addition of the chains;
    - integers: one addition a block, the product of the scales, the product with the
      block's sum, the row factor, the difference of scaled codes and minimums, and the
      packed sum of the activations;
    - the reference: up to 3 to dequantize a weight, 1 for an activation, 1 for the result.
    """
    k = padded(shape[1])
    n = k // 2 + 2 if KERNELS[name].activation == "f32" else k // 32 + 5
    x = np.abs(x[:, : shape[1]].astype(np.float64))
    return gamma(n + 5) * (x @ magnitudes(name, data, shape).T)


def expected(name, data, shape, x):
    return reference.linear(x[:, : shape[1]], codec(name).dequantize(data, *shape))


@each_isa
@each_type
@pytest.mark.parametrize("k", K)
def test_linear_any_shape_equals_the_reference_within_rounding(name, isa, k):
    packed, x = activations(inputs(k), name, isa)
    for rows in ROWS:
        data, shape = weights(name, rows, k), (rows, k)
        y = multiply(name, isa, data, shape, packed, MANY)
        error = np.abs(y - expected(name, data, shape, x))
        assert (error <= bound(name, data, shape, x)).all(), (rows, error.max())


@each_isa
@each_type
@pytest.mark.parametrize("k", K)
def test_linear_token_has_the_same_bits_in_any_batch(name, isa, k):
    shape = (40, k)
    data = weights(name, *shape)
    everything = multiply(name, isa, data, shape, activations(inputs(k), name, isa)[0], MANY)
    for n_tokens in BATCHES[:-1]:
        first = 3 * n_tokens % 13  # tokens meet other lanes and other neighbours
        packed, _ = activations(inputs(k)[first : first + n_tokens], name, isa)
        y = multiply(name, isa, data, shape, packed, n_tokens)
        np.testing.assert_array_equal(y, everything[first : first + n_tokens], str(n_tokens))


@pytest.mark.skipif({"amx", "avx512vnni"} - {isa.name for isa in ISAS} != set(), reason="no AMX")
@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("k", K)
def test_linear_matrix_instructions_give_the_bits_of_the_vector_ones(name, k):
    shape = (40, k)
    data = weights(name, *shape)
    results = [
        multiply(name, isa, data, shape, activations(inputs(k), name, isa)[0], MANY)
        for isa in ISAS
        if isa.name in ("amx", "avx512vnni")
    ]
    np.testing.assert_array_equal(*results)


@each_isa
@each_type
def test_linear_one_changed_bit_is_seen(name, isa):
    shape = (16, 100)
    data = weights(name, *shape)
    packed, x = activations(inputs(100), name, isa)
    good, limit = expected(name, data, shape, x), bound(name, data, shape, x)
    block = KERNELS[name].block_bytes
    # The low bit of a code; for floats of the highest byte but one, a bit of the fraction.
    places = [0, 5] if name in INTEGER else [{"f32": 2}.get(name, 0)]
    if name in INTEGER:
        places += [block - 31]  # a byte of a scale, or of the codes of minimums
    if KERNELS[name].has_minimum:
        places += [block - 17, -128 + 2, -62]  # a code of scales; row factors
    for place in places:
        mutant = data.copy()
        mutant[place] ^= {"f16": 64, "bf16": 16}.get(name, 1)
        y = multiply(name, isa, mutant, shape, packed, MANY)
        assert (np.abs(y - good) > limit).any(), place


@each_isa
@pytest.mark.parametrize("name", INTEGER)
def test_linear_one_changed_activation_is_seen(name, isa):
    shape = (16, 100)
    data = weights(name, *shape)
    x = pad_columns(inputs(100))
    codes, scales = reference.quantize_activations(x)
    exact = reference.dequantize_activations(codes, scales)
    codes[7, 50] ^= 1
    y = multiply(name, isa, data, shape, pack_q8(codes, scales, isa), MANY)
    wrong = np.abs(y - expected(name, data, shape, exact)) > bound(name, data, shape, exact)
    assert wrong[7].any()
    assert not np.delete(wrong, 7, axis=0).any()


def affine_storage(name, code_byte, scale_code, minimum_code, k):
    """16 rows whose bytes of codes are all alike, as are their scales and minimums; factors 1."""
    codes = np.full(64 * KERNELS[name].bits, code_byte, np.uint8)
    if name == "q5":
        pairs = [scale_code | minimum_code % 4 << 6] * 16 + [minimum_code // 4 * 17] * 8
        factors = np.full(32, 0x3F80, np.uint16)  # 1 in bfloat16
    else:
        pairs = [scale_code] * 16 + [minimum_code] * 16
        factors = np.ones(32, np.float32)
    block = np.concatenate([codes, np.array(pairs, np.uint8)])
    return np.concatenate([np.tile(block, k // 32), factors.view(np.uint8)])


def extreme_storage(name, high, k):
    """Storage of 16 rows of the greatest (or least) code, and the weight it stands for.

    Scales are 1, so that every product and sum of the kernel is a whole float32.
    """
    if name == "q8_0":
        value = 127 if high else -128
        codes, scales = np.full((16, k), value, np.int8), np.ones((16, k // 32), np.float16)
        return codec(name).pack(codes, scales), value
    if name == "q4_0":
        codes = np.full((16, k), 15 if high else 0, np.uint8)
        return codec(name).pack(codes, np.ones((16, k // 32), np.float16)), 7 if high else -8
    value = 2 ** KERNELS[name].bits - 1 - 3 if high else -3
    return affine_storage(name, 255 if high else 0, 1, 3, k), value


@each_isa
@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize("k", [32, 576])
def test_linear_extreme_codes_do_not_saturate(name, isa, high, k):
    data, weight = extreme_storage(name, high, k)
    codes = np.full((MANY, k), 127, np.int8)
    codes[1::2] = -127
    codes[5, ::2] = -127
    codes[6, 1::3] = 127
    packed = pack_q8(codes, np.ones((MANY, k // 32), np.float32), isa)
    # Every partial sum is a whole number below 2**24: the result is exact.
    assert k * 128 * 127 < 2**24
    sums = codes.astype(np.int64).sum(1)
    y = multiply(name, isa, data, (16, k), packed, MANY)
    np.testing.assert_array_equal(y, np.broadcast_to(weight * sums[:, None], (MANY, 16)))


@each_isa
@pytest.mark.parametrize("name", [name for name in INTEGER if KERNELS[name].has_minimum])
def test_linear_largest_scale_codes_are_taken_as_unsigned(name, isa):
    greatest = 2 ** KERNELS[name].pair_bits - 1
    data = affine_storage(name, 255, greatest, greatest - 1, 32)
    packed = pack_q8(np.ones((MANY, 32), np.int8), np.ones((MANY, 1), np.float32), isa)
    y = multiply(name, isa, data, (16, 32), packed, MANY)
    np.testing.assert_array_equal(y, 32 * (greatest * (2 ** KERNELS[name].bits - 1) - greatest + 1))


@each_isa
@each_type
def test_linear_accumulate_adds_to_the_output(name, isa):
    shape = (40, 100)
    data = weights(name, *shape)
    packed, _ = activations(inputs(100), name, isa)
    y = multiply(name, isa, data, shape, packed, MANY)
    before = np.random.default_rng(1).standard_normal((MANY, 48)).astype(np.float32)
    out = aligned_copy(before)
    multiply(name, isa, data, shape, packed, MANY, out=out, accumulate=1)
    np.testing.assert_array_equal(out[:, :40], before[:, :40] + y)


@each_isa
@each_type
def test_linear_writes_nothing_beyond_its_tile(name, isa):
    shape = (16, 33)
    data = weights(name, *shape)
    packed, _ = activations(inputs(33), name, isa)
    for n_tokens in BATCHES:
        packed, _ = activations(inputs(33)[:n_tokens], name, isa)
        memory = aligned((n_tokens + 2, 48), fill=7)
        multiply(name, isa, data, shape, packed, n_tokens, out=memory[1:-1, 16:32])
        memory[1:-1, 16:32] = 7
        assert (memory == 7).all(), n_tokens


@each_isa
@each_type
def test_linear_rows_of_padding_are_zero(name, isa):
    shape = (1, 33)
    packed, _ = activations(inputs(33), name, isa)
    out = aligned((MANY, 16), fill=np.nan)
    multiply(name, isa, weights(name, *shape), shape, packed, MANY, out=out)
    assert (out[:, 1:] == 0).all()


@each_isa
@each_type
def test_linear_not_a_number_poisons_its_token_only(name, isa):
    x = inputs(100).copy()
    x[4, 40] = np.nan
    shape = (17, 100)
    data = weights(name, *shape)
    if KERNELS[name].activation == "f32":
        packed = pack_f32(pad_columns(x), isa)
    else:
        codes, scales = reference.quantize_activations(pad_columns(inputs(100)))
        scales[4, 1] = np.nan
        packed = pack_q8(codes, scales, isa)
    y = multiply(name, isa, data, shape, packed, MANY)
    assert np.isnan(y[4]).all()
    assert np.isfinite(np.delete(y, 4, axis=0)).all()


def test_linear_empty_choice_of_an_instruction_set_is_none(monkeypatch):
    monkeypatch.setenv("QLLAMA_ISA", "")
    assert current_isa() in runnable_isas()


def test_linear_every_weight_type_has_a_kernel():
    assert list(KERNELS) == list(QUANT_TYPES)
    assert len(WEIGHT_KERNELS) == len(KERNELS)


@each_type
def test_linear_of_this_machine_is_of_its_isa_and_compiled_once(name):
    assert linear(name) is linear(name)
    shape = (17, 33)
    data = weights(name, *shape)
    packed, _ = activations(inputs(33), name, current_isa())
    y = multiply(name, current_isa(), data, shape, packed, MANY, kernel=linear(name))
    same = multiply(name, current_isa(), data, shape, packed, MANY)
    np.testing.assert_array_equal(y, same)
