"""Writing: what is refused before, during and at the end, and that order is kept."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from qlm_sample import SPECS, contents, split, write_sample, writer

from qllama.errors import ConversionError
from qllama.format import QlmFile, TensorSpec

TWO = (TensorSpec("a", "f32", (2,)), TensorSpec("b", "f32", (3,)))


def test_writer_pieces_of_any_size_give_the_same_file(tmp_path):
    whole = write_sample(tmp_path / "whole.qlm").read_bytes()
    rng = np.random.default_rng(5)
    with writer(tmp_path / "pieces.qlm") as file:
        for spec in SPECS:
            data = contents(spec)
            cuts = np.sort(rng.integers(0, data.size, 4))
            for piece in np.split(data, cuts):
                file.write(spec.name, piece)
    assert (tmp_path / "pieces.qlm").read_bytes() == whole


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_writer_any_bytes_like_is_taken(tmp_path, kind):
    path = tmp_path / "m.qlm"
    with writer(path, tensors=TWO) as file:
        file.write("a", kind(bytes(range(8))))
        file.write("b", kind(bytes(range(12))))
    assert QlmFile.open(path).data("b").tobytes() == bytes(range(12))


def test_writer_numpy_shape_is_taken(tmp_path):
    path = tmp_path / "m.qlm"
    with writer(path, tensors=[TensorSpec("a", "f32", (np.uint64(2),))]) as file:
        file.write("a", np.float32([1, 2]).view(np.uint8))
    assert QlmFile.open(path).tensors["a"].shape == (2,)


def test_writer_file_size_is_known_beforehand(tmp_path):
    path = tmp_path / "m.qlm"
    with writer(path) as file:
        expected = file.file_size
        for spec in SPECS:
            file.write(spec.name, contents(spec))
    assert path.stat().st_size == expected


def test_writer_quality_of_every_tensor_fits_the_room(tmp_path):
    path = tmp_path / "m.qlm"
    figures = {"x": "y" * 248}
    tensors = [TensorSpec(f"t{i}", "f32", (1,)) for i in range(600)]
    with writer(path, tensors=tensors) as file:
        for spec in tensors:
            file.write(spec.name, bytes(4))
            file.set_quality(spec.name, figures)
    assert {str(t.quality) for t in QlmFile.open(path).tensors.values()} == {str(figures)}


def test_writer_existing_file_is_replaced(tmp_path):
    path = tmp_path / "m.qlm"
    path.write_bytes(b"old")
    write_sample(path)
    QlmFile.open(path).verify()
    assert [p.name for p in tmp_path.iterdir()] == ["m.qlm"]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"tensors": ()}, "tensors: expected an array"),
        ({"tensors": (TWO[0], TWO[0])}, "tensor 'a': the name is used twice"),
        ({"tensors": [TensorSpec("a", "q8_0", (32,))]}, "tensor 'a': weight type"),
        ({"tensors": [TensorSpec("a", "q7", (32, 32))]}, "tensor 'a': weight type"),
        ({"tensors": [TensorSpec("a", "f32", (0, 32))]}, "tensor 'a': shape"),
        ({"tensors": [TensorSpec("a", "f32", (1, 2, 3))]}, "tensor 'a': shape"),
        ({"tensors": [TensorSpec("a b", "f32", (1,))]}, "tensor name 'a b'"),
        ({"tokenizer_blob": b""}, "tokenizer_blob: n_bytes"),
        ({"recipe": {"x": float("nan")}}, "JSON"),
        ({"recipe": {"x": object()}}, "JSON"),
        ({"recipe": {1: "x", "1": "y"}}, "repeated"),
        ({"provenance": {"x": "\ud800"}}, "surrogates"),
        ({"provenance": {"x": 2**64}}, "64 bits"),
        ({"provenance": {"x": "y" * 2**26}}, "header: expected at most 67108864"),
    ],
)
def test_writer_unfit_arguments_are_refused_before_any_file(tmp_path, changes, fragment):
    with pytest.raises(ConversionError, match=fragment) as caught:
        writer(tmp_path / "m.qlm", **changes)
    assert str(tmp_path / "m.qlm") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("writes", "fragment"),
    [
        ([], r"tensor 'a': expected 8 bytes, found 0 when"),
        ([("a", 7)], r"tensor 'a': expected 8 bytes, found 7 when"),
        ([("a", 8), ("b", 5)], r"tensor 'b': expected 12 bytes, found 5 when"),
        ([("b", 12)], r"expected bytes of tensor 'a' \(0 of 8 written\), found tensor 'b'"),
        ([("a", 4), ("b", 1)], r"expected bytes of tensor 'a' \(4 of 8 written\)"),
        ([("a", 9)], r"tensor 'a': expected 8 bytes, found at least 9"),
        ([("a", 4), ("a", 5)], r"tensor 'a': expected 8 bytes, found at least 9"),
        ([("a", 8), ("a", 1)], r"expected bytes of tensor 'b' \(0 of 12 written\)"),
        ([("a", 8), ("b", 12), ("b", 1)], r"tensor 'b': all tensors are written already"),
        ([("c", 1)], r"found tensor 'c'"),
    ],
)
def test_writer_wrong_writes_leave_no_file(tmp_path, writes, fragment):
    def write():
        with writer(tmp_path / "m.qlm", tensors=TWO) as file:
            for name, n in writes:
                file.write(name, bytes(n))

    with pytest.raises(ConversionError, match=fragment):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "figures", "fragment"),
    [
        ("c", {}, "tensor 'c': not in the table"),
        ("a", {"x": "y" * 249}, "tensor 'a': quality: expected at most 256"),
        ("a", {"x": float("inf")}, "tensor 'a': Out of range"),
    ],
)
def test_writer_unfit_quality_is_refused(tmp_path, name, figures, fragment):
    with (
        pytest.raises(ConversionError, match=fragment),
        writer(tmp_path / "m.qlm", tensors=TWO) as file,
    ):
        file.set_quality(name, figures)


def test_writer_outside_its_block_refuses_to_write(tmp_path):
    with pytest.raises(ValueError, match="outside"):
        writer(tmp_path / "m.qlm").write("embed", b"x")


def test_writer_header_is_readable_json(tmp_path):
    document, _ = split(write_sample(tmp_path / "m.qlm").read_bytes())
    assert document["tokenizer"]["chat_template"] == "é{}"
    assert document["tensors"][1]["shape"] == [3]


def test_writer_provenance_may_become_known_late(tmp_path):
    path = tmp_path / "m.qlm"
    with writer(path, tensors=TWO, provenance={"sha256": "0000"}) as file:
        file.write("a", bytes(8))
        file.write("b", bytes(12))
        file.set_provenance({"sha256": "abcd"})
        with pytest.raises(ConversionError, match=r"m\.qlm: provenance: expected at most 17 bytes"):
            file.set_provenance({"sha256": "abcde"})
    assert QlmFile.open(path).provenance == {"sha256": "abcd"}


def test_writer_finished_file_can_be_read_before_it_has_its_name(tmp_path):
    path = tmp_path / "m.qlm"
    with writer(path, tensors=TWO) as file:
        file.write("a", bytes(8))
        with pytest.raises(ConversionError, match="tensor 'b': expected 12 bytes, found 0"):
            file.finish()
        file.write("b", bytes(12))
        temporary = file.finish()
        assert not path.exists()
        QlmFile.open(temporary).verify()
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.qlm"]


def test_writer_finished_file_may_still_be_refused(tmp_path):
    with suppress(KeyError), writer(tmp_path / "m.qlm", tensors=TWO) as file:
        file.write("a", bytes(8))
        file.write("b", bytes(12))
        file.finish()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
