"""What is drawn of an answer, and what remains of it on the screen."""

from __future__ import annotations

import io
import re
from contextlib import suppress

import pytest
from rich.console import Console

from qllama.cli.repl import display
from qllama.cli.repl.display import MarkdownReply, MarkdownScreen, WrappedScreen, choose_screen
from qllama.cli.repl.markdown import blocks, finished_blocks
from qllama.cli.repl.screen import PlainScreen

ANSWER = """\
# Title

Some **bold** text, <b>html</b> and `code`.
A second line.

- one
- two

1. first

   still first

2. second

```python
def f(x):

    return x
```

| a | b |
|---|---|
| 1 | 2 |

See [this](https://example.com)."""

KEPT = """\
Title

Some bold text, <b>html</b> and code.
A second line.

• one
• two

1. first
   still first
2. second

def f(x):

    return x

 a  b
 ────
 1  2

See this (https://example.com).

"""


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=40, height=12, color_system=None)


@pytest.fixture
def always_drawn(monkeypatch):
    monkeypatch.setattr(display, "_LEAST_SECONDS", 0)
    monkeypatch.setattr(display, "_DRAWING_SHARE", float("inf"))


def remains(output):
    """Play the cursor movements that rich uses; return the lines that remain."""
    lines, row = [""], 0
    for code, character in re.findall(r"\x1b\[(\??\d*[A-Za-z])|([^\x1b])", output):
        if code.endswith("A"):
            row -= int(code[:-1])
        elif code == "2K":
            lines[row] = ""
        elif character == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif character != "\r":
            lines[row] += character
    return "\n".join(line.rstrip() for line in lines[: row + 1])


@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.usefixtures("always_drawn")
def test_markdown_that_remains_is_the_whole_answer_however_it_came(console, n):
    with MarkdownReply(console) as reply:
        for i in range(0, len(ANSWER), n):
            reply.write(ANSWER[i : i + n])
    assert remains(console.file.getvalue()) == KEPT


@pytest.mark.usefixtures("always_drawn")
def test_markdown_shows_a_word_before_its_paragraph_is_over(console):
    with MarkdownReply(console) as reply:
        reply.write("Hello, wor")
        assert remains(console.file.getvalue()) == "Hello, wor"


@pytest.mark.usefixtures("always_drawn")
def test_markdown_block_higher_than_the_screen_is_drawn_from_its_end(console):
    with MarkdownReply(console) as reply:
        reply.write("```\n" + "".join(f"{i}\n" for i in range(100)))
        assert remains(console.file.getvalue()).split() == [str(i) for i in range(90, 100)]
    assert remains(console.file.getvalue()).split() == [str(i) for i in range(100)]


@pytest.mark.usefixtures("always_drawn")
def test_markdown_control_characters_do_not_reach_the_terminal(console):
    with MarkdownReply(console) as reply:
        reply.write("red \x1b[31m \x07")
    assert "\x1b[31m" not in console.file.getvalue()
    assert "red ␛[31m ␇" in remains(console.file.getvalue())


def test_markdown_numbers_of_a_list_are_aligned(console):
    with MarkdownReply(console) as reply:
        reply.write("".join(f"{i}. x\n" for i in range(9, 12)))
    assert remains(console.file.getvalue()) == " 9. x\n10. x\n11. x\n\n"


def test_markdown_interrupted_answer_remains(console):
    with suppress(KeyboardInterrupt), MarkdownReply(console) as reply:
        reply.write("one two")
        raise KeyboardInterrupt
    assert remains(console.file.getvalue()) == "one two\n\n"
    assert console.file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2Kone two\n\n")


def test_markdown_progress_of_a_long_prompt_is_told_and_wiped(console, monkeypatch):
    monkeypatch.setattr(display, "_PATIENCE_SECONDS", -1)
    with MarkdownReply(console) as reply:
        reply.progress(512, 2048)
        assert remains(console.file.getvalue()) == "reading the prompt: 512 of 2048 tokens"
    assert remains(console.file.getvalue()).strip() == ""


@pytest.mark.parametrize(
    "parts",
    [
        ["one"],
        ["one\n\n"],
        ["one\n\n", "two"],
        ["- a\n\n  b\n\n- c"],
        ["- a\n\n", "two\n"],
        ["```\n\n# no title\n\n"],
        ["```\nx\n```\n", "y\u2028z\x0c\n\n", "w"],
        ["# t\n", "text\n\n", "---\n", "> a\n>\n> b\n"],
    ],
)
def test_blocks_joined_are_the_text(parts):
    assert blocks("".join(parts)) == parts


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("1. a\n\n2", []),
        ("1. a\n\n2. ", []),
        ("1. a\n\n2 ", ["1. a\n\n"]),
        ("one\n\ntwo\n", ["one\n\n"]),
        ("one\n\n- two\n\nthree", ["one\n\n"]),
    ],
)
def test_finished_blocks_are_those_that_cannot_change(text, finished):
    assert finished_blocks(text) == (finished, text.removeprefix("".join(finished)))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_blocks_of_blank_text_are_none(text):
    assert blocks(text) == []


def test_screen_without_wordwrap_prints_the_text_as_it_is(console, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "8")
    screen = MarkdownScreen(console)
    screen.wordwrap = False
    with screen.reply() as reply:
        reply.write("one **two** three\x07")
    assert (console.file.getvalue(), capsys.readouterr().out) == ("", "one **two** three␇\n\n")


def test_wrapped_reply_breaks_lines_and_shows_no_control_characters(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "8")
    with WrappedScreen().reply() as reply:
        reply.progress(1, 2)
        for piece in ("on", "e two t", "hree\x1b[0m"):
            reply.write(piece)
    assert capsys.readouterr().out == "one two\nthree␛[0\nm\n\n"


@pytest.mark.parametrize(
    ("is_terminal", "plain", "term", "kind"),
    [
        (False, False, "xterm", PlainScreen),
        (True, True, "xterm", WrappedScreen),
        (True, False, "dumb", WrappedScreen),
        (True, False, "xterm", MarkdownScreen),
    ],
)
def test_screen_suits_where_stdout_goes(monkeypatch, is_terminal, plain, term, kind):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stdout", Terminal() if is_terminal else io.StringIO())
    assert type(choose_screen(plain=plain)) is kind


class Terminal(io.StringIO):
    def isatty(self):
        return True
