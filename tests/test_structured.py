"""Answers that must look a certain way, of the real small model: valid by construction."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import jsonschema
import pytest

from qllama import Llama, LlamaGrammar
from qllama.generation.expectation import StepCosts

QUESTION = [{"role": "user", "content": "Describe Anna, a painter of 32 from Göteborg, as JSON."}]
LEAF = {"type": "object", "properties": {"value": {"enum": ["é", "🦙", 7, None, True]}}}
HARD = {
    "nested": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "home": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "pattern": "^[A-ZÅÄÖ][a-zåäö]{2,8}$"},
                    "place": {
                        "type": "array",
                        "items": {"type": "number", "minimum": -90, "maximum": 90},
                        "minItems": 2,
                        "maxItems": 2,
                    },
                },
                "required": ["city", "place"],
            },
            "nick": {"type": "string", "maxLength": 8},
        },
        "required": ["name", "home"],
    },
    "enums": {"type": "array", "items": LEAF, "minItems": 2, "maxItems": 3},
    "anyOf": {
        "anyOf": [
            {"type": "object", "properties": {"cat": {"const": 'mi"a\\u\n'}}, "required": ["cat"]},
            {"type": "integer", "minimum": 17, "exclusiveMaximum": 23},
            {"type": "null"},
        ]
    },
    "reference": {
        "$defs": {
            "leaf": {"type": "string", "maxLength": 5},
            "pair": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
            "tree": {
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/pair"}, "right": {"$ref": "#/$defs/leaf"}},
                "required": ["left"],
            },
        },
        "$ref": "#/$defs/tree",
    },
    "dates": {
        "type": "object",
        "properties": {
            "date": {"type": "string", "format": "date"},
            "iso": {"type": "string", "pattern": "^(19|20)\\d\\d-[01]\\d-[0-3]\\d$"},
            "id": {"type": "string", "format": "uuid"},
        },
        "required": ["date", "iso", "id"],
    },
    "joined": {
        "allOf": [
            {"properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}},
            {"properties": {"b": {"type": "boolean"}}, "required": ["a", "b"]},
        ],
        "type": "object",
        "additionalProperties": False,
        "properties": {"a": True, "b": True},
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"const": "日本"}, {"type": "boolean"}],
        "items": False,
        "minItems": 2,
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def llm(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=512) as llm:
        yield llm


def check(answer, schema):
    assert answer.finish_reason == "stop"
    jsonschema.Draft202012Validator(schema).validate(json.loads(answer))
    assert "\n" not in answer


@pytest.mark.parametrize("schema", HARD.values(), ids=HARD)
def test_answer_follows_a_hard_schema_whatever_the_sampling(llm, schema):
    check(llm.chat(QUESTION, json_schema=schema, temperature=0, max_tokens=200), schema)
    wild = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5}
    check(llm.generate("JSON: ", json_schema=schema, max_tokens=400, **wild), schema)


@pytest.mark.parametrize(
    "pattern",
    [r"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d", r"[A-Z][a-z]+, \d{1,3}\.", "(é|🦙){3}", "a{40}"],
)
def test_answer_matches_a_regex(llm, pattern):
    for seed in range(3):
        answer = llm.generate("The answer: ", regex=pattern, max_tokens=60, seed=seed)
        assert re.fullmatch(pattern, answer)
        assert answer.finish_reason == "stop"


def test_answer_is_a_choice_and_ends_with_it(llm):
    choices = ["yes", "yes, sir", 'a "quoted"\n\\thing', "🦙", "日本語", "\u2028\x7f::= start:"]
    found = {str(llm.generate("So:", choice=choices, seed=seed, top_k=0)) for seed in range(12)}
    assert found <= {*choices}
    assert len(found) > 1
    for choice in choices:
        answer = llm.generate("So:", choice=[choice])
        assert (answer, answer.finish_reason) == (choice, "stop")


def test_answer_belongs_to_a_grammar_in_gbnf_and_in_lark(llm):
    gbnf = 'root ::= "<" pair ("," pair)? ">"\npair ::= [a-c]{2} "=" [0-9]'
    lark = 'start: "<" pair ("," pair)? ">"\npair: /[a-c]{2}/ "=" /[0-9]/'
    for grammar in (gbnf, lark):
        answer = llm.generate("Pairs: ", grammar=grammar, max_tokens=30, seed=2)
        assert re.fullmatch(r"<[a-c]{2}=\d(,[a-c]{2}=\d)?>", answer)


def test_grammar_made_as_llama_cpp_python_makes_it_is_heeded(llm, tmp_path):
    (tmp_path / "yes.gbnf").write_text('root ::= "ja" | "ne" "in"', encoding="utf-8")
    read = LlamaGrammar.from_file(tmp_path / "yes.gbnf")
    assert read == LlamaGrammar.from_string('root ::= "ja" | "ne" "in"', verbose=False)
    assert llm("Ja oder nein?", grammar=read)["choices"][0]["text"] in ("ja", "nein")
    person = LlamaGrammar.from_json_schema(json.dumps(PERSON))
    reply = llm.create_chat_completion(QUESTION, grammar=person, max_tokens=60)
    jsonschema.validate(json.loads(reply["choices"][0]["message"]["content"]), PERSON)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_object", "schema": PERSON},
        {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
    ],
    ids=["llama-cpp-python", "openai"],
)
def test_response_format_of_either_shape_is_heeded(llm, given):
    reply = llm.create_chat_completion(QUESTION, response_format=given, max_tokens=250, seed=1)
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "stop"
    assert [*json.loads(choice["message"]["content"])] == ["name", "age"]


def test_response_format_of_any_object_is_heeded(llm):
    (brace,) = llm.tokenize("}", add_bos=False)
    (choice,) = llm.create_chat_completion(
        QUESTION, response_format={"type": "json_object"}, logit_bias={brace: 50.0}
    )["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("{}", "stop")


def test_answer_is_incomplete_only_for_its_length(llm):
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 500}}}
    answer = llm.chat(QUESTION, json_schema={**schema, "required": ["text"]}, max_tokens=20)
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 20)
    assert answer.startswith('{"text": "')


def test_end_tokens_wait_until_the_answer_is_whole(llm):
    (end,) = llm.tokenize("<|im_end|>", add_bos=False, special=True)
    (comma,) = llm.tokenize(",", add_bos=False)
    wanted = {end: 50.0, comma: 60.0}
    answer = llm.chat(QUESTION, json_schema=PERSON, logit_bias=wanted, stop_token_ids=[comma])
    check(answer, PERSON)
    digits = llm.generate("1", regex=r"\d{2,9}", logit_bias={end: 50.0})
    assert (len(digits), digits.token_ids[-1], digits.finish_reason) == (2, end, "stop")


def test_streams_batches_and_coroutines_give_the_same_answers(llm):
    how = {"json_schema": PERSON, "max_tokens": 60, "temperature": 1.0}
    prompt = "Anna is 32. JSON: "
    alone = [llm.generate(prompt, seed=seed, **how) for seed in (1, 2, 3)]
    for answer in alone:
        check(answer, PERSON)
    together = llm.generate(prompt, n=3, seed=1, **how)
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    pieces = list(llm.generate(prompt, stream=True, seed=2, **how))
    assert "".join(pieces) == alone[1]
    assert pieces[-1].finish_reason == "stop"

    async def ask():
        return await asyncio.gather(*(llm.agenerate(prompt, seed=s, **how) for s in (1, 2, 3)))

    assert [a.token_ids for a in asyncio.run(ask())] == [a.token_ids for a in alone]


def test_coroutine_leaves_compiling_to_the_thread_that_computes(llm):
    async def ask():
        answer = llm.agenerate("a", regex="(a")  # compiles nothing yet
        with pytest.raises(ValueError, match=r"^regex: unclosed group$"):
            await answer

    asyncio.run(ask())


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_steps_of_what_must_come_are_taken_together_and_change_nothing(
    llm, monkeypatch, temperature
):
    known = {"seconds": 1.0}  # the clock decides nothing
    monkeypatch.setattr(StepCosts, "measured", lambda self, *_: self.__dict__.update(known))
    how = {"json_schema": HARD["nested"], "max_tokens": 200, "temperature": temperature}
    plain = llm.chat(QUESTION, seed=4, draft_max=0, **how)
    ahead = llm.chat(QUESTION, seed=4, **how)
    assert ahead.token_ids == plain.token_ids
    assert (plain.timings.accepted_tokens, ahead.finish_reason) == (0, "stop")
    assert ahead.timings.accepted_tokens >= 10


def test_answers_that_take_turns_keep_their_places(llm):
    one = llm.generate("One: ", stream=True, regex=r"a(b{20})c", max_tokens=30)
    two = llm.generate("Two: ", stream=True, regex=r"x(y{20})z", max_tokens=30)
    texts = ["", ""]
    for first, second in zip(one, two, strict=False):
        texts[0] += first
        texts[1] += second
    texts = [text + "".join(rest) for text, rest in zip(texts, (one, two), strict=True)]
    assert texts == ["a" + 20 * "b" + "c", "x" + 20 * "y" + "z"]


def test_stop_string_and_cancellation_end_an_answer_before_it_is_whole(llm):
    answer = llm.generate("So: ", regex="abc(def)*ghi", stop="de", max_tokens=30)
    assert answer in ("abc", "abcghi")
    with llm.generate("So: ", regex="a{200}", stream=True) as stream:
        next(stream)
    assert stream.finish_reason == "cancelled"


def test_plain_answer_loads_no_library_for_constraints(smollm2_q8):
    code = (
        "import sys; from qllama import Llama\n"
        "Llama(sys.argv[1], n_ctx=64).generate('Hi', max_tokens=1)\n"
        "assert 'llguidance' not in sys.modules"
    )
    run = [sys.executable, "-c", code, smollm2_q8]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "(a"}, "^regex: unclosed group$"),
        ({"regex": "(?=a)a"}, "^regex: look-around"),
        ({"regex": ""}, "^regex: expected a text"),
        ({"json_schema": "{"}, "^json_schema: expected JSON"),
        ({"json_schema": {"type": "frog"}}, "^json_schema: .*frog"),
        ({"json_schema": {"not": {}}}, r'^json_schema: .*"not"'),
        ({"json_schema": {"$ref": "#/a"}}, "^json_schema: .*'/a'"),
        ({"json_schema": 7}, "^json_schema: expected a JSON Schema, found 7"),
        ({"json_schema": {"enum": {3}}}, "^json_schema: expected what JSON has"),
        ({"choice": "yes"}, "^choice: expected a sequence of strings"),
        ({"choice": []}, "^choice: expected a sequence of strings"),
        ({"grammar": "root ::= ("}, "^grammar: "),
        ({"grammar": "start: x"}, "^grammar: "),
        ({"response_format": {"type": "xml"}}, "^response_format: .*xml"),
        ({"response_format": {"type": "json_schema"}}, "^response_format.json_schema: expected"),
        ({"regex": "a", "choice": ["b"]}, "^regex and choice: expected one constraint, found 2"),
    ],
)
def test_malformed_constraint_is_refused_on_one_line(llm, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        llm.generate("a", **options)
    assert "\n" not in str(refusal.value)
