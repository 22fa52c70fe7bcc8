"""What all commands share: help, exit codes, one line for an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from qllama.cli.group import COMMANDS, cli
from qllama.errors import ConversionError


def get_command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def raising(error: BaseException):
    def load_model(model, runtime):
        raise error

    return load_model


def test_group_help_lists_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


def test_group_without_a_command_shows_its_help(run):
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == run("--help").stdout


def test_module_runs_as_the_command_does():
    command = [sys.executable, "-m", "qllama", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: qllama [OPTIONS] [COMMAND]")


def test_group_help_fits_a_line_for_each_command(run):
    lines = run("--help").stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line == "Daily use:")
    last = lines.index("  Examples:")
    listed = [line.split()[0] for line in lines[first:last] if line.startswith("  ")]
    assert tuple(listed) == COMMANDS


def test_command_help_shows_every_option_once_under_headings(run):
    lines = run("chat", "--help").stdout.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Sampling:", "Form of the answer:", "Resources:", "Other:"]
    for flag in ("--prompt", "--temp", "--threads", "--help"):
        assert sum(f"{flag} " in line + " " for line in lines if line.startswith("  -")) == 1
    sampling = lines.index("Sampling:")
    assert any(line.startswith("  --temp ") for line in lines[sampling:])


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_has_an_example_and_explains_every_option(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?:\s+qllama {name}\b", result.stdout)
    for option in get_command(name).params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert all(flag in result.stdout for flag in option.opts)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_tells_the_default_of_every_option_with_a_value(run, name):
    for option in get_command(name).params:
        if isinstance(option, click.Option) and not option.is_flag and not option.multiple:
            states_default = option.show_default or "[default: " in (option.help or "")
            assert states_default or option.name in ("prompt", "file"), option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_command_every_option_can_debug(name):
    assert "--debug" in {flag for option in get_command(name).params for flag in option.opts}


def test_group_version_names_the_program(run):
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("qllama 0.")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["nonsense"], "No such command 'nonsense'. Try"),
        (["run", "model.qlm"], "No such command 'run'. Did you mean 'qllama chat'?"),
        (["inspekt"], "No such command 'inspekt'. Did you mean 'qllama inspect'?"),
        (["chat", "--tmep", "1"], "No such option '--tmep'"),
        (["chat", "--temp", "hot"], "'hot' is not a valid float"),
        (["chat", "--top-p", "1.5"], "--top-p"),
        (["chat", "-p", " "], "The prompt is empty"),
        (["chat", "a.qlm", "-m", "b.qlm", "-p", "hi"], "MODEL is given twice"),
        (["generate", "-p", "a", "-l", "12"], "expected TOKEN_ID+BIAS"),
        (["convert"], "Missing argument 'SRC'"),
        (["convert", "a", "b", "-o", "c"], "OUT is given twice"),
        (["convert", "a", "--type", "q2"], "'q2' is not one of"),
        (["perplexity"], "Missing option '-f'"),
        (["perplexity", "-f", "a", "-c", "7"], "7 is not in the range x>=8"),
        (["perplexity", "-f", "a", "--chunks", "0"], "0 is not in the range x>=1"),
        (["tokenize"], "found 0 arguments"),
        (["tokenize", "a", "b", "-m", "c"], "MODEL is given twice"),
    ],
)
def test_group_wrong_usage_gives_one_line_and_exit_2(run, arguments, fragment):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("qllama: error: ")
    assert fragment in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip().endswith("--help'.")


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (ConversionError("a.gguf: no\ngood"), 1, "a.gguf: no good"),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "x: No such file or directory"),
        (OSError("odd"), 1, "odd"),
        (ValueError("logit_bias: found 9"), 1, "logit_bias: found 9"),
        (
            KeyError("k"),
            1,
            "internal error: KeyError: 'k'; run again with --debug and report it",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_group_error_gives_one_line_and_its_exit_code(run, monkeypatch, error, exit_code, line):
    monkeypatch.setattr("qllama.cli.chat.load_model", raising(error))
    result = run("chat", "-p", "hi")
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.strip() == f"qllama: error: {line}"


def test_group_debug_adds_the_traceback(run, monkeypatch):
    monkeypatch.setattr("qllama.cli.chat.load_model", raising(ConversionError("broken")))
    result = run("chat", "-p", "hi", "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("\nqllama: error: broken\n")


@pytest.mark.skipif(os.name != "posix", reason="pipes close this way on POSIX")
def test_group_reader_that_left_is_no_error(tiny_qlm):
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = "from qllama.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "tokenize", str(tiny_qlm), "hi"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert done.stderr == ""


def test_group_unencodable_output_is_replaced(fake_llama):
    fake_llama(["\u6771 caf\u00e9"])
    result = CliRunner(charset="latin-1").invoke(cli, ["chat", "-p", "hi"])
    assert result.stdout_bytes == b"? caf\xe9\n"
