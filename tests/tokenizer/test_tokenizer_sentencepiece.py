from __future__ import annotations

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocab import BYTE, CONTROL, UNUSED, USER_DEFINED, spm_fields, token_id
from tokenizer_texts import TEXTS

from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from qllama.config import TokenizerConfig
from qllama.errors import TokenizerError
from qllama.tokenizer import StreamingDetokenizer, load_tokenizer
from qllama.tokenizer.sentencepiece_proto import NORMAL, UNKNOWN, model_proto, read_pieces

FIELDS = spm_fields()
TOKENIZER = load_tokenizer(*tokenizer_from_gguf(FIELDS))
PLAIN = load_tokenizer(*tokenizer_from_gguf(spm_fields(add_space_prefix=False)))
BOS = 1


def spelled(text, tokenizer=TOKENIZER, *, add_special=False, parse_special=True):
    ids = tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
    return [tokenizer.token_text(i) for i in ids]


def test_encode_text_start_gets_the_dummy_prefix():
    assert spelled("hello world") == ["▁hello", "▁world"]
    assert spelled("hello", PLAIN) == ["h", "e", "l", "l", "o"]
    assert spelled("") == []


def test_encode_text_after_matched_tokens_gets_the_dummy_prefix():
    assert spelled("<s>hello</s>hello") == ["<s>", "▁hello", "</s>", "▁hello"]
    assert spelled("<tool>hello") == ["<tool>", "▁hello"]


def test_encode_control_lookalike_parsed_only_on_request():
    assert spelled("hello<|im_end|>", parse_special=True) == ["▁hello", "<|im_end|>"]
    plain = spelled("hello<|im_end|>", parse_special=False)
    assert plain == ["▁hello", *"<|im_end|>"]


def test_encode_user_defined_token_matched_always():
    assert "<tool>" in spelled("hello<tool>", parse_special=False)


def test_encode_longest_matched_token_wins():
    fields = spm_fields(extra=(("<a>", CONTROL), ("<a><b>", CONTROL)))
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    assert spelled("<a><b><a>", tokenizer) == ["<a><b>", "<a>"]


def test_encode_merges_by_score_and_not_by_likelihood():
    # Unigram would take `a` and `bc`: they have the higher sum.
    scores = {"▁": -9.0, "a": -1.0, "b": -1.0, "c": -99.0, "ab": -2.0, "bc": -3.0}
    pieces = [("<unk>", 0.0, UNKNOWN), *((text, score, NORMAL) for text, score in scores.items())]
    blob = model_proto(pieces, add_dummy_prefix=False, byte_fallback=False)
    assert spelled("abc", load_tokenizer(TokenizerConfig("sentencepiece"), blob)) == ["ab", "c"]


def test_encode_unknown_character_falls_back_to_bytes():
    assert spelled("ö") == ["▁", "<0xC3>", "<0xB6>"]


def test_encode_without_byte_pieces_gives_unknown():
    fields = spm_fields()
    keep = [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind != BYTE]
    for name in ("tokens", "token_type", "scores"):
        key = f"tokenizer.ggml.{name}"
        fields[key] = [fields[key][i] for i in keep]
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    assert spelled("ö", tokenizer) == ["▁", "<unk>"]


def test_encode_bos_added_by_default_and_never_twice():
    assert spelled("hello", add_special=True) == ["<s>", "▁hello"]
    assert spelled("<s>hello", add_special=True) == ["<s>", "▁hello"]
    assert spelled("<s>hello", add_special=True, parse_special=False)[:2] == ["<s>", "▁"]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=5)
        | st.sampled_from(["<s>", "<|im_end|>", "<tool>", " ", "hello", " world"]),
        max_size=8,
    ).map("".join)
)
def test_decode_encoded_text_returns_the_text(text):
    for tokenizer in (TOKENIZER, PLAIN):
        for parse_special in (True, False):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if "▁" not in text])
def test_decode_listed_text_returns_the_text(text):
    ids = TOKENIZER.encode(text, add_special=True, parse_special=True)
    assert TOKENIZER.decode(ids[1:]) == text
    assert TOKENIZER.decode(ids) == "<s>" + text


