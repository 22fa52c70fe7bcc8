"""What messages show of a checkpoint, and how much of a file is read for them."""

from __future__ import annotations

import pytest

from converter import small_files
from converter.json_files import read_json_object
from converter.wording import quoted
from qllama.errors import ConversionError


def test_quoted_nested_lists_are_cut_before_they_are_spelled_out():
    value: list[object] = [0] * 10
    for _ in range(40):  # 10 ** 41 numbers, were they all written
        value = [value] * 10
    assert len(quoted(value)) < 100


def test_quoted_long_text_is_cut():
    assert quoted("x" * 5000) == "'" + 79 * "x" + "..."


def test_read_json_object_large_file_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(small_files, "_MAX_BYTES", 1 << 20)
    path = tmp_path / "llama.ckpt"
    path.write_bytes(b"[" * ((1 << 20) + 1))
    with pytest.raises(ConversionError, match=r"llama\.ckpt: expected a config or tokenizer of at"):
        read_json_object(path)
    path.write_text("{}")
    assert read_json_object(path) == {}
