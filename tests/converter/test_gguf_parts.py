"""Split GGUF files, written by the `gguf` library: one model, or the part named that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import raw_gguf as raw
from gguf import GGMLQuantizationType as Ggml
from tiny_gguf import write_gguf

from converter.naming import default_out_path
from converter.pipeline import convert
from converter.sources.gguf import GgufSource
from converter.sources.gguf_parts import read_parts
from qllama.errors import ConversionError
from qllama.format import QlmFile


def split_model(directory: Path, **fields) -> list[Path]:
    directory.mkdir(exist_ok=True)
    first = write_gguf(directory / "tiny.gguf", tensors_a_part=8, **fields)
    parts = sorted(directory.iterdir())
    assert first == parts[0]
    assert len(parts) == 3
    return parts


@pytest.mark.parametrize("given", [0, 1, 2])
def test_parts_of_a_split_gguf_are_the_whole_whichever_is_given(tmp_path, given):
    whole = GgufSource(write_gguf(tmp_path / "whole.gguf", matrices=Ggml.Q8_0))
    parts = split_model(tmp_path / "s", matrices=Ggml.Q8_0)
    source = GgufSource(parts[given])
    assert source.files == tuple(parts)
    assert source.config == whole.config
    assert source.tokenizer == whole.tokenizer
    assert list(source.tensors) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        found = source.tensors[name]
        rows = tensor.shape[0]
        np.testing.assert_array_equal(found.read(0, rows), tensor.read(0, rows), err_msg=name)
        assert found.block_type == tensor.block_type
    assert len({t.where.partition(": ")[0] for t in source.tensors.values()}) == 3


def test_convert_split_gguf_is_named_like_the_whole(tmp_path):
    parts = split_model(tmp_path / "s")
    whole = write_gguf(tmp_path / "whole.gguf")
    convert(parts[1], tmp_path / "a.qlm")
    convert(whole, tmp_path / "b.qlm")
    with QlmFile.open(tmp_path / "a.qlm") as a, QlmFile.open(tmp_path / "b.qlm") as b:
        assert list(a.tensors) == list(b.tensors)
        for name in a.tensors:
            np.testing.assert_array_equal(a.data(name), b.data(name), err_msg=name)
    assert default_out_path(parts[1], "q4") == Path("tiny-q4.qlm")


def test_parts_of_one_part_are_a_whole_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw.gguf([raw.u32("split.count", 1)]))
    assert read_parts(path)[1] == (path,)


def test_parts_that_are_missing_are_named(tmp_path):
    parts = split_model(tmp_path / "s")
    parts[2].unlink()
    expected = rf"00001-of-00003\.gguf: one of 3 parts.*; {parts[2].name} is missing beside it$"
    with pytest.raises(ConversionError, match=expected):
        GgufSource(parts[0])
    parts[0].unlink()
    with pytest.raises(ConversionError, match=rf"{parts[0].name} and 1 more is missing"):
        GgufSource(parts[1])


@pytest.mark.parametrize("name", ["model.gguf", "tiny-00001-of-00004.gguf", "tiny-1-of-3.gguf"])
def test_part_of_another_name_is_refused(tmp_path, name):
    parts = split_model(tmp_path / "s")
    path = parts[0].rename(tmp_path / "s" / name)
    with pytest.raises(ConversionError, match="one of 3 parts of a split GGUF, expected to be cal"):
        GgufSource(path)


def test_part_of_another_file_is_named(tmp_path):
    parts = split_model(tmp_path / "s")
    parts[1].write_bytes(parts[2].read_bytes())
    expected = rf"{parts[1].name}: expected split\.no and split\.count to be 1 and 3, found 2 and 3"
    with pytest.raises(ConversionError, match=expected):
        GgufSource(parts[0])


def part(number: int, tensors: list[bytes], total: int) -> bytes:
    entries = [
        raw.u32("split.no", number),
        raw.u32("split.count", 2),
        raw.u32("split.tensors.count", total),
    ]
    return raw.gguf(entries, tensors, bytes(64))


@pytest.mark.parametrize(
    ("names", "total", "message"),
    [
        (("a", "a"), 2, r"00002-of-00002\.gguf: tensor 'a' is also in m-00001-of-00002\.gguf"),
        (("a", "b"), 3, r"split\.tensors\.count is 3, but the 2 parts hold 2 tensors"),
    ],
)
def test_parts_with_too_many_or_too_few_tensors_are_refused(tmp_path, names, total, message):
    for i, name in enumerate(names):
        path = tmp_path / f"m-{i + 1:05}-of-00002.gguf"
        path.write_bytes(part(i, [raw.tensor(name, [16])], total))
    with pytest.raises(ConversionError, match=message) as caught:
        read_parts(tmp_path / "m-00001-of-00002.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_part_that_is_cut_is_named(tmp_path, damaged):
    parts = split_model(tmp_path / "s")
    content = parts[damaged].read_bytes()
    for length in (0, 10, 60, len(content) - 1):
        parts[damaged].write_bytes(content[:length])
        with pytest.raises(ConversionError, match=rf"{parts[damaged].name}: "):
            GgufSource(parts[0])
