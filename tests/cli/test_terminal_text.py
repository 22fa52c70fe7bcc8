"""Where text is broken, and what of it does not reach a terminal."""

from __future__ import annotations

import pytest

from qllama.cli.terminal_text import WordWrap, harmless, wrapped


def pushed(text, width, n=1):
    """Push `text` in pieces of `n` characters."""
    wrap = WordWrap(width)
    pieces = [text[i : i + n] for i in range(0, len(text), n)]
    return "".join(map(wrap.push, pieces)) + wrap.flush()


@pytest.mark.parametrize("n", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", "one two\nthree"),
        ("exactly8 and", "exactly8\nand"),
        ("one\n\ntwo  three", "one\n\ntwo\nthree"),
        ("  if x:\n    y", "  if x:\n    y"),
        ("incomprehensible", "incompre\nhensible"),
        ("a\tb", "a    b"),
        ("日本語の文章", "日本語の\n文章"),
        ("ab日本語", "ab日本語"),
        ("tail  ", "tail"),
    ],
)
def test_wrap_breaks_between_words_whatever_the_pieces(text, expected, n):
    assert pushed(text, 8, n) == expected


def test_wrap_shows_a_word_as_soon_as_it_is_whole():
    wrap = WordWrap(20)
    assert [wrap.push("Hel"), wrap.push("lo"), wrap.push(" wor"), wrap.flush()] == [
        "",
        "",
        "Hello",
        " wor",
    ]


def test_wrap_follows_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    wrap = WordWrap()
    wrap.push("one two ")
    monkeypatch.setenv("COLUMNS", "9")
    assert wrap.push("three ") == "\nthree"


def test_wrapped_rows_of_a_list_go_on_indented():
    text = "Commands:\n  /a     Do one thing\n  /b\n\nno such command as this"
    assert wrapped(text, 14) == (
        "Commands:\n  /a     Do\n    one thing\n  /b\n\nno such\ncommand as\nthis"
    )


def test_harmless_text_shows_control_characters_as_pictures():
    assert harmless("a\x1b[2J\r\n\tb\x7f") == "a␛[2J␍\n\tb␡"
