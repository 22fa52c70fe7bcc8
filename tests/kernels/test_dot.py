"""Dot products of bytes on every instruction set: exact for all bytes, however extreme."""

from __future__ import annotations

import numpy as np
import pytest
from emitted import compiled
from packing import runnable_isas

from qllama.kernels.dot import MAX_STEPS, byte_dot
from qllama.kernels.simd import I32

N = 480


def steps(rng, low, high):
    """Int (N, MAX_STEPS, 4): random bytes, the first rows all of the extremes."""
    numbers = rng.integers(low, high + 1, (N, MAX_STEPS, 4))
    numbers[:16], numbers[16:32] = low, high
    numbers[32:48], numbers[48:64] = [low, high, high, low], [0, high, low, 0]
    return numbers


def lanes_of(numbers, step):
    """The four bytes of one step of all rows as int32 (N,)."""
    return np.ascontiguousarray(numbers[:, step]).astype(np.uint8).view(np.int32)[:, 0]


@pytest.mark.parametrize("isa", runnable_isas(), ids=lambda isa: isa.name)
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("n_steps", [1, MAX_STEPS])
def test_byte_dot_any_bytes_add_exactly(isa, bits, n_steps):
    rng = np.random.default_rng(bits)
    offset = 128 if bits == 8 and isa.signed else 0
    weights = steps(rng, -offset, 2**bits - 1 - offset)
    # Rolled by 8: every extreme of the weights meets every one of the codes.
    codes = np.roll(steps(rng, -127, 127), 8, axis=0)
    start = rng.integers(-(2**30), 2**30, N).astype(np.int32)

    def emit(b, start, *operands):
        dot = byte_dot(b, isa, bits, start)
        for step in range(n_steps):
            dot.add(operands[2 * step], operands[2 * step + 1])
        return dot.total

    run = compiled(emit, [I32] * (1 + 2 * n_steps), I32, isa.lanes)
    operands = [lanes_of(a, step) for step in range(n_steps) for a in (weights, codes)]
    products = (weights[:, :n_steps] * codes[:, :n_steps]).sum((1, 2))
    np.testing.assert_array_equal(run(start, *operands), start + products)
