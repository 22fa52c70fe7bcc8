"""Random files: only the format's own errors, and what is accepted stays in bounds."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qlm_sample import assemble, n_bytes, split, write_sample, writer

from qllama.errors import QlmFormatError, TruncatedError, UnsupportedModelError
from qllama.format import QlmFile, TensorSpec
from qllama.format.header import decode_header


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_sample(tmp_path_factory.mktemp("qlm") / "sample.qlm").read_bytes()


def test_reader_file_cut_anywhere_is_truncated(sample, tmp_path):
    path = tmp_path / "m.qlm"
    path.write_bytes(sample)
    cuts = random.Random(1).sample(range(len(sample)), 300)
    for length in sorted(cuts, reverse=True):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(TruncatedError):
            QlmFile.open(path)


def test_reader_any_flipped_bit_is_found(sample, tmp_path):
    # CRC-32 finds every single flipped bit, and what it does not cover must be zero.
    path = tmp_path / "m.qlm"
    path.write_bytes(sample)
    rng = random.Random(2)
    bits = [*range(64 * 8)]
    bits += rng.sample(range(64 * 8, 65536 * 8), 400)
    bits += rng.sample(range(65536 * 8, len(sample) * 8), 600)
    with path.open("r+b", buffering=0) as file:
        for bit in bits:
            at, changed = bit // 8, sample[bit // 8] ^ 1 << bit % 8
            file.seek(at)
            file.write(bytes([changed]))
            with pytest.raises(QlmFormatError):
                QlmFile.open(path).verify()
            file.seek(at)
            file.write(sample[at : at + 1])
    QlmFile.open(path).verify()


def accept_or_refuse(text: bytes, data_n_bytes: int) -> bool:
    """Decode a header; where it is accepted, every tensor must lie in the data."""
    try:
        header = decode_header(text, data_n_bytes)
    except (QlmFormatError, UnsupportedModelError):
        return False
    end = header.tokenizer_blob.n_bytes
    for tensor in header.tensors:
        assert tensor.offset % 64 == 0
        assert end <= tensor.offset < end + 64
        end = tensor.offset + tensor.n_bytes
        assert tensor.n_bytes == n_bytes(TensorSpec(tensor.name, tensor.type, tensor.shape))
    assert end == data_n_bytes
    return True


def test_reader_mutated_header_text_raises_only_format_errors(sample):
    document, body = split(sample)
    text = json.dumps(document).encode()
    rng = random.Random(3)
    accepted = 0
    for _ in range(3000):
        data = bytearray(text)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            length = rng.choice((0, 1, 1, 2, 40))
            other = rng.randrange(len(text))
            data[at : at + length] = rng.choice(
                (b"", rng.randbytes(1), b"9", b"-", b'"', b"[", b"{", text[other : other + 40])
            )
        accepted += accept_or_refuse(bytes(data), len(body))
    # Both ways are taken, or this tests nothing.
    assert 0 < accepted < 3000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["f32", "q4", "tile16", "row_major", "embed", "00000000"]),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=6,
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a document."""
    if isinstance(node, dict):
        found = [(node, key) for key in node]
    elif isinstance(node, list):
        found = [(node, i) for i in range(len(node))]
    else:
        return []
    return found + [place for owner, key in found for place in places(owner[key])]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_reader_any_value_in_any_place_raises_only_format_errors(sample, data):
    document, body = split(sample)
    document = copy.deepcopy(document)
    owner, key = data.draw(st.sampled_from(places(document)))
    owner[key] = data.draw(JSON)
    text = json.dumps(document).encode()
    accept_or_refuse(text, len(body))


def test_reader_mutated_file_raises_only_format_errors(sample, tmp_path):
    path = tmp_path / "m.qlm"
    document, body = split(sample)
    rng = random.Random(4)
    for _ in range(200):
        mutated = copy.deepcopy(document)
        owner, key = rng.choice(places(mutated))
        owner[key] = rng.choice((None, -1, 0, 63, 64, 2**31, 2**63, 2**64 - 1, "", [], {}, 0.5))
        path.write_bytes(assemble(mutated, body[: rng.choice((len(body), 100))]))
        try:
            file = QlmFile.open(path)
        except (QlmFormatError, UnsupportedModelError):
            continue
        for name, info in file.tensors.items():
            assert file.data(name).sum(dtype=np.int64) >= info.n_bytes


SHAPES = st.tuples(st.integers(1, 50)) | st.tuples(st.integers(1, 40), st.integers(1, 70))
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4", "q5", "q6"]


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[TensorSpec]:
    names = draw(
        st.lists(st.from_regex(r"[!-~]{1,20}", fullmatch=True), min_size=1, max_size=6, unique=True)
    )
    shapes = [draw(SHAPES) for _ in names]
    types = [draw(st.sampled_from(TYPES[:3] if len(s) == 1 else TYPES)) for s in shapes]
    return [TensorSpec(*fields) for fields in zip(names, types, shapes, strict=True)]


NOTES = st.dictionaries(
    st.text(max_size=5),
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    specs=tensor_lists(),
    blob=st.binary(min_size=1, max_size=200),
    recipe=NOTES,
    provenance=NOTES,
    seed=st.integers(0, 2**32),
)
def test_file_written_then_read_is_the_same(specs, blob, recipe, provenance, seed):
    rng = np.random.default_rng(seed)
    data = {s.name: rng.integers(0, 256, n_bytes(s), dtype=np.uint8) for s in specs}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "m.qlm"
        with writer(
            path, tokenizer_blob=blob, tensors=specs, recipe=recipe, provenance=provenance
        ) as out:
            for name, values in data.items():
                out.write(name, values)
        file = QlmFile.open(path)
        file.verify()
        assert file.tokenizer_blob == blob
        assert (file.recipe, file.provenance) == (recipe, provenance)
        assert [TensorSpec(t.name, t.type, t.shape) for t in file.tensors.values()] == specs
        for name, values in data.items():
            np.testing.assert_array_equal(file.data(name), values)
        file.close()
