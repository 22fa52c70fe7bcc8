"""Every way a `.qlm` file can be wrong that has a name, and the error it must give."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from qlm_sample import assemble, split, write_sample

from qllama.errors import (
    BadHeaderError,
    BadMagicError,
    BadTensorError,
    BadVersionError,
    ChecksumError,
    ModelNotFoundError,
    TruncatedError,
    UnsupportedModelError,
)
from qllama.format import QlmFile

GONE = object()
"""Stands for a key that is removed."""

HEAD, TENSOR, NEWER = BadHeaderError, BadTensorError, UnsupportedModelError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_sample(tmp_path_factory.mktemp("qlm") / "sample.qlm").read_bytes()


def changed(document: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Copy of `document` with the value at a dotted place set, or removed by GONE."""
    document = copy.deepcopy(document)
    node: Any = document
    *parents, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in parents:
        node = node[key]
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return document


def refuse(path: Path, data: bytes, error: type[Exception], fragment: str) -> None:
    """Check that opening `data` raises exactly `error`, in one line that names the file."""
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        QlmFile.open(path)
    message = str(caught.value)
    assert type(caught.value) is error
    assert message.startswith(f"{path}: ")
    assert fragment in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("place", "value", "error", "fragment"),
    [
        ("recipe", GONE, HEAD, "missing keys ['recipe']"),
        ("extra", 1, HEAD, "unknown keys ['extra']"),
        ("config", [], HEAD, "config: expected an object"),
        ("config.hidden_size", GONE, HEAD, "hidden_size"),
        ("config.hidden_size", "40", HEAD, "hidden_size"),
        ("config.hidden_size", True, HEAD, "hidden_size"),
        ("config.head_dim", 0, HEAD, "head_dim"),
        ("config.vocab_size", 2**31, HEAD, "vocab_size"),
        ("config.num_hidden_layers", 10, HEAD, "num_hidden_layers: found 10"),
        ("config.num_hidden_layers", 2**31 - 1, HEAD, "the file has only 9 tensors"),
        ("config.num_key_value_heads", 3, HEAD, "num_key_value_heads"),
        ("config.rope_scaling", "llama3", HEAD, "rope_scaling"),
        ("config.rope_scaling", {"rope_type": 3}, HEAD, "rope_type"),
        ("config.rope_scaling", {"rope_type": "llama3"}, HEAD, "original_max_position"),
        ("config.rope_scaling", {"rope_type": "longrope"}, NEWER, "longrope"),
        ("config.rope_scaling", {"rope_type": "linear", "more": 1}, NEWER, "more"),
        ("config.hidden_act", 5, HEAD, "hidden_act"),
        ("config.hidden_act", "gelu", NEWER, "gelu"),
        ("config.logit_softcap", 30.0, NEWER, "logit_softcap"),
        ("tokenizer", None, HEAD, "tokenizer: expected an object"),
        ("tokenizer.kind", "tiktoken", HEAD, "tiktoken"),
        ("tokenizer.eos_token_ids", ["2"], HEAD, "eos_token_ids"),
        ("tokenizer.chat_template", 7, HEAD, "chat_template"),
        ("tokenizer.more", 7, HEAD, "more"),
        ("recipe", [], HEAD, "recipe: expected an object"),
        ("provenance", None, HEAD, "provenance: expected an object"),
        ("tokenizer_blob", None, HEAD, "tokenizer_blob: expected an object"),
        ("tokenizer_blob.offset", 64, HEAD, "offset: expected 0"),
        ("tokenizer_blob.n_bytes", 0, HEAD, "n_bytes"),
        ("tokenizer_blob.n_bytes", -1, HEAD, "n_bytes"),
        ("tokenizer_blob.n_bytes", 2**63, TENSOR, "offset"),
        ("tokenizer_blob.crc32", 5, HEAD, "crc32"),
        ("tensors", {}, HEAD, "tensors: expected an array"),
        ("tensors", [], HEAD, "found 0"),
        ("tensors", [0] * 65537, HEAD, "found 65537"),
        ("tensors.1", 5, TENSOR, "tensors[1]: expected an object"),
        ("tensors.1.layout", GONE, TENSOR, "missing keys ['layout']"),
        ("tensors.1.scale", 1, TENSOR, "unknown keys ['scale']"),
        ("tensors.1.name", "embed", TENSOR, "used twice"),
        ("tensors.1.name", 4, TENSOR, "tensors[1]: name"),
        ("tensors.1.name", "", TENSOR, "tensor name ''"),
        ("tensors.1.name", "a\n\x1b[2J", TENSOR, "printable"),
        ("tensors.1.name", "é", TENSOR, "printable"),
        ("tensors.1.name", "n" * 256, TENSOR, "1 to 255"),
        ("tensors.1.type", "f8", TENSOR, "tensor 'norm': weight type"),
        ("tensors.1.type", "x" * 100_000, TENSOR, "tensor 'norm': weight type"),
        ("tensors.1.type", "q8_0", TENSOR, "tensor 'norm': weight type"),
        ("tensors.1.type", ["f32"], TENSOR, "type"),
        ("tensors.1.shape", 3, TENSOR, "shape"),
        ("tensors.1.shape", [], TENSOR, "shape"),
        ("tensors.1.shape", [1, 1, 3], TENSOR, "shape"),
        ("tensors.1.shape", [3] * 100_000, TENSOR, "shape"),
        ("tensors.1.shape", [0], TENSOR, "shape"),
        ("tensors.1.shape", [-3], TENSOR, "shape"),
        ("tensors.1.shape", [3.0], TENSOR, "shape"),
        ("tensors.1.shape", [True], TENSOR, "shape"),
        ("tensors.1.shape", [2**31], TENSOR, "shape"),
        ("tensors.1.shape", [4], TENSOR, "n_bytes: expected 16"),
        # CVE-2026-33298: rows * k * 4 is 0 modulo 2**64.
        ("tensors.6.shape", [2**30, 2**30], TENSOR, f"n_bytes: expected {2**62}"),
        ("tensors.1.layout", "tile16", TENSOR, "layout: expected row_major"),
        ("tensors.0.layout", "row_major", TENSOR, "layout: expected tile16"),
        ("tensors.1.offset", 0, TENSOR, "tensor 'norm': offset"),
        ("tensors.1.offset", 2241, TENSOR, "tensor 'norm': offset"),
        ("tensors.1.offset", 2304, TENSOR, "tensor 'norm': offset"),
        ("tensors.1.offset", -64, TENSOR, "tensor 'norm': offset"),
        ("tensors.1.offset", 2**64 - 64, TENSOR, "tensor 'norm': offset"),
        ("tensors.1.offset", "2240", TENSOR, "tensor 'norm': offset"),
        ("tensors.1.offset", None, TENSOR, "tensor 'norm': offset"),
        ("tensors.1.offset", 2240.0, TENSOR, "tensor 'norm': offset"),
        ("tensors.1.n_bytes", 11, TENSOR, "n_bytes: expected 12"),
        ("tensors.1.n_bytes", 2**62, TENSOR, "n_bytes: expected 12"),
        ("tensors.1.crc32", None, TENSOR, "crc32"),
        ("tensors.1.crc32", "ABCDEF01", TENSOR, "crc32"),
        ("tensors.1.crc32", "0123456", TENSOR, "crc32"),
        ("tensors.1.quality", [], TENSOR, "quality"),
        ("tensors.1.quality", {"rmse": "x" * 256}, TENSOR, "256"),
        ("tensors.8", GONE, TENSOR, "tensor 'half': expected to end"),
    ],
)
def test_reader_header_field_wrong_is_refused(sample, tmp_path, place, value, error, fragment):
    document, body = split(sample)
    refuse(tmp_path / "m.qlm", assemble(changed(document, place, value), body), error, fragment)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        (b"{", b"", "strict JSON"),
        (b"{", b"[", "strict JSON"),
        (b"{", b"\xef\xbb\xbf{", "strict JSON"),
        (b'"embed"', b'"emb\xffd"', "utf-8"),
        (b'"recipe":', b'"recipe":{},"recipe":', "key 'recipe' is repeated"),
        (b'"name":', b'"name":"x","name":', "key 'name' is repeated"),
        (b'"recipe":{', b'"recipe":{"x":NaN,', "NaN"),
        (b'"recipe":{', b'"recipe":{"x":-Infinity,', "-Infinity"),
        (b'"recipe":{', b'"recipe":{"x":1e999,', "1e999"),
        (b'"recipe":{', b'"recipe":{"x":' + b"9" * 100_000 + b",", "64 bits"),
        (b'"recipe":{', b'"recipe":{"x":18446744073709551616,', "64 bits"),
        (b'"recipe":{', b'"recipe":{"x":"\\ud800",', "surrogate"),
        (b'"recipe":{', b'"recipe":{"\\udfff":1,', "surrogate"),
        (b'"recipe":{', b'"recipe":{"x":' + b"[" * 31 + b"]" * 31 + b",", "deeper than 32"),
        (b'"recipe":{', b'"recipe":{"x":' + b"[" * 60_000 + b"]" * 60_000 + b",", "deeper"),
        (b'"recipe":{', b'"recipe":{"x":' + b'{"a":' * 60_000 + b"1", "deeper"),
        (b'"recipe":{', b'"recipe":{"x":"\n",', "strict JSON"),
    ],
    ids=lambda part: repr(part[:24]) if isinstance(part, bytes) else "",
)
def test_reader_header_text_wrong_is_refused(sample, tmp_path, old, new, fragment):
    document, body = split(sample)
    text = json.dumps(document, separators=(",", ":")).encode().replace(old, new, 1)
    refuse(tmp_path / "m.qlm", assemble(text, body), BadHeaderError, fragment)


