"""CRC-32 of archive members: compared while the file goes by, in whatever pieces."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from small_models import meta_shards, meta_tensors, random_tensors, write_bin, write_meta
from torch_writer import archive, save

from converter.pipeline import convert
from converter.sources.torch_file import read_torch_file
from converter.sources.zip_archive import MemberChecks
from qllama.errors import ConversionError

MATRIX = np.arange(600, dtype=np.float32).reshape(20, 30)
# Of the CRC-32 in an entry of the table of contents: APPNOTE.TXT of the zip format, 4.3.12.
CRC = 16


def place(raw: bytes, member: bytes) -> int:
    """Find a member's first byte by what it holds."""
    assert raw.count(member) == 1
    return raw.index(member)


def check(path, size):
    checks = MemberChecks(path)
    raw = path.read_bytes()
    for start in range(0, len(raw), size):
        checks.update(memoryview(raw)[start : start + size])


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_member_checks_name_the_member_that_is_damaged(tmp_path, size):
    path = save(tmp_path / "m.bin", {"a": MATRIX, "b": MATRIX[0] + 0.5, "c": -MATRIX})
    check(path, size)
    raw = path.read_bytes()
    for number, values in enumerate((MATRIX, MATRIX[0] + 0.5, -MATRIX)):
        start = place(raw, values.tobytes())
        for at in (start, start + values.nbytes // 2, start + values.nbytes - 1):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            with pytest.raises(
                ConversionError, match=rf"m\.bin: member 'archive/data/{number}': expected the CRC"
            ) as caught:
                check(path, size)
            assert "\n" not in str(caught.value)


def test_member_checks_of_other_files_and_of_empty_members_find_nothing(tmp_path):
    path = save(tmp_path / "m.bin", {"a": MATRIX, "none": np.zeros((0, 3), np.float32)})
    check(path, 64)
    path.write_bytes(b"GGUF" + bytes(1000))
    check(path, 64)


def test_member_checks_members_that_overlap_are_refused(tmp_path):
    path = save(tmp_path / "m.bin", {"a": MATRIX, "b": -MATRIX})
    raw = bytearray(path.read_bytes())
    table = raw.index(b"PK\x01\x02")
    first, second = (raw.index(b"archive/data/%d" % i, table) - 46 for i in range(2))
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    path.write_bytes(raw)
    with pytest.raises(ConversionError, match=r"member 'archive/data/1'|cannot be read"):
        check(path, 64)


def test_pickle_that_is_damaged_is_refused_before_it_is_read(tmp_path):
    path = save(tmp_path / "m.bin", {"a": MATRIX})
    raw, content = path.read_bytes(), archive({"a": MATRIX}).pickle
    start = place(raw, content)
    for at in range(start, start + len(content)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(ConversionError, match=r"member 'archive/data\.pkl': .*CRC-32"):
            read_torch_file(path)


def test_archive_that_was_saved_without_checksums_is_read(tmp_path):
    # As after torch.serialization.set_crc32_options(False).
    path = save(tmp_path / "m.bin", {"a": MATRIX})
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PK\x01\x02")
    while at >= 0:
        raw[at + CRC : at + CRC + 4] = bytes(4)
        at = raw.find(b"PK\x01\x02", at + 1)
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as written:
        assert not any(info.CRC for info in written.infolist())
    np.testing.assert_array_equal(read_torch_file(path)["a"].read(0, 20), MATRIX)
    check(path, 100)


@pytest.mark.parametrize("last", ["pytorch_model-00002-of-00002.bin", "consolidated.01.pth"])
def test_convert_with_one_flipped_bit_in_a_weight_leaves_nothing(tmp_path, last):
    tensors = random_tensors()
    if last.startswith("pytorch"):
        directory = write_bin(tmp_path / "m", tensors, n_shards=2)
    else:
        directory = write_meta(tmp_path / "m", meta_shards(meta_tensors(tensors), 2))
    path = directory / last
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as written:
        weights = max(written.infolist(), key=lambda info: info.file_size)
    raw[weights.header_offset + 200 + weights.file_size // 2] ^= 0x10
    path.write_bytes(raw)
    with pytest.raises(
        ConversionError, match=rf"{last}: member '{weights.filename}': .* fetch it again"
    ):
        convert(directory, tmp_path / "out.qlm", type="q8")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
