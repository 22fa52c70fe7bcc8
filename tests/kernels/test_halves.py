import numpy as np
import pytest

from qllama.kernels.halves import halves_to_floats


def test_halves_to_floats_every_half_is_numpys():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(2, -1)
    np.testing.assert_array_equal(halves_to_floats(halves), halves.astype(np.float32))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 31, 33])
def test_halves_to_floats_of_any_number_stays_within(n):
    halves = np.linspace(-3, 3, n).astype(np.float16)
    np.testing.assert_array_equal(halves_to_floats(halves), halves.astype(np.float32))
