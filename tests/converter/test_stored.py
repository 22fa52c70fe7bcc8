"""Arrays in files: any range of rows, from one piece or several, and files that change."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from converter.sources.stored import Extent, StoredArray
from qllama.errors import ConversionError

VALUES = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


def stored(path, values, cuts=(), gap=3) -> StoredArray:
    """Write an array in pieces that end after `cuts` bytes, each after a `gap` of rubbish."""
    raw = values.tobytes()
    content, extents, start = b"", [], 0
    for stop in (*cuts, len(raw)):
        content += b"?" * gap
        extents.append(Extent(len(content), stop - start))
        content += raw[start:stop]
        start = stop
    path.write_bytes(content + b"?")
    return StoredArray("m: tensor 'a'", path, values.dtype, values.shape, extents)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8], ids=str
)
@pytest.mark.parametrize("cuts", [(), (1, 2, 20), (10, 10, 34), (20,)])
def test_stored_array_every_range_of_rows_is_the_array_s(tmp_path, dtype, cuts):
    values = (VALUES * 9).astype(dtype)
    array = stored(tmp_path / "f", values, cuts)
    for start in range(7):
        for stop in range(start + 1, 8):
            found = array.read(start, stop)
            np.testing.assert_array_equal(found, values[start:stop].astype(np.float32), strict=True)
            assert found.flags.c_contiguous
    assert array.read_stored(2, 4).dtype == values.dtype


def test_stored_array_vector_is_read_by_elements(tmp_path):
    array = stored(tmp_path / "f", VALUES[:, 0], cuts=(6,))
    np.testing.assert_array_equal(array.read(1, 6), VALUES[1:6, 0])


def test_stored_array_has_no_rows_past_its_end(tmp_path):
    array = stored(tmp_path / "f", np.zeros(0, np.float32))
    with pytest.raises(AssertionError):
        array.read(0, 1)


def test_stored_array_says_what_it_is(tmp_path):
    array = stored(tmp_path / "f", VALUES.astype(ml_dtypes.bfloat16))
    assert (array.shape, array.source_type, array.n_bytes) == ((7, 5), "bfloat16", 70)


@pytest.mark.parametrize("shape", [(7, 6), (34,), (2**40, 2**40), ()])
def test_stored_array_of_the_wrong_size_is_refused(tmp_path, shape):
    with pytest.raises(ConversionError, match=r"^m: expected \d+ bytes for float32 .* found 140$"):
        StoredArray("m", tmp_path / "f", "<f4", shape, [Extent(0, 100), Extent(200, 40)])


def test_stored_array_in_a_file_that_shrank_is_refused(tmp_path):
    array = stored(tmp_path / "f", VALUES)
    with (tmp_path / "f").open("r+b") as file:
        file.truncate(100)
    np.testing.assert_array_equal(array.read(0, 4), VALUES[:4])
    with pytest.raises(ConversionError, match=r"tensor 'a': the file became shorter"):
        array.read(4, 7)


def test_stored_array_in_a_file_that_is_gone_is_refused(tmp_path):
    array = stored(tmp_path / "f", VALUES)
    (tmp_path / "f").unlink()
    with pytest.raises(ConversionError, match=r"tensor 'a': cannot be read: No such file"):
        array.read(0, 1)
