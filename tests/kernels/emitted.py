"""Runs what a function of `qllama.kernels.simd` emits, over whole arrays."""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from packing import address, aligned, aligned_copy

from qllama.kernels import simd
from qllama.kernels._jit import intrinsic
from qllama.kernels.simd import F32, I8, I16, I32, I64

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
