"""The container of MindSpore's checkpoints: what is found in it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import raw_mindspore as raw

from converter.sources.mindspore_file import ChecksumCheck, scan
from qllama.errors import ConversionError

# Written by MindSpore 2.10.0 itself: save_checkpoint([{"name": "a.b", "data": Tensor([[0, 1, 2],
# [3, 4, 5]], bfloat16)}, {"name": "s", "data": Tensor(3)}], append_dict={"epoch_num": 3,
# "lr": 0.5, "flag": True, "name": "hey"}).
GENUINE = bytes.fromhex(
    "0a230a03612e62121c08020803120842466c6f617431361a0c0000803f004040408040a0400a160a017312111205"
    "496e7436341a0803000000000000000a1e0a0965706f63685f6e756d12111205496e7436341a0803000000000000"
    "000a150a026c72120f1207466c6f617433321a040000003f0a110a04666c616712091204426f6f6c1a01010a1d0a"
    "046e616d651215080012037374721a0c680000006500000079000000"
)
# The same with crc_check=True, of one float32 tensor [[0, 1, 2], [3, 4, 5]].
GENUINE_CRC = (
    bytes.fromhex(
        "0a2e0a03612e621227080208031207466c6f617433321a18000000000000803f00000040000040400000804000"
        "00a040"
    )
    + b"crc_num\x00\x00\x00\x00\x00\x00H\xbe\xe2\xb4"
)

MATRIX = np.arange(24, dtype=np.float32).reshape(6, 4).astype(raw.BF16)


@pytest.fixture
def write(tmp_path):
    def written(data: bytes):
        path = tmp_path / "model.ckpt"
        path.write_bytes(data)
        return path

    return written


def content(file, tag) -> bytes:
    data = file.path.read_bytes()
    return b"".join(data[e.offset : e.offset + e.n_bytes] for e in file.entries[tag].extents)


def test_scan_genuine_file_finds_every_parameter(write):
    file = scan(write(GENUINE))
    found = {tag: (e.tensor_type, e.dims) for tag, e in file.entries.items()}
    assert found == {
        "a.b": ("BFloat16", (2, 3)),
        "s": ("Int64", ()),
        "epoch_num": ("Int64", ()),
        "lr": ("Float32", ()),
        "flag": ("Bool", ()),
        "name": ("str", ()),
    }
    values = np.frombuffer(content(file, "a.b"), raw.BF16).astype(np.float32)
    np.testing.assert_array_equal(values, range(6))


def test_scan_takes_the_trailer_for_no_parameter(write):
    assert list(scan(write(GENUINE_CRC)).entries) == ["a.b"]


def test_writer_of_these_tests_writes_what_mindspore_does():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert raw.with_crc(raw.tensor("a.b", values)) == GENUINE_CRC


@pytest.mark.parametrize("slice_bytes", [48, 47, 16, 5, 1])
def test_scan_slices_are_joined_in_order(write, slice_bytes):
    data = raw.checkpoint({"a": MATRIX, "b": MATRIX + 1}, slice_bytes)
    file = scan(write(data))
    assert file.entries["a"].dims == (6, 4)
    assert len(file.entries["a"].extents) == -(-48 // slice_bytes)
    assert content(file, "a") == MATRIX.tobytes()
    assert content(file, "b") == (MATRIX + 1).tobytes()


def test_scan_unequal_slices_are_joined(write):
    file = scan(write(raw.array_split("a", MATRIX, 4)))
    assert [e.n_bytes for e in file.entries["a"].extents] == [16, 16, 8, 8]
    assert content(file, "a") == MATRIX.tobytes()


def test_scan_scalar_of_old_versions_and_packed_dims(write):
    data = raw.message("old", [0], "Float32", b"\0\0\0\0")
    data += raw.message("packed", [300, 2], "Int8", bytes(600), packed=True)
    entries = scan(write(data)).entries
    assert entries["old"].dims == ()
    assert entries["packed"].dims == (300, 2)


def test_scan_reads_headers_only(write, monkeypatch):
    big = np.zeros((1 << 10, 1 << 10), np.float32)
    path = write(raw.checkpoint({"a": big, "b": big}, 1 << 20))
    read = []
    opened = path.open("rb", buffering=0)
    monkeypatch.setattr(type(path), "open", lambda *args, **kwargs: Counting(opened, read))
    scan(path)
    assert sum(read) < path.stat().st_size // 100


class Counting:
    """A file that notes how much was read of it."""

    def __init__(self, file, read):
        self._file = file
        self._read = read

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def seek(self, *args):
        return self._file.seek(*args)

    def read(self, n):
        self._read.append(n)
        return self._file.read(n)


A = raw.tensor("a", MATRIX)
B = raw.tensor("b", MATRIX)

MALFORMED = {
    "nothing": (b"", "holds no parameters"),
    "only a checksum": (raw.with_crc(b""), "holds no parameters"),
    "text": (b"hello, world\n", "field 13 among the values"),
    "zip": (b"PK\x03\x04rest", r"PyTorch \(zip\)"),
    "pickle": (b"\x80\x02}q\x00.", "Python pickle"),
    "encrypted by AES-GCM": (bytes.fromhex("d85e3a7f0deca064bca1fc9d"), "encrypted"),
    "encrypted by AES-CBC": (bytes.fromhex("d95e3a7f5800000010000000"), "encrypted"),
    "encrypted by SM4-CBC": (bytes.fromhex("da5e3a7f5800000010000000"), "encrypted"),
    "truncated in a content": (A[:-1], "truncated.* a field of .* copy the file again"),
    "truncated in a header": (A + B[:1], "a number at byte .* does not end"),
    "slices apart": (A + B + A, "is there again after others"),
    "slices of two shapes": (A + raw.tensor("a", MATRIX.T), "slices of tensor 'a' disagree"),
    "slices of two types": (A + raw.tensor("a", MATRIX.view("f2")), "slices of tensor 'a' dis"),
    "map parameter": (
        raw.field(1, raw.field(1, b"table") + raw.field(3, b"")),
        "'table' is a MapParameter",
    ),
    "no tag": (raw.field(1, raw.field(2, b"")), "lacks its type or content|lacks its tag"),
    "no tensor": (raw.field(1, raw.field(1, b"a")), "lacks its tag or tensor"),
    "no type": (
        raw.field(1, raw.field(1, b"a") + raw.field(2, raw.field(3, b"x"))),
        "tensor 'a' lacks its type or content",
    ),
    "no content": (
        raw.field(1, raw.field(1, b"a") + raw.field(2, raw.field(2, b"Int8"))),
        "tensor 'a' lacks its type or content",
    ),
    "unknown field": (raw.field(1, raw.field(1, b"a") + raw.field(7, b"")), "field 7 in the value"),
    "unknown tensor field": (
        raw.field(1, raw.field(1, b"a") + raw.field(2, raw.field(9, b""))),
        "field 9 in tensor 'a'",
    ),
    "tag that is not UTF-8": (raw.field(1, raw.field(1, b"\xff")), "not UTF-8"),
    "tag of a kilobyte and more": (raw.field(1, raw.field(1, b"a" * 1025)), "1025 bytes"),
    "negative dims": (raw.message("a", [2**64 - 1], "Int8", b"x"), r"has the dims \[184"),
    "nine dims": (raw.message("a", [1] * 9, "Int8", b"x"), "has the dims"),
    "length without end": (b"\x0a" + b"\xff" * 11, "does not end"),
    "length beyond the file": (b"\x0a\xff\xff\xff\xff\x7f", "truncated"),
    "fixed wire type": (b"\x0d\0\0\0\0", "wire type 5"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_scan_malformed_file_is_one_clear_line(write, name):
    data, expected = MALFORMED[name]
    path = write(data)
    with pytest.raises(ConversionError, match=expected) as caught:
        scan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_scan_truncated_or_flipped_anywhere_raises_nothing_else(write):
    rng = np.random.default_rng(0)
    data = raw.checkpoint({"a": MATRIX, "bb": MATRIX[0]}, 20)
    for _ in range(500):
        damaged = bytearray(data[: rng.integers(len(data))])
        for at in rng.integers(0, len(damaged), rng.integers(4)) if damaged else ():
            damaged[at] = rng.integers(256)
        path = write(bytes(damaged))
        try:
            file = scan(path)
        except ConversionError:
            continue
        for entry in file.entries.values():
            for extent in entry.extents:
                assert extent.offset + extent.n_bytes <= len(damaged)


def test_scan_missing_file_is_a_conversion_error(tmp_path):
    with pytest.raises(ConversionError, match=r"nothing\.ckpt: cannot be read: No such file"):
        scan(tmp_path / "nothing.ckpt")


def check(path, size: int) -> None:
    """Feed a file to a check in chunks of `size` bytes."""
    data, checks = path.read_bytes(), ChecksumCheck(path)
    for start in range(0, len(data), size):
        checks.update(memoryview(data)[start : start + size])


@pytest.mark.parametrize("size", [1, 7, len(GENUINE_CRC) - 17, 1000])
def test_checksum_of_a_genuine_file_agrees(write, size):
    path = write(GENUINE_CRC)
    assert ChecksumCheck(path).crc == 0x48BEE2B4
    check(path, size)


@pytest.mark.parametrize("size", [1, 7, len(GENUINE_CRC) - 17, 1000])
def test_checksum_with_any_byte_changed_is_an_error(write, size):
    for at in range(len(GENUINE_CRC) - 17):
        data = bytearray(GENUINE_CRC)
        data[at] ^= 1
        with pytest.raises(ConversionError, match="damaged: its trailer has the CRC-32 0x48bee2b4"):
            check(write(data), size)


@pytest.mark.parametrize("data", [GENUINE, b"", b"crc_num"])
def test_checksum_of_a_file_without_one_is_not_compared(write, data):
    path = write(data)
    assert ChecksumCheck(path).crc is None
    check(path, 5)
