from __future__ import annotations

import json
import threading
import time
import types

import pytest
from bpe_reference import gpt2_pieces, merge, smollm_pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocab import CONTROL, NORMAL, UNUSED, bpe_fields, spell, token_id
from tokenizer_texts import TEXTS

from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from qllama.config import TokenizerConfig
from qllama.errors import TokenizerError
from qllama.tokenizer import load_tokenizer

FIELDS = bpe_fields()
TOKENIZER = load_tokenizer(*tokenizer_from_gguf(FIELDS))
BOS, IM_END, TOOL = (token_id(FIELDS, text) for text in ("<|bos|>", "<|im_end|>", "<tool>"))

# Assigned in Unicode 13 at the latest, so that every Python agrees on the categories.
CHARACTERS = st.characters(max_codepoint=0x2FFF, categories=["L", "N", "P", "S", "Z", "Cc"])
CHUNKS = st.text(CHARACTERS, max_size=4) | st.sampled_from(["hello", " world", "  ", "'ll", "12"])
TEXT = st.lists(CHUNKS, max_size=8).map("".join)


def encode(text, tokenizer=TOKENIZER, *, add_special=False, parse_special=False):
    return tokenizer.encode(text, add_special=add_special, parse_special=parse_special)


def reference_ids(text, fields, pieces):
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    return [ids[part] for piece in pieces(text) for part in merge(piece, ranks)]


@pytest.mark.parametrize(("pre", "pieces"), [("gpt-2", gpt2_pieces), ("smollm", smollm_pieces)])
def test_encode_any_text_equals_plain_python_bpe(pre, pieces):
    fields = bpe_fields(pre=pre)
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))

    @settings(deadline=None, max_examples=300)
    @given(TEXT)
    def check(text):
        assert encode(text, tokenizer) == reference_ids(text, fields, pieces)

    check()


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_decode_encoded_text_returns_the_text(text):
    assert TOKENIZER.decode(encode(text, parse_special=True)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_decode_listed_text_returns_the_text(text):
    assert TOKENIZER.decode(encode(text)) == text


def test_encode_special_lookalike_parsed_only_on_request():
    text = "hello<|im_end|>"
    hello = token_id(FIELDS, "hello")
    assert encode(text, parse_special=True) == [hello, IM_END]
    plain = encode(text, parse_special=False)
    assert plain[0] == hello
    assert IM_END not in plain
    assert TOKENIZER.decode(plain) == text


def test_encode_user_defined_token_matched_always():
    assert TOOL in encode("a<tool>b", parse_special=False)
    assert TOOL in encode("a<tool>b", parse_special=True)


class SlowBackend:
    """Encodes to whether the switch stayed as it was while encoding."""

    encode_special_tokens = False

    def encode(self, text, *, add_special_tokens):
        before = self.encode_special_tokens
        time.sleep(0.001)
        return types.SimpleNamespace(ids=[int(before == self.encode_special_tokens)])


def test_encode_switch_of_parse_special_is_safe_between_threads(monkeypatch):
    monkeypatch.setattr(TOKENIZER, "_backend", SlowBackend())
    kept = []

    def work(parse_special):
        for _ in range(20):
            kept.extend(encode("text", parse_special=parse_special))

    threads = [threading.Thread(target=work, args=(flag,)) for flag in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept == [1] * 40


def test_encode_whole_token_without_merges_needs_ignore_merges():
    fields = bpe_fields(extra=(("<|bos|>", CONTROL), ("zq", NORMAL)), bos_token_id=0)
    whole = token_id(fields, "zq")
    fields["tokenizer.ggml.pre"] = "llama-bpe"
    assert encode("zq", load_tokenizer(*tokenizer_from_gguf(fields))) == [whole]
    fields["tokenizer.ggml.pre"] = "gpt-2"
    assert len(encode("zq", load_tokenizer(*tokenizer_from_gguf(fields)))) == 2


def test_encode_decomposed_text_is_composed_for_qwen2_only():
    composed, decomposed = "é", "e\u0301"
    by_name = {
        pre: load_tokenizer(*tokenizer_from_gguf(bpe_fields(pre=pre))) for pre in ("qwen2", "gpt-2")
    }
    assert encode(decomposed, by_name["qwen2"]) == encode(composed, by_name["qwen2"])
    assert encode(decomposed, by_name["gpt-2"]) != encode(composed, by_name["gpt-2"])


def test_encode_bos_and_eos_added_once_and_only_on_request():
    fields = bpe_fields(
        bos_token_id=BOS, eos_token_id=IM_END, add_bos_token=True, add_eos_token=True
    )
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    hello = token_id(FIELDS, "hello")

    def ids(text, add_special):
        return encode(text, tokenizer, add_special=add_special, parse_special=True)

    assert ids("hello", True) == [BOS, hello, IM_END]
    assert ids("hello", False) == [hello]
    assert ids("<|bos|>hello", True) == [BOS, hello, IM_END]
    assert ids("hello<|im_end|>", True) == [BOS, hello, IM_END]
    assert ids("", True) == [BOS, IM_END]


def test_encode_without_eos_leaves_the_one_that_the_text_spells():
    fields = bpe_fields(
        bos_token_id=BOS, eos_token_id=IM_END, add_bos_token=True, add_eos_token=True
    )
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    hello = token_id(FIELDS, "hello")
    for text, ids in (("hello", [BOS, hello]), ("hello<|im_end|>", [BOS, hello, IM_END])):
        assert tokenizer.encode(text, add_special=True, parse_special=True, add_eos=False) == ids


def test_encode_lone_surrogate_raises_and_says_where():
    with pytest.raises(TokenizerError, match="character 2 is the lone surrogate"):
        encode("ab\ud83d")


def test_decode_special_tokens_written_or_skipped():
    ids = [BOS, token_id(FIELDS, "hello"), TOOL, IM_END]
    assert TOKENIZER.decode(ids) == "<|bos|>hello<tool><|im_end|>"
    assert TOKENIZER.decode(ids, skip_special=True) == "hello<tool>"


def test_decode_half_a_character_gives_replacement():
    llama = encode("🦙")
    first_byte = token_id(FIELDS, spell("🦙")[0])
    assert TOKENIZER.decode([*llama, first_byte]) == "🦙\ufffd"
    assert TOKENIZER.decode([first_byte, IM_END, *llama]) == "\ufffd<|im_end|>🦙"


@pytest.mark.parametrize("bad", [-1, len(FIELDS["tokenizer.ggml.tokens"]), 2**40])
def test_token_unknown_id_raises(bad):
    for call in (TOKENIZER.token_bytes, TOKENIZER.token_text, lambda i: TOKENIZER.decode([i])):
        with pytest.raises(TokenizerError, match=f"token id {bad} is not in the vocabulary"):
            call(bad)


def test_token_bytes_every_byte_token_is_its_byte():
    assert [TOKENIZER.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]


def test_token_bytes_by_kind_of_token():
    assert TOKENIZER.token_bytes(token_id(FIELDS, spell(" world"))) == b" world"
    assert TOKENIZER.token_bytes(IM_END) == b""
    assert TOKENIZER.token_text(IM_END) == "<|im_end|>"
    assert TOKENIZER.token_bytes(TOOL) == b"<tool>"
    assert (TOKENIZER.is_special(IM_END), TOKENIZER.is_special(TOOL)) == (True, False)


def test_token_bytes_filler_outside_byte_alphabet_is_its_text():
    fields = bpe_fields(extra=(("[PAD 7]→", UNUSED),))
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    assert tokenizer.token_bytes(token_id(fields, "[PAD 7]→")) == "[PAD 7]→".encode()


def test_load_blob_of_sentencepiece_kind_decodes_spaces_and_bytes():
    vocab = {"<unk>": 0, "<s>": 1, "▁a": 2, "b": 3, "<0xC3>": 4, "<0xA9>": 5, "▁": 6}
    document = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, i in (("<unk>", 0), ("<s>", 1))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {**vocab, "a": 7},
            "merges": [["▁", "a"]],
        },
    }
    tokenizer = load_tokenizer(TokenizerConfig("tokenizers"), json.dumps(document).encode())
    ids = encode("a a é", tokenizer)
    assert ids == [2, 2, 6, 4, 5]
    assert tokenizer.decode(ids) == "a a é"
    assert tokenizer.decode([1, *ids]) == "<s>a a é"
    assert tokenizer.token_bytes(4) == b"\xc3"


