"""Safetensors files: every array where the library would read it, damage named in one line."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from converter.sources.safetensors_file import safetensors_arrays
from qllama.errors import ConversionError, QllamaError, UnsupportedModelError

RANDOM = np.random.default_rng(3)
ARRAYS = {
    "a.float32": RANDOM.standard_normal((5, 7)).astype(np.float32),
    "b.bfloat16": RANDOM.standard_normal((3, 4)).astype(ml_dtypes.bfloat16),
    "c.float16": RANDOM.standard_normal(9).astype(np.float16),
    "d.int8": RANDOM.integers(-127, 128, (4, 6)).astype(np.int8),
    "e.scalar": np.array(3, np.uint8),
    "f.empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def path(tmp_path):
    save_file(ARRAYS, tmp_path / "m.safetensors", metadata={"format": "pt"})
    return tmp_path / "m.safetensors"


def write_header(path, header, data=b""):
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_safetensors_arrays_are_what_was_saved(path):
    found = safetensors_arrays(path)
    assert found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        array = found[name]
        assert array.shape == values.shape
        assert array.n_bytes == values.nbytes
        rows = values.shape[0] if values.ndim else 1
        stored = array.read_stored(0, rows)
        assert stored.dtype == values.dtype
        np.testing.assert_array_equal(stored, np.atleast_1d(values))
    np.testing.assert_array_equal(
        found["a.float32"].read(2, 4), ARRAYS["a.float32"][2:4], strict=True
    )


def test_safetensors_arrays_name_file_and_tensor(path):
    assert safetensors_arrays(path)["a.float32"].where == f"{path}: tensor 'a.float32'"


def test_safetensors_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match=r"m\.safetensors: ") as caught:
            safetensors_arrays(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "WORD", "shape": [2], "data_offsets": [0, 8]},
    ],
)
def test_safetensors_wrong_entry_is_refused(tmp_path, entry):
    path = write_header(tmp_path / "m.safetensors", {"a": entry}, bytes(8))
    with pytest.raises(ConversionError, match="malformed"):
        safetensors_arrays(path)


def test_safetensors_type_without_equal_is_named(tmp_path):
    entry = {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}
    path = write_header(tmp_path / "m.safetensors", {"a": entry}, bytes(2))
    with pytest.raises(UnsupportedModelError, match="'a' is of type F4"):
        safetensors_arrays(path)


def test_safetensors_absent_file_is_named(tmp_path):
    with pytest.raises(ConversionError, match=r"absent\.safetensors"):
        safetensors_arrays(tmp_path / "absent.safetensors")


def test_safetensors_random_damage_of_the_header_is_one_line_or_nothing(path):
    whole = path.read_bytes()
    random = np.random.default_rng(7)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        for at in random.integers(int.from_bytes(whole[:8], "little"), size=2):
            damaged[at] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            safetensors_arrays(path)
        except QllamaError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not [m for m in messages if "\n" in m]
