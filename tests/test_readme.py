"""What README promises exists: its commands, their flags, its files, its test command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from qllama.cli.group import COMMANDS, cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEST_COMMAND = "pip install -e '.[test]' && pytest"


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def command_lines() -> list[str]:
    """Every `qllama ...` of README: inline code, and the lines of shell blocks."""
    inline = re.findall(r"`(qllama [^`]*)`", README)
    shell = re.findall(r"(?:^|&& )(qllama [^&\n]*)", "\n".join(code_blocks("sh")), re.MULTILINE)
    return sorted({line.replace("\\|", "|") for line in [*inline, *shell]})


def check_command_line(line: str) -> None:
    """Assert that a line which begins with `qllama` names a command, and flags of it."""
    words = shlex.split(re.sub(r"[\[\]]", " ", line))
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, words[1]
    flags = {flag for option in command.params for flag in option.opts} | {"--help"}
    assert {word for word in words if word.startswith("-")} <= flags


@pytest.mark.parametrize("line", command_lines())
def test_readme_command_line_names_what_exists(line):
    check_command_line(line)


def test_readme_table_lists_every_command():
    rows = re.findall(r"^\| `qllama (\w+)", README, re.MULTILINE)
    assert tuple(rows) == COMMANDS


def test_readme_layout_names_files_that_exist():
    tree = re.search(r"## What is where\n\n((?:    .*\n)+)", README)
    assert tree is not None
    parent = ""
    for row in tree[1].splitlines():
        nested = row.startswith(" " * 6)
        for name in re.split(r"\s{2,}", row.strip())[0].split():
            path = ROOT / (f"{parent}{name}" if nested else name)
            assert path.exists(), path
            assert path.is_dir() == name.endswith("/"), path
            if not nested and path.is_dir():
                parent = name


def test_readme_links_lead_to_files():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("source", code_blocks("python"))
def test_readme_python_compiles(source):
    compile(source, "README.md", "exec")


def test_readme_test_command_is_what_ci_runs():
    assert f"\n{TEST_COMMAND}\n" in "\n".join(code_blocks("sh"))
    assert f"\n{TEST_COMMAND}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_first_command_installs_and_answers():
    assert code_blocks("sh")[0].startswith("pip install . && qllama chat -p ")
