"""From a constraint to masks over a vocabulary, and what schemas become before that."""

from __future__ import annotations

import json

import pytest
from fake_model import ASSISTANT, BOS, EOS, VOCAB_SIZE, ByteTokenizer

from qllama.errors import TokenizerError
from qllama.generation.constraint import Constraint
from qllama.generation.guide import Guides
from qllama.generation.json_schema import closed

WORDS = [b"yes", b" yes", b"y", b"\xf0\x9f", b"\xa6\x99", b"yes!\n"]


class WordTokenizer(ByteTokenizer):
    """One token a byte, words and parts of a character behind them, and a hole."""

    def __init__(self, **config):
        super().__init__(**config)
        self.vocab_size = VOCAB_SIZE + len(WORDS) + 1

    def _encode_text(self, text, parse_special):
        if self.adds_space_after(None):
            text = f" {text}"
        if text == "yes":
            return [VOCAB_SIZE]
        return super()._encode_text(text, parse_special)

    def _spelling(self, token_id):
        if token_id == self.vocab_size - 1:
            raise TokenizerError("a hole")
        return super()._spelling(token_id)

    def _decode_token(self, token_id, spelled):
        return WORDS[token_id - VOCAB_SIZE] if token_id >= VOCAB_SIZE else bytes([token_id])


def word(text):
    return VOCAB_SIZE + WORDS.index(text)


def guide(*, ends=(EOS,), previous=None, adds_space=False, **options):
    tokenizer = WordTokenizer(adds_space=adds_space)
    return Guides(tokenizer).guide(Constraint.of(**options), ends, previous)


def allowed(guide):
    return {*guide.allowed().nonzero()[0].tolist()}


def test_guide_allows_every_way_to_spell_what_may_come():
    fresh = guide(regex="yes|yellow")
    assert fresh.allowed().shape == (VOCAB_SIZE + len(WORDS) + 1,)
    assert allowed(fresh) == {*b"y", word(b"y"), word(b"yes")}
    assert not fresh.accept(word(b"y"))
    assert allowed(fresh) == {*b"e"}


def test_guide_spells_what_must_come_as_the_tokenizer_does():
    assert allowed(guide(regex="yes")) == {word(b"yes")}


def test_guide_follows_parts_of_a_character():
    fresh = guide(regex="[🦙🦚]")
    assert allowed(fresh) == {word(b"\xf0\x9f")}  # what both begin with
    assert not fresh.accept(word(b"\xf0\x9f"))
    assert allowed(fresh) == {0xA6, word(b"\xa6\x99")}
    assert not fresh.accept(0xA6)
    assert allowed(fresh) == {0x99, 0x9A}
    assert fresh.accept(0x99)


def test_guide_allows_ends_where_the_answer_is_whole_and_nowhere_else():
    fresh = guide(regex="a+", ends=(EOS, ord("z"), 10**9))
    assert allowed(fresh) == {*b"a"}
    assert not fresh.accept(ord("a"))
    assert allowed(fresh) == {*b"az", EOS}


def test_guide_never_allows_control_tokens_that_do_not_end_the_answer():
    assert allowed(guide(regex="(?s:.)*")).isdisjoint({BOS, ASSISTANT})


def test_guide_leaves_the_space_that_belongs_to_no_text_to_the_model():
    yes = {"regex": "yes|yellow", "adds_space": True}
    plain = {*b"y", word(b"y"), word(b"yes")}
    assert allowed(guide(previous=ASSISTANT, **yes)) == plain | {*b" ", word(b" yes")}
    assert allowed(guide(previous=ord("a"), **yes)) == plain
    spaced = guide(previous=ASSISTANT, **yes)
    spaced.accept(word(b" yes"))
    assert allowed(spaced) == {EOS}


def test_guide_of_a_tokenizer_that_adds_spaces_spells_without_them():
    assert allowed(guide(regex="abc", adds_space=True, previous=ord("a"))) == {*b"a"}


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (r'root ::= "\u00e9\U0001F999" [\u0041-\u0043]', "é🦙B"),
        (r'root ::= "a\\u0041" "\"" [\n]', 'a\\u0041"\n'),
        ('root ::= pair{2,3} # twice\npair ::= "a" ("b" | "c")?', "abaca"),
    ],
)
def test_guide_follows_a_grammar_of_llama_cpp(grammar, text):
    fresh = guide(grammar=grammar)
    for byte in text.encode():
        assert fresh.allowed()[byte]
        fresh.accept(byte)
    assert fresh.allowed()[EOS]


def test_guides_compiled_once_do_not_share_their_places():
    guides = Guides(WordTokenizer())
    constraint = Constraint.of(regex="abc")
    first, second = (guides.guide(constraint, (EOS,), None) for _ in range(2))
    first.accept(ord("a"))
    assert (allowed(first), allowed(second)) == ({*b"b"}, {*b"a"})


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, True),
        ({"type": "object"}, {"type": "object"}),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
        *(
            (schema, schema)
            for schema in (
                {"properties": {}, "additionalProperties": True},
                {"properties": {}, "additionalProperties": {"type": "null"}},
                {"properties": {}, "patternProperties": {"^a": True}},
                {"properties": {}, "required": ["a"]},
                {"properties": {"a": {"properties": {}}}, "$ref": "#/b"},
                {"items": {"allOf": [{"properties": {}}]}},
                {"const": {"properties": {}}},
                {"enum": [{"properties": {}}]},
            )
        ),
    ],
)
def test_closed_schema_closes_objects_that_list_their_properties(schema, expected):
    before = json.dumps(schema)
    assert closed(schema) == expected
    assert json.dumps(schema) == before


@pytest.mark.parametrize("key", ["items", "additionalProperties"])
def test_closed_schema_closes_schemas_within(key):
    inner = {"properties": {}}
    expected = {**inner, "additionalProperties": False}
    assert closed({key: inner}) == {key: expected}
    assert closed({"anyOf": [inner], "oneOf": [True]}) == {"anyOf": [expected], "oneOf": [True]}
    assert closed({"$defs": {"a": inner}}) == {"$defs": {"a": expected}}
    # A property may be called as a keyword is.
    named = {"properties": {"properties": inner}}
    assert closed(named)["properties"] == {"properties": expected}
