"""The tutorial's commands exist, and its pictures show what it says is typed."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pytest
from test_readme import check_command_line

from terminal_pictures import Picture, Terminal, as_svg, pictures_of

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")
PICTURES = pictures_of(TEXT)


def shown(svg: str) -> str:
    """The text of a picture, without what separates its pieces."""
    pieces = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    return re.sub(r"\s", "", html.unescape("".join(pieces)))


def command_lines() -> list[str]:
    """Every `qllama ...` of the page: inline code, shell blocks, and what is typed."""
    inline = re.findall(r"`(qllama [a-z][^`]*)`", TEXT)
    typed = [line for picture in PICTURES for line in picture.typed]
    blocks = [
        line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.split("\n")
    ]
    calls = [re.search(r"(?:^|\| )(qllama [^|;>]*)", line) for line in (*typed, *blocks)]
    return sorted({*inline, *(call[1] for call in calls if call)})


@pytest.mark.parametrize("line", command_lines())
def test_tutorial_command_line_names_what_exists(line):
    check_command_line(line)


def test_tutorial_every_picture_is_one_that_the_script_draws():
    drawn = re.findall(r"!\[[^]]+\]\((\S+\.svg)\)", TEXT)
    assert drawn == [picture.name for picture in PICTURES]
    assert len(drawn) > 3


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_tutorial_picture_shows_what_is_typed(picture):
    # Else: python docs/terminal_pictures.py docs/tutorial.md
    text = shown((PAGE.parent / picture.name).read_text(encoding="utf-8"))
    for line in picture.typed:
        if not line.startswith("^C "):
            assert re.sub(r"\s", "", line) in text


def test_tutorial_links_lead_to_files():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target


def test_pictures_are_read_from_comments():
    text = "a\n<!-- terminal: p/x.svg\none\n\n^C two\n-->\n![x](p/x.svg)"
    assert pictures_of(text) == [Picture("p/x.svg", ("one", "", "^C two"))]


def test_picture_leaves_out_the_prompt_that_waits():
    svg = as_svg("$ \x1b[1mls\x1b[0m <a>\nb\n$\n\n\n", "p/x.svg")
    assert shown(svg) == "qllama$ls<a>b"
    assert svg == as_svg("$ \x1b[1mls\x1b[0m <a>\nb\n$\n\n\n", "p/x.svg")
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_terminal_types_each_line_when_the_one_before_is_done(tmp_path):
    typed = (
        "read -p '>>> ' x; echo got $x",
        "word",
        "for i in {1..99}; do echo n$i; sleep 1; done",
        "^C n2",
        "echo end",
    )
    with Terminal(tmp_path, patience=30) as terminal:
        lines = terminal.play(typed).rstrip().splitlines()
    assert [line.rstrip() for line in lines] == [
        "$ read -p '>>> ' x; echo got $x",
        ">>> word",
        "got word",
        "$ for i in {1..99}; do echo n$i; sleep 1; done",
        "n1",
        "n2",
        "^C",
        "$ echo end",
        "end",
        "$",
    ]
