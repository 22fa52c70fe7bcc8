"""Where the text of `chat` and `generate` comes from without a terminal, and `--json`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qllama.cli import cli
from qllama.errors import QllamaError

FAKE = Path(__file__).with_name("fake_llama.py")


def asked(fake) -> str:
    """What the model was last asked."""
    prompt = fake.calls[-1][0]
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "text"
    path.write_bytes("Zoë said \r\n".encode())
    return path


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize("arguments", [[], ["-p", "-"], ["-f", "-"]])
def test_command_text_of_stdin_is_the_prompt(run, fake_llama, command, arguments):
    fake = fake_llama(["Yes."])
    result = run(command, *arguments, stdin="Is 7\nprime?\n")
    assert (result.stdout, result.stderr) == ("Yes.\n", "")
    assert asked(fake) == "Is 7\nprime?"


def test_generate_text_is_taken_as_it_is_but_for_the_line_end_of_a_file(run, fake_llama, text_file):
    fake = fake_llama(["a"], ["b"], ["c"])
    run("generate", "-p", " Once\n")
    assert asked(fake) == " Once\n"
    run("generate", "-f", str(text_file))
    assert asked(fake) == "Zoë said "
    run("generate", stdin="Once\n\n")
    assert asked(fake) == "Once\n"


def test_chat_prompt_and_file_are_one_message(run, fake_llama, text_file):
    fake = fake_llama(["a"], ["b"])
    run("chat", "-p", "Who speaks?", "-f", str(text_file))
    assert asked(fake) == "Who speaks?\n\nZoë said"
    run("chat", "-p", "Who speaks?", "-f", "-", stdin="Zoë\n")
    assert asked(fake) == "Who speaks?\n\nZoë"


def test_chat_overflow_of_one_answer_follows_the_policy(run, fake_llama):
    fake = fake_llama(["a"])
    fake.n_ctx = 40
    for policy in ("shift", "error"):
        result = run("chat", "other.qlm", "-p", "d" * 50, "--on-overflow", policy)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("qllama: error: the message takes 51 tokens")
        assert result.stderr.endswith("or have it cut (--on-overflow truncate)\n")
    result = run("chat", "other.qlm", "-p", "d" * 50, "--on-overflow", "truncate")
    assert (result.exit_code, result.stdout) == (0, "a\n")
    assert result.stderr == (
        "qllama: Context window full: cut the first 21 of the message's 50 characters.\n"
    )
    assert asked(fake) == "d" * 29


def test_chat_prompt_of_the_command_line_leaves_stdin_alone(run, fake_llama):
    fake = fake_llama(["a"])
    run("chat", "-p", "hi", stdin="the lines of a loop around it")
    assert asked(fake) == "hi"


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(("arguments", "stdin"), [((), ""), ((), "\n"), (("-p", ""), "x")])
def test_command_empty_prompt_is_wrong_usage(run, fake_llama, command, arguments, stdin):
    fake = fake_llama()
    result = run(command, *arguments, stdin=stdin)
    assert result.exit_code == 2
    assert "is empty: give -p TEXT, -f FILE or pipe text in" in result.stderr
    assert fake.loaded == []


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["chat", "-p", "-", "-f", "-"], "Both -p - and -f - read stdin"),
        (["generate", "-p", "a", "-f", "b"], "-p TEXT, -p - or -f FILE"),
    ],
)
def test_command_two_sources_that_exclude_each_other_are_refused(
    run, fake_llama, arguments, fragment
):
    fake_llama()
    result = run(*arguments, stdin="text")
    assert result.exit_code == 2
    assert fragment in result.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["generate"], "Give the text to continue"),
        (["chat", "--json"], "--json is for one answer"),
    ],
)
def test_command_at_a_terminal_says_that_it_needs_text(
    fake_llama, monkeypatch, capsys, arguments, fragment
):
    fake_llama()
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert fragment in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["chat"], ["chat", "-p", "-"], ["generate"], ["generate", "-f", "-"]]
)
def test_closed_stdin_is_told_in_one_line(arguments, fake_llama, monkeypatch, capsys):
    fake_llama()
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert capsys.readouterr().err == (
        "qllama: error: stdin: expected text, found it closed; "
        "give the text on the command line or pipe it in\n"
    )


def test_stdin_that_is_no_utf8_names_the_byte(run, fake_llama):
    fake_llama()
    result = run("chat", stdin=b"caf\xe9")
    assert result.exit_code == 1
    assert "stdin: expected UTF-8 text, found byte 0xe9 at offset 3" in result.stderr


def test_missing_file_is_named(run, fake_llama):
    fake_llama()
    result = run("generate", "-f", "no/such/file")
    assert result.exit_code == 1
    assert result.stderr == "qllama: error: no/such/file: No such file or directory\n"


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_json_is_one_line_that_says_everything(run, fake_llama, command):
    fake_llama(["caf", "é\n"])
    result = run(command, "-p", "hi", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {
        "text": "café\n",
        "finish_reason": "stop",
        "prompt_tokens": 30,
        "completion_tokens": 50,
        "guessed_tokens": 8,
        "accepted_tokens": 6,
        "seed": 7,
        "timings": {
            "load_seconds": 0.5,
            "prompt_seconds": 0.04,
            "completion_seconds": 2.0,
            "total_seconds": 2.54,
            "prompt_tokens_per_second": 250.0,
            "completion_tokens_per_second": 25.0,
        },
    }


def test_json_verbose_prints_the_statistics_to_stderr(run, fake_llama):
    fake_llama(["ok"])
    result = run("chat", "-p", "hi", "--json", "-v")
    assert json.loads(result.stdout)["text"] == "ok"
    assert "eval rate:            25.00 tokens/s" in result.stderr


def test_json_failed_answer_prints_no_object(run, fake_llama):
    fake_llama(["Half of", QllamaError("the rest is lost")])
    result = run("chat", "-p", "hi", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "qllama: error: the rest is lost\n"


def test_json_interrupted_answer_is_cancelled_and_exits_130(run, fake_llama):
    fake_llama(["Half of", lambda: signal.raise_signal(signal.SIGINT), "it"])
    result = run("chat", "-p", "hi", "--json")
    assert result.exit_code == 130
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["finish_reason"]) == ("Half of", "cancelled")


@pytest.mark.skipif(os.name != "posix", reason="pipes close this way on POSIX")
def test_answer_whose_reader_leaves_ends_in_silence():
    command = [sys.executable, str(FAKE), "-p", "count"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"0 1 "
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
