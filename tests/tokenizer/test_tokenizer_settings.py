from __future__ import annotations

import pytest
from tokenizer_repos import decoder, entry, write

from converter.chat_templates import read_chat_template
from converter.tokenizer_settings import read_settings
from qllama.errors import QllamaError


def test_nothing_said_is_nothing_known(tmp_path):
    settings = read_settings(tmp_path, {})
    assert (settings.named, settings.added, settings.special) == ({}, (), frozenset())
    assert (settings.end_ids, settings.bos_id, settings.pad_id) == ((), None, None)
    assert settings.add_bos_token is settings.legacy is settings.chat_template is None


def test_named_tokens_may_be_text_objects_null_or_empty(tmp_path):
    said = {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "unk_token": "",
        "pad_token": None,
    }
    named = read_settings(write(tmp_path, tokenizer_config_json=said), {}).named
    assert named == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None}


def test_special_tokens_map_counts_unless_all_added_tokens_are_told(tmp_path):
    # As in transformers: an alpaca-like map replaces every role by </s>.
    write(
        tmp_path,
        special_tokens_map_json={"bos_token": "</s>", "additional_special_tokens": ["<m>"]},
        added_tokens_json={"<b>": 7, "<m>": 6},
        tokenizer_config_json={"bos_token": "<s>", "eos_token": "<b>"},
    )
    older = read_settings(tmp_path, {})
    assert older.named == {"bos_token": "</s>", "eos_token": "<b>"}
    assert [(t.id, t.content, t.special) for t in older.added] == [
        (6, "<m>", True),
        (7, "<b>", True),
    ]
    complete = {"bos_token": "<s>", "added_tokens_decoder": decoder(entry(9, "<n>", rstrip=True))}
    newer = read_settings(write(tmp_path, tokenizer_config_json=complete), {})
    assert newer.named == {"bos_token": "<s>"}
    assert newer.special == frozenset()
    assert [(t.id, t.content, t.rstrip) for t in newer.added] == [(9, "<n>", True)]


def test_added_tokens_without_a_role_are_matched_in_normalized_text(tmp_path):
    (token,) = read_settings(write(tmp_path, added_tokens_json={"<a>": 5}), {}).added
    assert (token.special, token.normalized) == (False, True)


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("value", [["<a>", {"content": "<b>"}], {"x": "<a>", "y": "<b>"}])
def test_special_tokens_in_every_spelling(tmp_path, key, value):
    settings = read_settings(write(tmp_path, tokenizer_config_json={key: value}), {})
    assert settings.special == {"<a>", "<b>"}


def test_end_ids_of_the_generation_config_come_first(tmp_path):
    write(tmp_path, generation_config_json={"eos_token_id": [3, 1]})
    settings = read_settings(tmp_path, {"eos_token_id": 2, "bos_token_id": [4], "pad_token_id": -1})
    assert [token_id for _, token_id in settings.end_ids] == [3, 1, 2]
    assert (settings.bos_id, settings.pad_id) == (4, -1)


BESIDE = {
    "chat_template_jinja": b"from the file",
    "tokenizer_config_json": {"chat_template": "from the config"},
    "chat_template_json": {"chat_template": "from json"},
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["chat_template_jinja", "tokenizer_config_json", "chat_template_json"], "from the file"),
        (["tokenizer_config_json", "chat_template_json"], "from the config"),
        (["chat_template_json"], "from json"),
        ([], None),
    ],
)
def test_chat_template_places_in_order(tmp_path, files, expected):
    write(tmp_path, **{name: BESIDE[name] for name in files})
    assert read_settings(tmp_path, {}).chat_template == expected


def test_chat_template_list_gives_the_default_or_the_only_one(tmp_path):
    one, other = {"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}
    assert read_chat_template(tmp_path, {"chat_template": [one, other]}) == "d"
    assert read_chat_template(tmp_path, {"chat_template": [one]}) == "t"


MALFORMED = [
    ("tokenizer_config", {"bos_token": ["<s>"]}, r"bos_token: expected a token, found \['<s>'\]"),
    ("tokenizer_config", {"add_bos_token": "yes"}, "add_bos_token: expected bool, found 'yes'"),
    ("tokenizer_config", {"legacy": 1}, "legacy: expected bool, found 1"),
    ("tokenizer_config", {"additional_special_tokens": "<a>"}, "expected a list, found '<a>'"),
    ("tokenizer_config", {"additional_special_tokens": [1]}, "expected a token, found 1"),
    ("tokenizer_config", {"added_tokens_decoder": []}, r"expected an object, found \[\]"),
    (
        "tokenizer_config",
        {"added_tokens_decoder": {"-1": {"content": "x"}}},
        "expected token ids and objects with content, found '-1'",
    ),
    (
        "tokenizer_config",
        {"added_tokens_decoder": {"1": {"content": "x", "special": "no"}}},
        r"added_tokens_decoder\[1\]\.special: expected bool, found 'no'",
    ),
    (
        "tokenizer_config",
        {"added_tokens_decoder": {"1": {"content": "x"}, "01": {"content": "y"}}},
        "'x' and 'y' are both token 1",
    ),
    ("tokenizer_config", {"chat_template": 5}, "chat_template: expected text or a list, found 5"),
    ("tokenizer_config", {"chat_template": ["x"]}, "expected entries with name and template"),
    (
        "tokenizer_config",
        {"chat_template": [{"name": n, "template": n} for n in ("a", "b")]},
        "none of 'a', 'b' is named 'default'",
    ),
    ("added_tokens", {"<a>": "5"}, "expected tokens and their ids, found '<a>': '5'"),
    ("added_tokens", {"<a>": 5, "<b>": 5}, "'<a>' and '<b>' are both token 5"),
    ("generation_config", {"eos_token_id": "2"}, "expected a token id or a list, found '2'"),
    ("generation_config", {"eos_token_id": [2.0]}, "expected a token id or a list"),
    ("special_tokens_map", b"\xff", "expected JSON: "),
    ("special_tokens_map", b"[" * 10**5, "expected JSON: "),
]


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED)
def test_malformed_file_raises_one_line_that_names_it(tmp_path, name, content, message):
    write(tmp_path, **{f"{name}_json": content})
    with pytest.raises(QllamaError, match=message) as info:
        read_settings(tmp_path, {})
    assert "\n" not in str(info.value)
    assert str(tmp_path / f"{name}.json") in str(info.value)


def test_malformed_config_or_template_raises_one_line(tmp_path):
    with pytest.raises(QllamaError, match="config: eos_token_id: expected a token id or a list"):
        read_settings(tmp_path, {"eos_token_id": {}})
    write(tmp_path, chat_template_jinja=b"\xff")
    with pytest.raises(QllamaError, match=r"chat_template\.jinja: expected UTF-8 text"):
        read_settings(tmp_path, {})
