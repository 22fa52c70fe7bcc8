from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from qllama.tokenizer import StreamingDetokenizer

END = 10_000


class Chunks:
    """Each token is a run of bytes; `END` is a control token."""

    def __init__(self, *chunks):
        self._chunks = chunks

    def token_bytes(self, token_id):
        return self._chunks[token_id]

    def token_text(self, token_id):
        return "<end>" if token_id == END else repr(self._chunks[token_id])

    def is_special(self, token_id):
        return token_id == END

    def adds_space_after(self, token_id):
        return False


def pushes(chunks):
    stream = StreamingDetokenizer(Chunks(*chunks))
    return [stream.push(i) for i in range(len(chunks))], stream.flush()


@settings(max_examples=500)
@given(st.lists(st.binary(max_size=6), max_size=12))
def test_stream_any_bytes_equals_decoding_them_at_once(chunks):
    pieces, rest = pushes(chunks)
    assert "".join(pieces) + rest == b"".join(chunks).decode(errors="replace")


@settings(max_examples=500)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.data())
def test_stream_valid_text_never_shows_half_a_character(text, data):
    text = text.replace("\ufffd", "")
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    bounds = [0, *cuts, len(encoded)]
    chunks = [encoded[a:b] for a, b in itertools.pairwise(bounds)]
    pieces, rest = pushes(chunks)
    assert rest == ""
    shown = 0
    for piece, bound in zip(pieces, bounds[1:], strict=True):
        shown += len(piece.encode())
        assert "\ufffd" not in piece
        assert bound - 3 <= shown <= bound


def test_stream_split_character_comes_with_its_last_byte():
    assert pushes([bytes([byte]) for byte in "🦙".encode()]) == (["", "", "", "🦙"], "")


def test_stream_invalid_byte_is_replaced_at_once():
    assert pushes([b"a\xff", b"b"]) == (["a\ufffd", "b"], "")
    assert pushes([b"\xe2\x82", b"A"]) == (["", "\ufffdA"], "")
    assert pushes([b"\xf5", b"\x80"]) == (["\ufffd", "\ufffd"], "")


def test_stream_half_a_surrogate_is_replaced_with_the_next_byte():
    # Python's decoder waits for it: `surrogatepass` would take the three.
    assert pushes([b"\xed", b"\xa0", b"x"]) == (["", "", "\ufffd\ufffdx"], "")


def test_stream_unfinished_character_is_replaced_at_the_flush():
    assert pushes([b"a\xf0\x9f\xa6"]) == (["a"], "\ufffd")


def test_stream_flush_starts_afresh():
    stream = StreamingDetokenizer(Chunks(b"\xf0\x9f", b"\xa6\x99"))
    assert stream.push(0) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(1) == "\ufffd\ufffd"
    assert stream.flush() == ""


def test_stream_control_token_written_or_skipped():
    chunks = Chunks("é".encode()[:1], "é".encode()[1:])
    for skip_special, shown in ((False, ["", "\ufffd<end>", "\ufffd"]), (True, ["", "", "é"])):
        stream = StreamingDetokenizer(chunks, skip_special=skip_special)
        assert [stream.push(i) for i in (0, END, 1)] == shown
