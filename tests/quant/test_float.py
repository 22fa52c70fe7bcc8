from __future__ import annotations

import numpy as np
import pytest

from qllama.quant import codec


@pytest.mark.parametrize(
    ("name", "weight", "rounded"),
    [
        # Ties go to the even neighbour; the least subnormal's half goes to zero.
        ("f16", 1 + 2**-11, 1.0),
        ("f16", 1 + 3 * 2**-11, 1 + 2**-9),
        ("f16", 2**-24, 2**-24),
        ("f16", 2**-25, 0.0),
        ("f16", -1.5 * 2**-25, -(2**-24)),
        ("bf16", 1 + 2**-8, 1.0),
        ("bf16", 1 + 3 * 2**-8, 1 + 2**-6),
        ("bf16", 2**-133, 2**-133),
        ("f32", 2**-149, 2**-149),
    ],
)
def test_float_codec_rounds_to_nearest_even(name, weight, rounded):
    w = np.array([[weight]], np.float32)
    assert codec(name).dequantize(codec(name).quantize(w), 1, 1)[0, 0] == np.float32(rounded)