def _document(**changes):
    _, blob = tokenizer_from_gguf(FIELDS)
    return json.dumps({**json.loads(blob), **changes}).encode()


def test_load_post_processor_of_the_blob_is_not_run():
    bos = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            bos,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [BOS], "tokens": ["<|bos|>"]}},
    }
    tokenizer = load_tokenizer(TokenizerConfig("tokenizers"), _document(post_processor=template))
    for add_special in (True, False):
        assert encode("hello", tokenizer, add_special=add_special) == encode("hello")


def test_load_ids_with_a_hole_vocab_size_covers_the_highest():
    document = json.loads(_document())
    document["model"]["vocab"] = {"a": 0, "<|x|>": 9}
    document["model"]["merges"] = []
    document["added_tokens"] = [document["added_tokens"][0] | {"id": 9, "content": "<|x|>"}]
    tokenizer = load_tokenizer(TokenizerConfig("tokenizers"), json.dumps(document).encode())
    assert tokenizer.vocab_size == 10
    assert encode("a<|x|>", tokenizer, parse_special=True) == [0, 9]
    with pytest.raises(TokenizerError, match="token id 5 is not in the vocabulary"):
        tokenizer.decode([5])


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        _document()[:-100],
        _document(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
        _document(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
        _document(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
        _document(decoder=None),
        # Over this one the library panics.
        _document(
            model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
            | {"continuing_subword_prefix": "####"}
        ),
    ],
)
def test_load_malformed_blob_raises_one_line(blob):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: ") as info:
        load_tokenizer(TokenizerConfig("tokenizers"), blob)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token_id": TOKENIZER.vocab_size}, "bos_token_id: expected 0"),
        ({"eos_token_ids": (0, -1)}, r"eos_token_ids\[1\]: expected 0"),
        ({"add_bos_token": True}, "no bos_token_id"),
        ({"add_eos_token": True}, "no eos_token_ids"),
    ],
)
def test_load_config_at_odds_with_vocabulary_raises(config, message):
    _, blob = tokenizer_from_gguf(FIELDS)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(TokenizerConfig("tokenizers", **config), blob)