def test_reader_header_nested_as_deep_as_allowed_is_read(sample, tmp_path):
    document, body = split(sample)
    # The header and the recipe are levels 1 and 2.
    document["recipe"] = {"x": json.loads("[" * 30 + "]" * 30)}
    path = tmp_path / "m.qlm"
    path.write_bytes(assemble(document, body))
    assert QlmFile.open(path).recipe == document["recipe"]


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{}", b'"x"', b"{}{}"])
def test_reader_header_not_one_object_is_refused(sample, tmp_path, text):
    refuse(tmp_path / "m.qlm", assemble(text, split(sample)[1]), BadHeaderError, "header: ")


@pytest.mark.parametrize(
    ("parts", "error", "fragment"),
    [
        ({"magic": b"\x89QLM\n\n\x1a\n"}, BadMagicError, "not a .qlm file"),
        ({"version": 0}, BadVersionError, "expected 1, found 0"),
        ({"version": 2}, BadVersionError, "newer qllama"),
        ({"version": 2**32 - 1}, BadVersionError, "found 4294967295"),
        ({"length": 65536 - 63}, HEAD, "header length"),
        ({"length": 2**64 - 1}, HEAD, "header length"),
        ({"length": 5}, HEAD, "zeros after the header"),
        ({"data_offset": 0}, HEAD, "data offset: expected"),
        ({"data_offset": 4096}, HEAD, "data offset: expected"),
        ({"data_offset": 65537}, HEAD, "data offset: expected"),
        ({"data_offset": 2**26 + 65536, "file_size": 2**40}, HEAD, "data offset: expected"),
        ({"data_offset": 2**64 - 65536}, HEAD, "data offset: expected"),
        ({"file_size": 65536}, HEAD, "file size: expected more than"),
        ({"file_size": 65600}, HEAD, "something was appended"),
        ({"file_size": 2**63}, TruncatedError, f"expected {2**63} bytes"),
        ({"reserved": bytes(23) + b"\1"}, HEAD, "reserved"),
        ({"filler": b" "}, HEAD, "zeros after the header"),
    ],
)
def test_reader_prelude_wrong_is_refused(sample, tmp_path, parts, error, fragment):
    refuse(tmp_path / "m.qlm", assemble(*split(sample), **parts), error, fragment)