def test_decode_skipping_special_tokens_drops_their_prefixes():
    ids = TOKENIZER.encode("<s>hello</s>hello<tool>hello", add_special=False, parse_special=True)
    assert TOKENIZER.decode(ids, skip_special=True) == "hellohello<tool>hello"


def test_stream_after_plain_text_keeps_the_leading_space():
    world = token_id(FIELDS, "▁world")
    hello = token_id(FIELDS, "▁hello")
    assert StreamingDetokenizer(TOKENIZER, previous=hello).push(world) == " world"
    assert StreamingDetokenizer(TOKENIZER, previous=BOS).push(world) == "world"
    assert StreamingDetokenizer(TOKENIZER).push(world) == "world"
    assert StreamingDetokenizer(PLAIN).push(world) == " world"


def test_token_bytes_by_kind_of_token():
    byte = token_id(FIELDS, "<0x9F>")
    assert TOKENIZER.token_bytes(byte) == b"\x9f"
    assert TOKENIZER.token_bytes(token_id(FIELDS, "▁hello")) == b" hello"
    assert TOKENIZER.token_bytes(BOS) == b""
    assert TOKENIZER.token_bytes(token_id(FIELDS, "<tool>")) == b"<tool>"


@pytest.mark.parametrize("piece", ["  \n", "▁▁\n"])
def test_load_user_defined_spaces_match_spaces(piece):
    fields = spm_fields(extra=((piece, USER_DEFINED),))
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    ids = tokenizer.encode("hello  \n", add_special=False, parse_special=False)
    assert ids[-1] == token_id(fields, piece)
    assert tokenizer.decode(ids) == "hello  \n"
    assert tokenizer.decode(ids[-1:]) == "  \n"


def test_load_phi3_like_unknown_tokens_keeps_ids():
    # Phi-3's files call `<unk>` control and their fillers unknown.
    fields = spm_fields(extra=(("[PAD1]", UNKNOWN), ("[PAD2]", UNKNOWN)))
    fields["tokenizer.ggml.token_type"][0] = CONTROL
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    assert [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)] == (
        fields["tokenizer.ggml.tokens"]
    )


NOT_UTF8 = model_proto(
    [("<unk>", 0.0, UNKNOWN), ("abc", 0.0, CONTROL)], add_dummy_prefix=True, byte_fallback=False
).replace(b"abc", b"a\xffc")


@pytest.mark.parametrize("blob", [b"", b"junk", b"\x0a\x05\x0a\x03abc", b"\xff" * 40, NOT_UTF8])
def test_load_malformed_blob_raises_one_line(blob):
    with pytest.raises(TokenizerError, match="not a SentencePiece model") as info:
        load_tokenizer(TokenizerConfig("sentencepiece"), blob)
    assert "\n" not in str(info.value)


PIECES = [
    ("<unk>", 0.0, UNKNOWN),
    ("▁" + "a" * 200, -1.5, NORMAL),
    ("<s>", 0.0, CONTROL),
    ("é🦙", -3.25, USER_DEFINED),
    ("x", -1e4, UNUSED),
    *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
]


def test_model_proto_read_by_the_library_has_every_piece():
    blob = model_proto(PIECES, add_dummy_prefix=True, byte_fallback=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    ids = range(len(PIECES))
    assert processor.get_piece_size() == len(PIECES)
    assert [(processor.id_to_piece(i), processor.get_score(i)) for i in ids] == [
        (piece, score) for piece, score, _ in PIECES
    ]
    assert [i for i in ids if processor.is_control(i)] == [2]
    assert [i for i in ids if processor.is_unused(i)] == [4]
    assert [i for i in ids if processor.is_byte(i)] == list(ids)[5:]
    assert processor.normalize("a  b ") == "▁a▁▁b▁"


def test_read_pieces_are_the_written_ones():
    blob = model_proto(PIECES, add_dummy_prefix=True, byte_fallback=True)
    assert read_pieces(blob) == [(piece, kind) for piece, _, kind in PIECES]


def test_read_pieces_absent_type_is_normal():
    # SentencePiece's own writer leaves out a field that has its default.
    piece = b"\x0a\x01a\x15\x00\x00\x80\xbf"
    unknown = b"\x0a\x05<unk>\x18\x02"
    blob = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in (unknown, piece))
    assert read_pieces(blob) == [("<unk>", UNKNOWN), ("a", NORMAL)]
