"""Reading a good file: values, views, life time, and what `verify` finds."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from qlm_sample import (
    BLOB,
    CONFIG,
    PROVENANCE,
    RECIPE,
    SPECS,
    TOKENIZER,
    assemble,
    contents,
    split,
    write_sample,
    writer,
)

from qllama.errors import BadTensorError, ChecksumError
from qllama.format import QlmFile, TensorSpec
from qllama.quant import codec

NAMES = [spec.name for spec in SPECS]


@pytest.fixture
def path(tmp_path):
    return write_sample(tmp_path / "sample.qlm")


def damage(path, at):
    """Flip one bit of the data section of the file at `path`."""
    with path.open("r+b") as file:
        file.seek(65536 + at)
        byte = file.read(1)[0]
        file.seek(65536 + at)
        file.write(bytes([byte ^ 0x10]))


def test_reader_sample_gives_what_was_written(path):
    file = QlmFile.open(path)
    assert file.path == path
    assert (file.config, file.tokenizer) == (CONFIG, TOKENIZER)
    assert (file.recipe, file.provenance) == (RECIPE, PROVENANCE)
    assert file.tokenizer_blob == BLOB
    assert [(t.name, t.type, t.shape) for t in file.tensors.values()] == [
        (s.name, s.type, s.shape) for s in SPECS
    ]
    assert list(file.tensors) == NAMES
    for spec in SPECS:
        np.testing.assert_array_equal(file.data(spec.name), contents(spec))


@pytest.mark.parametrize("name", NAMES)
def test_reader_data_is_aligned_and_read_only(path, name):
    data = QlmFile.open(path).data(name)
    assert data.ctypes.data % 64 == 0
    assert not data.flags.writeable
    assert data.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_reader_data_is_not_copied(path):
    file = QlmFile.open(path)
    assert np.shares_memory(file.data("up"), file.data("up"))
    assert np.shares_memory(file.vector("norm"), file.data("norm"))


def test_reader_views_outlive_close_and_replacement(path):
    with QlmFile.open(path) as file:
        data = file.data("up")
    write_sample(path)
    del file
    np.testing.assert_array_equal(data, contents(SPECS[NAMES.index("up")]))


@pytest.mark.parametrize("use", ["data", "vector"])
def test_reader_closed_file_refuses_views(path, use):
    file = QlmFile.open(path)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        getattr(file, use)("norm")


def test_reader_vector_decodes_each_float_type(tmp_path, path):
    document, body = split(path.read_bytes())
    values = np.float32([1.5, -2.0, 0.0, 3.0e-5, -65280.0, 0.15625, 1.0])
    encoded = {
        "norm": values[:3].tobytes(),
        "norm.half": values[:5].astype(np.float16).tobytes(),
        # The upper half of a float32 is the bfloat16 rounded toward zero.
        "norm.brain": values.view("<u2")[1::2].tobytes(),
    }
    changed = bytearray(body)
    for entry in document["tensors"]:
        data = encoded.get(entry["name"], b"")
        changed[entry["offset"] : entry["offset"] + len(data)] = data
    path.write_bytes(assemble(document, bytes(changed)))
    file = QlmFile.open(path)
    np.testing.assert_array_equal(file.vector("norm"), values[:3])
    np.testing.assert_array_equal(file.vector("norm.half"), values[:5].astype(np.float16))
    expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(file.vector("norm.brain"), expected)
    assert {file.vector(n).dtype for n in encoded} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    # Largest weight below 4, so a step is at most 8 / 15 (q4), 8 / 31 (q5), 8 / 63 (q6),
    # 4 / 8 (q4_0), 4 / 127 (q8_0); a q4_0 code may be clamped one step short.
    ("type_name", "tolerance"),
    [
        ("f32", 0),
        ("f16", 2e-3),
        ("bf16", 0.016),
        ("q8_0", 0.02),
        ("q4", 0.4),
        ("q5", 0.2),
        ("q6", 0.1),
        ("q4_0", 0.51),
    ],
)
def test_reader_matrix_is_near_the_weights(tmp_path, type_name, tolerance):
    weights = np.random.default_rng(7).normal(size=(17, 33)).clip(-4, 4).astype(np.float32)
    path = tmp_path / "m.qlm"
    with writer(path, tensors=[TensorSpec("w", type_name, weights.shape)]) as file:
        file.write("w", codec(type_name).quantize(weights))
    matrix = QlmFile.open(path).matrix("w")
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, weights, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("use", "name", "fragment"),
    [
        ("data", "nothing", "'nothing': not in this file"),
        ("vector", "up", r"'up': expected 1 dimension\(s\), found shape \[17, 33\]"),
        ("matrix", "norm", r"'norm': expected 2 dimension\(s\), found shape \[3\]"),
    ],
)
def test_reader_wrong_tensor_is_refused(path, use, name, fragment):
    with pytest.raises(BadTensorError, match=fragment):
        getattr(QlmFile.open(path), use)(name)


def test_verify_good_file_reports_progress_to_the_end(path):
    calls = []
    QlmFile.open(path).verify(lambda done, total: calls.append((done, total)))
    total = path.stat().st_size - 65536
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert calls[-1] == (total, total)
    assert {t for _, t in calls} == {total}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("end", ["first", "last"])
def test_verify_damaged_tensor_is_named(path, name, end):
    info = QlmFile.open(path).tensors[name]
    damage(path, info.offset + (0 if end == "first" else info.n_bytes - 1))
    with pytest.raises(ChecksumError, match=f"tensor '{name}': checksum"):
        QlmFile.open(path).verify()


def test_verify_damaged_tokenizer_is_named(path):
    damage(path, len(BLOB) - 1)
    file = QlmFile.open(path)
    with pytest.raises(ChecksumError, match="tokenizer blob: checksum"):
        file.verify()
    with pytest.raises(ChecksumError, match="tokenizer blob: checksum"):
        _ = file.tokenizer_blob


@pytest.mark.parametrize("before", ["embed", "norm.half"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_verify_damaged_padding_is_named(path, before, end):
    tensors = QlmFile.open(path).tensors
    i = NAMES.index(before)
    start = len(BLOB) if i == 0 else tensors[NAMES[i - 1]].offset + tensors[NAMES[i - 1]].n_bytes
    damage(path, start if end == "first" else tensors[before].offset - 1)
    with pytest.raises(ChecksumError, match=f"padding before tensor '{before}'"):
        QlmFile.open(path).verify()


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
def test_reader_offsets_beyond_32_bits_are_right(tmp_path, path):
    # A hole of 8 GiB takes no disk; reading it would take memory, opening it must not.
    document, _ = split(path.read_bytes())
    n_bytes = 2**33
    document["tensors"] = [
        document["tensors"][0]
        | {"type": "f32", "shape": [2**16, 2**15], "n_bytes": n_bytes, "offset": 64},
        document["tensors"][1] | {"offset": 64 + n_bytes},
    ]
    size = 65536 + 64 + n_bytes + 12
    path.write_bytes(assemble(document, b"", file_size=size))
    with path.open("r+b") as file:
        file.seek(size - 12)
        file.write(np.float32([1, 2, 3]).tobytes())
    model = QlmFile.open(path)
    assert model.data("embed").size == n_bytes
    np.testing.assert_array_equal(model.vector("norm"), [1, 2, 3])


def test_reader_header_longer_than_one_unit_is_read(tmp_path, path):
    document, body = split(path.read_bytes())
    document["provenance"]["note"] = "x" * 200_000
    assert len(json.dumps(document)) > 65536
    path.write_bytes(assemble(document, body))
    assert QlmFile.open(path).provenance["note"] == "x" * 200_000