@pytest.mark.parametrize("at", [12, 64, 100, 65535])
def test_reader_header_region_damaged_fails_its_checksum(sample, tmp_path, at):
    data = bytearray(sample)
    data[at] ^= 4
    refuse(tmp_path / "m.qlm", bytes(data), ChecksumError, "header checksum")


def test_reader_byte_appended_is_refused(sample, tmp_path):
    refuse(tmp_path / "m.qlm", sample + b"\0", BadHeaderError, "something was appended")


def test_reader_data_shorter_than_tensors_is_refused(sample, tmp_path):
    document, body = split(sample)
    data = assemble(document, body[:-64])
    refuse(tmp_path / "m.qlm", data, BadTensorError, "tensor 'brain': expected to end")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 64, 65, 65535, 65536, -1])
def test_reader_truncated_file_is_refused(sample, tmp_path, length):
    refuse(tmp_path / "m.qlm", sample[:length], TruncatedError, "truncated: expected")


@pytest.mark.parametrize(
    ("start", "fragment"),
    [
        (b"GGUF\3\0\0\0", "this is a GGUF file"),
        (b"PK\3\4\x14\0", "zip archive"),
        (b"\x80\2}q\0", "Python pickle"),
        (b"\x40\1\0\0\0\0\0\0" + b'{"__metadata__"', "safetensors"),
        (b"\n\1\0\0\0\0\0\0" + b'{"__metadata__"', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "not a .qlm file"),
        (b"\0", "not a .qlm file"),
    ],
)
def test_reader_foreign_file_is_named(tmp_path, start, fragment):
    refuse(tmp_path / "m.qlm", start.ljust(9, b"\0"), BadMagicError, fragment)
    refuse(tmp_path / "m.qlm", start.ljust(100, b"\0"), BadMagicError, fragment)


@pytest.mark.parametrize("name", ["nothing.qlm", "nowhere/m.qlm", "a\0b.qlm"])
def test_reader_missing_file_is_refused(tmp_path, name):
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        QlmFile.open(tmp_path / name)


def test_reader_directory_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match="found a directory"):
        QlmFile.open(tmp_path)


def test_reader_untouched_parts_are_accepted(sample, tmp_path):
    # Guards the tables above: what they break is otherwise fine.
    path = tmp_path / "m.qlm"
    path.write_bytes(assemble(*split(sample)))
    QlmFile.open(path).verify()
