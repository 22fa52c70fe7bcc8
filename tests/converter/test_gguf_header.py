"""The bounded header reader: equal to the library's where that works, refusing the rest."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
import raw_gguf as raw

from converter.sources.gguf_header import read_header
from qllama.errors import ConversionError

VECTOR = raw.tensor("v", [8])
DATA = np.arange(8, dtype="<f4").tobytes()


def write(tmp_path, content: bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


def test_header_library_written_file_reads_as_the_library_reads_it(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -3)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -7)
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**40))
    writer.add_float32("a.f32", 0.1)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.yes", True)
    writer.add_bool("a.no", False)
    writer.add_string("a.text", "snow ☃")
    writer.add_array("a.texts", ["", "é", "b"])
    writer.add_array("a.ints", [-1, 2, 3])
    writer.add_array("a.floats", [0.5, 0.25])
    writer.add_tensor("m", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("q", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(path)

    reader = gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in reader.fields.items() if "GGUF." not in key}
    assert header.metadata == expected
    assert {k: type(v) for k, v in header.metadata.items()} == {
        k: type(v) for k, v in expected.items()
    }
    assert [(t.name, t.offset, t.n_bytes) for t in header.tensors.values()] == [
        (t.name, t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    assert header.tensors["m"].shape == (3, 4)
    assert header.tensors["q"].shape == (2, 32)


def test_header_int8_array_reads_as_integers(tmp_path):
    path = write(tmp_path, raw.gguf([raw.array("k", raw.I8, 3, bytes([255, 0, 1]))]))
    assert read_header(path).metadata == {"k": [-1, 0, 1]}


def test_header_alignment_key_moves_the_data(tmp_path):
    content = raw.gguf([raw.u32("general.alignment", 256)], [VECTOR], DATA, alignment=256)
    assert read_header(write(tmp_path, content)).tensors["v"].offset == 256


def test_header_version_2_is_read(tmp_path):
    path = write(tmp_path, raw.gguf([raw.u32("k", 5)], [VECTOR], DATA, version=2))
    assert read_header(path).metadata == {"k": 5}


def overlapping() -> bytes:
    return raw.gguf([], [VECTOR, raw.tensor("w", [8])], DATA)


MALFORMED = {
    "empty": (b"", "not a GGUF file"),
    "magic_only": (b"GGUF", "not a GGUF file"),
    "other_magic": (b"\x89PNG\r\n\x1a\n" + bytes(64), "not a GGUF file"),
    "ggml_of_2023": (b"tjgg" + bytes(64), "not a GGUF file"),
    "big_endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version_1": (raw.gguf(version=1), "version 1"),
    "version_4": (raw.gguf(version=4), "version 4"),
    "counts_missing": (b"GGUF" + struct.pack("<IQ", 3, 0), "metadata count"),
    "tensor_count_absurd": (raw.gguf(n_tensors=2**63), "tensor count is 9223372036854775808"),
    "metadata_count_absurd": (raw.gguf(n_entries=2**64 - 1), "metadata count"),
    "metadata_count_one_too_many": (
        raw.gguf([raw.u32("k", 5)], n_entries=2, alignment=1),
        "more than fit",
    ),
    # On these 48 bytes the library's reader loops 2**62 times over empty slices.
    "array_past_end": (
        raw.gguf([raw.array("", raw.U8, 2**62, b"")], alignment=1),
        "the length of the array of metadata key '' is 4611686018427387904",
    ),
    "key_length_absurd": (
        raw.gguf(n_entries=1, alignment=1) + struct.pack("<QQ", 2**60, 0),
        "metadata key 0 needs",
    ),
    "key_too_long": (raw.gguf([raw.u32("k" * 65536, 5)]), "at most 65535"),
    "key_not_utf8": (raw.gguf([raw.text(b"\xff") + bytes(8)]), "not UTF-8"),
    "key_twice": (raw.gguf([raw.u32("k", 5), raw.u32("k", 6)]), "'k' is there twice"),
    "long_key": (raw.gguf([raw.entry("k\n" * 9999, 13, b"")]), "unknown value type 13"),
    "value_type_unknown": (raw.gguf([raw.entry("k", 13, bytes(8))]), "unknown value type 13"),
    "string_length_absurd": (
        raw.gguf([raw.entry("k", raw.STRING, struct.pack("<Q", 2**40))]),
        "metadata key 'k' needs 1099511627776 bytes",
    ),
    "string_not_utf8": (raw.gguf([raw.string("k", b"a\xc3")]), "'k' is not UTF-8"),
    "array_count_absurd": (raw.gguf([raw.array("k", raw.U64, 2**61, b"")]), "more than fit"),
    "array_of_strings_absurd": (raw.gguf([raw.array("k", raw.STRING, 2**40, b"")]), "more than"),
    "array_type_unknown": (raw.gguf([raw.array("k", 99, 1, bytes(8))]), "unknown value type 99"),
    "array_of_arrays": (raw.gguf([raw.array("k", raw.ARRAY, 1, bytes(32))]), "array of arrays"),
    "array_too_long": (
        raw.gguf([raw.array("k", raw.U8, 2**22 + 1, bytes(2**22 + 1))]),
        "at most 4194304",
    ),
    "alignment_0": (raw.gguf([raw.u32("general.alignment", 0)]), "general.alignment is 0"),
    "alignment_48": (raw.gguf([raw.u32("general.alignment", 48)]), "general.alignment is 48"),
    "alignment_2e31": (raw.gguf([raw.u32("general.alignment", 2**31)]), "power of two up to"),
    "alignment_text": (raw.gguf([raw.string("general.alignment", "32")]), "is '32'"),
    "tensor_name_not_utf8": (raw.gguf([], [raw.tensor(b"\xfe", [8])], DATA), "tensor 0"),
    "tensor_name_too_long": (raw.gguf([], [raw.tensor("v" * 256, [8])], DATA), "at most 255"),
    "tensor_twice": (raw.gguf([], [VECTOR, VECTOR], DATA), "'v' is there twice"),
    "tensor_0_dims": (raw.gguf([], [raw.tensor("v", [8, 1, 1], n_dims=0)], DATA), "0 dimensions"),
    "tensor_5_dims": (raw.gguf([], [raw.tensor("v", [1] * 5)], DATA), "5 dimensions"),
    "tensor_dims_absurd": (
        raw.gguf([], [raw.tensor("v", [8], n_dims=2**31)], DATA),
        "2147483648 dimensions",
    ),
    "tensor_dim_0": (raw.gguf([], [raw.tensor("v", [8, 0])], DATA), "none to be 0"),
    "tensor_size_wraps_64_bits": (
        raw.gguf([], [raw.tensor("v", [2**32, 2**32])], DATA),
        "needs 73786976294838206464 bytes",
    ),
    "tensor_type_unknown": (raw.gguf([], [raw.tensor("v", [8], kind=250)], DATA), "type 250"),
    "tensor_type_removed": (raw.gguf([], [raw.tensor("v", [32], kind=4)], DATA), "type 4"),
    "tensor_row_not_whole_blocks": (
        raw.gguf([], [raw.tensor("v", [33], kind=raw.TYPE_Q8_0)], bytes(64)),
        "multiple of 32",
    ),
    "tensor_past_end": (raw.gguf([], [raw.tensor("v", [9])], DATA), "file ends at"),
    "tensor_offset_past_end": (raw.gguf([], [raw.tensor("v", [8], 2**63)], DATA), "file ends at"),
    "tensor_offset_unaligned": (raw.gguf([], [raw.tensor("v", [4], 4)], DATA), "not 32-aligned"),
    "tensors_overlap": (overlapping(), "'v' and 'w' overlap"),
    "no_data": (raw.gguf([], [VECTOR]), "file ends at"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_header_malformed_file_is_refused_in_one_line(tmp_path, case):
    content, expected = MALFORMED[case]
    path = write(tmp_path, content)
    with pytest.raises(ConversionError, match=expected) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_header_cut_anywhere_is_refused(tmp_path):
    entries = [
        raw.u32("a", 1),
        raw.string("b", "text"),
        raw.array("c", raw.STRING, 2, raw.text("x") + raw.text("yz")),
        raw.array("d", raw.F32, 2, bytes(8)),
    ]
    whole = raw.gguf(entries, [VECTOR], DATA)
    assert read_header(write(tmp_path, whole)).metadata["c"] == ["x", "yz"]
    for length in range(len(whole)):
        with pytest.raises(ConversionError):
            read_header(write(tmp_path, whole[:length]))


def test_header_random_damage_is_refused_or_read(tmp_path):
    whole = raw.gguf(
        [raw.string("b", "text"), raw.array("c", raw.STRING, 1, raw.text("x"))], [VECTOR], DATA
    )
    random = np.random.default_rng(7)
    n_refused = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for at in random.integers(len(damaged), size=random.integers(1, 4)):
            damaged[at] ^= 1 << random.integers(8)
        try:
            read_header(write(tmp_path, bytes(damaged)))
        except ConversionError:
            n_refused += 1
    assert n_refused > 1000


def test_header_missing_file_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"absent\.gguf: cannot be read: No such file"):
        read_header(tmp_path / "absent.gguf")


def test_header_directory_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="cannot be read"):
        read_header(tmp_path)
