"""`docs/cli.md` is what the commands say of themselves, here and now."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from qllama.cli import reference
from qllama.cli.group import COMMANDS, cli

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMAND = "python -m qllama.cli.reference docs/cli.md"


def test_reference_is_what_the_help_says_today():
    written = PAGE.read_text(encoding="utf-8")
    assert written == reference.reference(), f"docs/cli.md is out of date; run: {COMMAND}"
    assert f"`{COMMAND}`" in written


@pytest.mark.parametrize("columns", ["40", "200"])
def test_reference_is_the_same_on_every_terminal(monkeypatch, columns):
    before = reference.reference()
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    assert reference.reference() == before


def test_reference_has_every_command_and_every_option():
    sections = dict(re.findall(r"^## qllama (\w+)\n(.*?)^```$", reference.reference(), re.S | re.M))
    assert tuple(sections) == COMMANDS
    for name, text in sections.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option):
                assert all(flag in text for flag in option.opts), (name, option.opts)


def test_reference_is_written_to_the_file_that_is_named(monkeypatch, tmp_path):
    path = tmp_path / "cli.md"
    monkeypatch.setattr("sys.argv", ["reference", str(path)])
    reference.main()
    assert path.read_bytes() == reference.reference().encode()
