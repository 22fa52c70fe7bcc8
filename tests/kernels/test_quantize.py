"""The compiled quantizers against the codecs: every byte equal."""

from __future__ import annotations

import os
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qllama.errors import ConversionError
from qllama.kernels.quantize import quantize
from qllama.quant import QUANT_TYPES, codec

TYPES = list(QUANT_TYPES)
# One element; a tile; beyond a tile both ways; more than one chunk of 4 blocks; SmolLM2's k.
SHAPES = [(1, 1), (16, 32), (17, 33), (40, 160), (5, 1000), (48, 576)]


def trained_like(rng, shape):
    """Heavy-tailed weights whose rows differ in size, with zeros and a zero block."""
    w = rng.standard_t(3, shape) * 10.0 ** rng.integers(-3, 2, (shape[0], 1))
    w[rng.random(shape) < 0.05] = 0
    w[0, 32:64] = -0.0
    return w.astype(np.float32)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantize_equals_the_codec(name, shape):
    w = trained_like(np.random.default_rng(3), shape)
    np.testing.assert_array_equal(quantize(name, w, 1), codec(name).quantize(w))


def importances(rng, k):
    """All alike; spread over eight orders of magnitude; none at all; a single column."""
    yield np.ones(k, np.float32)
    yield (10.0 ** rng.uniform(-6, 2, k)).astype(np.float32)
    yield np.zeros(k, np.float32)
    yield np.eye(1, k, k // 2, dtype=np.float32)[0]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantize_with_importance_equals_the_codec(name, shape):
    rng = np.random.default_rng(8)
    w = trained_like(rng, shape)
    for importance in importances(rng, shape[1]):
        np.testing.assert_array_equal(
            quantize(name, w, 2, importance), codec(name).quantize(w, importance)
        )


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("importance", [None, np.linspace(0, 1, 160, dtype=np.float32)])
def test_quantize_fast_equals_the_codec(name, importance):
    w = trained_like(np.random.default_rng(9), (40, 160))
    expected = codec(name).quantize(w, importance, fast=True)
    np.testing.assert_array_equal(quantize(name, w, 2, importance, fast=True), expected)
    if name not in ("f32", "f16", "bf16"):
        assert (expected != codec(name).quantize(w, importance)).any()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("n_threads", [2, 3, 50])
def test_quantize_result_does_not_depend_on_threads(name, n_threads):
    w = trained_like(np.random.default_rng(4), (70, 200))
    np.testing.assert_array_equal(quantize(name, w, n_threads), quantize(name, w, 1))


def test_quantize_one_part_starts_no_thread(monkeypatch):
    def refuse(n_threads: int) -> None:
        raise AssertionError("started threads")

    monkeypatch.setattr("qllama.kernels.quantize.ThreadPoolExecutor", refuse)
    w = trained_like(np.random.default_rng(4), (70, 200))
    np.testing.assert_array_equal(quantize("q8_0", w, 1), codec("q8_0").quantize(w))


@pytest.mark.parametrize("name", TYPES)
def test_quantize_slabs_of_whole_tiles_concatenate(name):
    w = trained_like(np.random.default_rng(5), (70, 96))
    slabs = [quantize(name, w[a:b], 2) for a, b in ((0, 16), (16, 64), (64, 70))]
    np.testing.assert_array_equal(np.concatenate(slabs), quantize(name, w, 2))


def blocks_of_every_kind():
    """Rows of 64: constants, signs, grids, outliers, tiny and huge weights, exact ties."""
    ramp = np.arange(64)
    rows = [
        np.zeros(64),
        np.full(64, -0.0),
        np.full(64, 0.37),
        np.full(64, -0.37),
        np.linspace(1, 2, 64),
        np.linspace(-2, -1, 64),
        ramp % 16 - 8.0,
        7.0 - ramp % 15,
        np.where(ramp == 40, 1000.0, 0.001 * ramp),
        np.where(ramp % 2, 5.0, -5.0),
        np.where(ramp < 32, 1e-4, 1.0) * np.sin(ramp),
        np.sin(ramp) * 2e-24,
        np.sin(ramp) * 1e-36,
        np.sin(ramp) * 1e-39,
        np.r_[np.arange(-31, 32) + 0.5, 127],
        np.nextafter(np.r_[np.arange(-31, 32) + 0.5, 127].astype(np.float32), np.float32(0)),
        np.full(64, 2.0**-149),
        np.cos(ramp) * 6e4,
        # Far from 0 and nearly constant: fits cancel to scales of either sign.
        -1000 + ramp * 7 % 3 * 2.0**-14,
        -1000 + ramp * 5 % 7 * 2.0**-14,
    ]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("name", TYPES)
def test_quantize_block_of_any_kind_equals_the_codec(name):
    w = blocks_of_every_kind()
    np.testing.assert_array_equal(quantize(name, w, 1), codec(name).quantize(w))
    importance = np.linspace(0, 1, 64, dtype=np.float32)
    np.testing.assert_array_equal(
        quantize(name, w, 1, importance), codec(name).quantize(w, importance)
    )


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_quantize_scale_of_any_size_rounds_as_the_codec(name):
    # Every exponent whose float16 is normal, subnormal or zero, and significands that tie.
    exponents = np.repeat(np.arange(-130, 12), 8)
    significand = 1 + np.tile([0, 1, 2, 3, 2047, 2048, 2049, 4095], 142) * 2.0**-12
    w = np.ldexp(significand, exponents).astype(np.float32)[:, None] * np.float32([[127, 1, -1]])
    np.testing.assert_array_equal(quantize(name, w, 1), codec(name).quantize(w))
    ones = np.ones(3, np.float32)
    np.testing.assert_array_equal(quantize(name, w, 1, ones), codec(name).quantize(w, ones))


@pytest.mark.parametrize("name", TYPES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_quantize_any_weights_equal_the_codec(name, data):
    shape = data.draw(st.tuples(st.integers(1, 20), st.sampled_from([1, 31, 32, 150])))
    limit = np.float32(min(codec(name).max_magnitude, 1e30))
    bits = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(
        0, 2**32, shape, np.uint32
    )
    w = bits.view(np.float32)
    w = np.clip(np.nan_to_num(w, nan=0.0), -limit, limit)
    np.testing.assert_array_equal(quantize(name, w, 1), codec(name).quantize(w))
    h = np.abs(np.nan_to_num(w[-1]))
    np.testing.assert_array_equal(quantize(name, w, 1, h), codec(name).quantize(w, h))


@pytest.mark.parametrize("name", TYPES)
def test_quantize_not_a_finite_number_is_refused_by_place(name):
    w = np.zeros((20, 40), np.float32)
    w[7, 33] = np.nan
    with pytest.raises(ConversionError, match=rf"weight \[7, 33\].*for {name}, found nan"):
        quantize(name, w, 2)


@pytest.mark.parametrize("name", TYPES)
def test_quantize_read_only_weights_stay_as_they_are(name):
    w = trained_like(np.random.default_rng(6), (16, 64))
    before = w.copy()
    w.flags.writeable = False
    quantize(name, w, 1)
    np.testing.assert_array_equal(w, before)


def run(program, **environment):
    """Run a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_quantize_threads_that_share_a_heap_write_in_no_other_s_memory():
    """One that is freed too early is the next thread's: seen where all have one heap."""
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import numpy as np\n"
        "from qllama.kernels.quantize import quantize\n"
        "w = np.random.default_rng(0).standard_normal((32, 2048), np.float32)\n"
        "for name in ('q8_0', 'q4_0', 'q4', 'q5', 'q6'):\n"
        "    alone = quantize(name, w, 1)\n"
        "    with ThreadPoolExecutor(4) as pool:\n"
        "        for beside in pool.map(lambda _: quantize(name, w, 1), range(100)):\n"
        "            assert np.array_equal(beside, alone), name\n"
    )
    done = run(program, MALLOC_ARENA_MAX="1")
    assert done.returncode == 0, done.stderr


def test_quantize_code_for_a_generic_cpu_gives_the_same_bytes():
    program = (
        "import numpy as np\n"
        "from qllama.kernels.quantize import quantize\n"
        "from qllama.quant import codec\n"
        "w = np.random.default_rng(7).standard_t(3, (20, 170)).astype(np.float32)\n"
        "for name in ('q8_0', 'q4_0', 'q4', 'q5', 'q6'):\n"
        "    for h in (None, np.linspace(0, 1, 170, dtype=np.float32)):\n"
        "        assert np.array_equal(quantize(name, w, 1, h), codec(name).quantize(w, h)), name\n"
    )
    done = run(program, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert done.returncode == 0, done.stderr
