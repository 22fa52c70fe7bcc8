"""Every way a state can be wrong that has a name; and random damage, which it must notice."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import struct
import zlib

import numpy as np
import pytest

from qllama.errors import StateError
from qllama.format.state import State, StateShape, decode, encode, load, store

SHAPE = StateShape(
    fingerprint=bytes(range(32)),
    kv_type="q8",
    n_layers=2,
    n_kv_heads=3,
    n_codes=32,
    n_halves=1,
    n_ctx=16,
    vocab_size=300,
)
# Where fields of the header lie, and how.
VERSION, CRC32, N_BYTES, KV_TYPE = (8, "<I"), (12, "<I"), (16, "<Q"), (56, "<8s")
N_TOKENS, N_HELD, N_PROMPT, N_TEXT = ((64 + 4 * i, "<I") for i in range(4))
N_LAYERS, N_HEADS, N_CODES, N_HALVES = ((80 + 4 * i, "<I") for i in range(4))
HEADER = 96


def sample():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (2, 2, 3, 5, 34), np.uint8)
    rows[..., -1] &= 0x3F  # the exponent's upper bits: finite scales
    return State(np.arange(290, 297, dtype=np.int32), rows, "Grüß", 3)


@pytest.fixture
def data():
    return b"".join(encode(sample(), SHAPE))


def changed(data, field, value, *, checksum=True):
    """The state with one field of the header replaced, and its checksum made right."""
    place, kind = field
    data = bytearray(data)
    struct.pack_into(kind, data, place, value)
    return summed(data) if checksum else bytes(data)


def summed(data):
    data = bytearray(data)
    struct.pack_into("<I", data, 12, 0)
    struct.pack_into("<I", data, 12, zlib.crc32(data))
    return bytes(data)


def refuse(data, fragment, shape=SHAPE):
    with pytest.raises(StateError) as caught:
        decode(data, shape, "talk.state")
    message = str(caught.value)
    assert message.startswith("talk.state: ")
    assert fragment in message
    assert "\n" not in message
    assert len(message) < 400


def test_decode_gives_what_was_encoded(data):
    found = decode(data, SHAPE)
    state = sample()
    assert found.tokens.tolist() == state.tokens.tolist()
    assert (found.prompt, found.n_prompt, found.n_held) == ("Grüß", 3, 5)
    np.testing.assert_array_equal(found.rows, state.rows)


def test_encode_is_the_documented_layout(data):
    assert data[:8] == b"\x89QLS\r\n\x1a\n"
    assert struct.unpack_from("<I", data, 8) == (1,)
    assert struct.unpack_from("<Q", data, 16) == (len(data),)
    assert data[24:56] == bytes(range(32))
    assert struct.unpack_from("<8s8I", data, 56) == (b"q8".ljust(8, b"\0"), 7, 5, 3, 6, 2, 3, 32, 1)
    assert data[96:124] == struct.pack("<7i", *range(290, 297))
    assert data[124:130] == "Grüß".encode()
    assert data[130:] == sample().rows.tobytes()
    assert zlib.crc32(data[:12] + bytes(4) + data[16:]) == struct.unpack_from("<I", data, 12)[0]


@pytest.mark.parametrize(
    ("field", "value", "fragment"),
    [
        (VERSION, 2, "version: expected 1, found 2"),
        (N_BYTES, 5, "expected 5 bytes"),
        (N_BYTES, 2**64 - 1, "expected 18446744073709551615 bytes"),
        (KV_TYPE, b"f16", "kv_type: expected 'q8', found 'f16'"),
        (KV_TYPE, b"\xff\n\x1b[2J", "kv_type: expected 'q8'"),
        (N_TOKENS, 17, "17 tokens, more than the context window of 16"),
        (N_TOKENS, 2**32 - 1, "more than the context window"),
        (N_TOKENS, 6, "size: expected"),
        (N_TOKENS, 4, "found 5, 3 and 6"),
        (N_HELD, 8, "found 8, 3 and 6"),
        (N_HELD, 2**32 - 1, "found 4294967295"),
        (N_HELD, 4, "size: expected"),
        (N_PROMPT, 8, "found 5, 8 and 6"),
        (N_PROMPT, 0, "found 5, 0 and 6"),
        (N_TEXT, 7, "size: expected"),
        (N_TEXT, 2**32 - 1, "found 5, 3 and 4294967295"),
        (N_LAYERS, 3, "expected (2, 3, 32, 1), found (3, 3, 32, 1)"),
        (N_HEADS, 2**32 - 1, "found (2, 4294967295, 32, 1)"),
        (N_CODES, 0, "found (2, 3, 0, 1)"),
        (N_HALVES, 2, "found (2, 3, 32, 2)"),
        ((96, "<i"), -1, "tokens: expected ids in 0..299"),
        ((120, "<i"), 300, "tokens: expected ids in 0..299"),
        ((124, "<B"), 0xFF, "text: expected UTF-8"),
        ((130 + 32, "<H"), 0x7C00, "expected finite numbers"),
        ((130 + 32, "<H"), 0xFE00, "expected finite numbers"),
    ],
)
def test_decode_malformed_field_is_refused(data, field, value, fragment):
    refuse(changed(data, field, value), fragment)


@pytest.mark.parametrize("field", [CRC32, (100, "<i"), (124, "<B"), (140, "<B")])
def test_decode_damage_is_noticed(data, field):
    value = struct.unpack_from(field[1], data, field[0])[0] ^ 1
    refuse(changed(data, field, value, checksum=False), "checksum: expected")


@pytest.mark.parametrize(
    ("start", "fragment"),
    [
        (b"", "not a state"),
        (b"\x89QLM\r\n\x1a\n" + bytes(200), "found b'\\x89QLM\\r\\n\\x1a\\n'"),
        (b"\x80\x04\x95" + bytes(200), "not a state"),
        (b"\x89QLS\r\n\x1a\n", "truncated: expected at least 96 bytes, found 8"),
    ],
)
def test_decode_what_is_no_state_is_refused(start, fragment):
    refuse(start, fragment)


def test_decode_of_another_model_is_refused(data):
    refuse(data, "of another model", dataclasses.replace(SHAPE, fingerprint=bytes(32)))


def test_decode_truncated_or_lengthened_anywhere_is_refused(data):
    for end in range(len(data)):
        refuse(data[:end], "")
    refuse(data + b"\0", f"expected {len(data)} bytes, found {len(data) + 1}")


def test_decode_any_flipped_bit_is_refused(data):
    rng = random.Random(0)
    for _ in range(500):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        refuse(bytes(damaged), "")


def test_decode_random_headers_raise_nothing_else(data):
    rng = random.Random(1)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(64, HEADER)
            damaged[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        with contextlib.suppress(StateError):
            decode(summed(damaged), SHAPE)


def test_load_huge_file_of_another_model_is_refused_unread(tmp_path, data):
    path = tmp_path / "huge.state"
    with path.open("wb") as file:
        file.write(changed(data, N_BYTES, 2**40)[:HEADER])
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(StateError, match=r"huge\.state: size: expected \d+ bytes"):
        load(path, SHAPE)


def test_store_then_load_gives_the_same_state(tmp_path):
    path = tmp_path / "talk.state"
    store(path, sample(), SHAPE)
    assert path.read_bytes() == b"".join(encode(sample(), SHAPE))
    np.testing.assert_array_equal(load(path, SHAPE).rows, sample().rows)


def test_store_interrupted_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "talk.state"
    path.write_bytes(b"older")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("qllama.format.state.PartialFile.commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store(path, sample(), SHAPE)
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir()] == ["talk.state"]
