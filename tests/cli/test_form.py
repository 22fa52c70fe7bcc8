"""Answers of a given form on the command line: llama.cpp's -j, --grammar and their files."""

from __future__ import annotations

import pytest

SCHEMA = '{"type": "object"}'
GRAMMAR = 'root ::= "é"'


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(
    ("flag", "text", "option"),
    [
        ("-j", SCHEMA, "json_schema"),
        ("--json-schema", SCHEMA, "json_schema"),
        ("-jf", SCHEMA, "json_schema"),
        ("--json-schema-file", SCHEMA, "json_schema"),
        ("--grammar", GRAMMAR, "grammar"),
        ("--grammar-file", GRAMMAR, "grammar"),
    ],
)
def test_form_reaches_the_model(run, fake_llama, tmp_path, command, flag, text, option):
    fake = fake_llama(["{}"])
    if flag.endswith(("f", "file")):
        (tmp_path / "form").write_text(text, encoding="utf-8")
        text_or_file = str(tmp_path / "form")
    else:
        text_or_file = text
    assert run(command, "-p", "hi", flag, text_or_file).exit_code == 0
    options = fake.calls[0][1]
    assert options[option] == text
    assert not {"json_schema", "grammar"} - {option} & options.keys()


@pytest.mark.parametrize("second", ["--json-schema-file", "--grammar", "--grammar-file"])
def test_two_forms_are_refused(run, fake_llama, second):
    fake = fake_llama(["{}"])
    result = run("generate", "-p", "hi", "-j", SCHEMA, second, "x")
    assert result.exit_code == 2
    assert "Give one of --json-schema, --json-schema-file, --grammar" in result.stderr
    assert fake.calls == []


def test_form_file_that_is_missing_is_named(run, fake_llama):
    fake_llama(["{}"])
    result = run("generate", "-p", "hi", "-jf", "no.json")
    assert result.exit_code == 1
    assert result.stderr == "qllama: error: no.json: No such file or directory\n"
