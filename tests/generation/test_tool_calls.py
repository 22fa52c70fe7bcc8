"""Calls of tools: by what grammar a model writes them, and how they are read back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_model import EOS, USER, ByteTokenizer

from qllama.generation.guide import Guides
from qllama.generation.tool_calls import HERMES, CallDelta, CallReader, call_form

QWEN = "{% if tools %}<tool_call>{% endif %}"
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS] ["
LLAMA_3 = """{% if tools %}Environment: ipython{% endif %}{{- '"parameters": ' }}"""
FORMS = {"hermes": HERMES, "mistral": call_form(MISTRAL), "llama 3": call_form(LLAMA_3)}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = {"get": CITY, 'g"{é': {"type": "object", "properties": {}}}
ARGUMENTS = json.dumps({"city": '}"\\{</tool_call> é'}, ensure_ascii=False)
CALLS = {
    "hermes": f'<tool_call>\n{{"name": "get", "arguments": {ARGUMENTS}}}\n</tool_call>',
    "mistral": f'[TOOL_CALLS] [{{"name": "get", "arguments": {ARGUMENTS}}}]',
    "llama 3": f'{{"name": "get", "parameters": {ARGUMENTS}}}',
}
TWO_CALLS = {
    "hermes": f'{CALLS["hermes"]}\n<tool_call>\n{{"name": "g\\"{{é", "arguments": {{}}}}\n'
    "</tool_call>",
    "mistral": CALLS["mistral"][:-1] + ', {"name": "g\\"{é", "arguments": {}}]',
}


def accepts(form, text, *, forced=False, only=None, tokens=None):
    """Whether `text` is a whole answer; where it is not, how much of it may come."""
    tokenizer = ByteTokenizer()
    constraint = form.constraint(TOOLS, tokenizer, forced=forced, only=only)
    guide = Guides(tokenizer).guide(constraint, (EOS,), None)
    tokens = [*text.encode()] if tokens is None else tokens
    for n, token in enumerate(tokens):
        if not guide.allowed()[token]:
            return n
        if guide.accept(token):
            return n == len(tokens) - 1
    return bool(guide.allowed()[EOS])


def read(form, text, n=1):
    """Read `text` in pieces of `n` characters: its content, its calls, what was withheld."""
    reader = CallReader(form)
    parts = [part for i in range(0, len(text), n) for part in reader.push(text[i : i + n])]
    content = "".join(part for part in parts if isinstance(part, str))
    calls = []
    for part in parts:
        if isinstance(part, CallDelta):
            if part.name is not None:
                assert len(part.id) == 9
                calls.append([part.name, ""])
            assert part.index == len(calls) - 1
            calls[-1][1] += part.arguments
    assert reader.n_calls == len(calls)
    return content, calls, reader.flush()


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (QWEN, "hermes"),
        (MISTRAL, "mistral"),
        (LLAMA_3, "llama 3"),
        ("{{ messages }}", None),
        ("<tool_call>", None),
        ("{{ tools }}", None),
        (f"{QWEN}<function=", None),
        (f"{MISTRAL}[ARGS]", None),
    ],
)
def test_call_form_shows_in_the_template(template, form):
    assert call_form(template) == (form and FORMS[form])


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_calls_of_each_form_are_allowed(name, forced):
    assert accepts(FORMS[name], CALLS[name], forced=forced) is True
    assert accepts(FORMS[name], CALLS[name], forced=True, only="get") is True
    if name in TWO_CALLS:
        assert accepts(FORMS[name], TWO_CALLS[name], forced=forced) is True
        assert accepts(FORMS[name], TWO_CALLS[name], forced=True, only="get") is not True


@pytest.mark.parametrize("name", FORMS)
def test_answer_is_any_text_where_calls_are_not_forced(name):
    assert accepts(FORMS[name], 'Hi "{\n') is True
    assert accepts(FORMS[name], "") is True
    assert accepts(FORMS[name], "Hi", forced=True) == 0


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("wrong", ['"gets"', '"get", "id"', '"city": 7'])
def test_call_that_has_begun_is_valid_whoever_made_it(name, wrong):
    text = CALLS[name].replace('"city": "', wrong) if "city" in wrong else CALLS[name]
    text = text.replace('"get"', wrong) if "get" in wrong else text
    n = accepts(FORMS[name], text)
    assert type(n) is int
    assert text.encode()[:n].decode() in text[: text.index(wrong) + len(wrong)]


def test_text_may_come_before_calls_but_not_after_them():
    assert accepts(HERMES, f"Let me see. <tool>\n{CALLS['hermes']}") is True
    assert type(accepts(HERMES, f"{CALLS['hermes']}\nWell")) is int


def test_opening_that_is_a_control_token_is_that_token():
    form = replace(FORMS["mistral"], opening="<|user|>")
    calls = [USER, *CALLS["mistral"].removeprefix("[TOOL_CALLS]").encode()]
    assert accepts(form, "", tokens=calls) is True
    assert accepts(form, "", tokens=calls, forced=True) is True
    assert accepts(form, "", tokens=[USER, *b"Hi"]) == 1
    assert accepts(form, "<|user|>Hi") is True  # in plain letters it calls nothing
    constraint = form.constraint(TOOLS, ByteTokenizer(), forced=True, only=None)
    assert constraint.spelled == (USER,)


@pytest.mark.parametrize("n", [1, 3, 1000])
@pytest.mark.parametrize("name", TWO_CALLS)
def test_reader_finds_text_and_calls_however_they_come(name, n):
    calls = [["get", ARGUMENTS], ['g"{é', "{}"]]
    assert read(FORMS[name], f"So <tool{TWO_CALLS[name]}", n) == ("So <tool", calls, "")


@pytest.mark.parametrize("n", [1, 1000])
def test_reader_of_bare_json_goes_by_the_first_character(n):
    assert read(FORMS["llama 3"], CALLS["llama 3"], n) == ("", [["get", ARGUMENTS]], "")
    assert read(FORMS["llama 3"], "I{", n) == ("I{", [], "")


def test_reader_withholds_what_may_begin_a_call():
    assert read(HERMES, "a <tool_") == ("a ", [], "<tool_")


@pytest.mark.parametrize("n_missing", [1, 25, 50, 70])
def test_reader_of_an_answer_cut_off_has_what_there_was(n_missing):
    text = CALLS["hermes"][:-n_missing]
    content, calls, _ = read(HERMES, text)
    assert content == ""
    assert calls == ([["get", ARGUMENTS[: len(ARGUMENTS)]]] if n_missing < 20 else calls)
    assert all(ARGUMENTS.startswith(arguments) for _, arguments in calls)
