"""`qllama perplexity`: what it prints where, what it refuses, and how it is interrupted."""

from __future__ import annotations

import io
import json
import sys

import pytest
from tiny_qlm import write_tiny_qlm

from qllama.cli.perplexity_progress import PerplexityProgress
from qllama.evaluation import runner

# All weights of the tiny model are zero: every token is as likely as any of the 258.
RUNNING = "[1]258.0000,[2]258.0000,[3]258.0000,"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 5)  # 51 tokens with BOS
    return str(path)


def test_perplexity_prints_running_and_final_estimates_alone_to_stdout(run, tiny_qlm, text):
    result = run("perplexity", str(tiny_qlm), "-f", text, "-c", "16", "-t", "1")
    assert result.exit_code == 0
    assert result.stdout == f"{RUNNING}\nFinal estimate: PPL = 258.0000 +/- 0.00000\n"
    assert result.stderr.endswith("qllama: reading 3 windows of 16 tokens\n")


def test_perplexity_chunks_are_the_first_windows(run, tiny_qlm, text):
    result = run("perplexity", "-m", str(tiny_qlm), "-f", text, "-c", "16", "--chunks", "2")
    assert result.stdout.splitlines()[0] == "[1]258.0000,[2]258.0000,"


def test_perplexity_with_a_base_prints_how_near_they_are(run, tiny_qlm, text):
    arguments = ("-f", text, "-c", "16", "--kl-base", str(tiny_qlm), "-ctv", "q8_0")
    lines = run("perplexity", str(tiny_qlm), *arguments).stdout.splitlines()
    assert lines[0] == RUNNING
    assert "Mean    KLD:   0.000000 ±   0.000000" in lines
    assert "Same top p: 100.000 ± 0.000 %" in lines


def test_perplexity_json_is_one_document_that_tells_what_was_asked(run, tiny_qlm, text):
    arguments = ("-f", text, "-c", "16", "--kl-base", str(tiny_qlm), "-ctk", "q8_0", "-o", "json")
    result = run("perplexity", str(tiny_qlm), *arguments)
    document = json.loads(result.stdout)
    asked = {name: document[name] for name in ("model", "base", "file", "n_ctx", "kv_type")}
    assert asked == {
        "model": str(tiny_qlm),
        "base": str(tiny_qlm),
        "file": text,
        "n_ctx": 16,
        "kv_type": "q8",
    }
    assert (document["n_windows"], document["n_scored"]) == (3, 21)
    assert document["ppl"]["value"] == pytest.approx(258)
    assert document["comparison"]["same_top"]["value"] == 1


def test_perplexity_base_that_is_a_checkpoint_is_converted_to_f16(run, tiny_qlm, text, monkeypatch):
    asked = []

    def model_path(model, weight_type="q4"):
        asked.append((model, weight_type))
        return tiny_qlm

    monkeypatch.setattr("qllama.cli.perplexity.model_path", model_path)
    assert run("perplexity", "a", "-f", text, "-c", "16", "--kl-base", "b").exit_code == 0
    assert asked == [("a", "q4"), ("b", "f16")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-f", "{text}"],
            "{model}: expected windows of at most the 128 tokens of its context, found 512; "
            "choose a smaller -c",
        ),
        (
            ["-f", "{text}", "-c", "64"],
            "{text}: expected at least 128 tokens, two windows of 64, found 51; "
            "give a longer text or a smaller -c",
        ),
        (["-f", "{text}.no", "-c", "16"], "{text}.no: No such file or directory"),
        (
            ["-f", "{text}", "-c", "16", "--kl-base", "{wider}"],
            "{wider}: expected the vocabulary of {model}, 258 tokens, found 274; "
            "choose two conversions of one model",
        ),
        (
            ["-f", "{text}", "-c", "16", "--kl-base", "{other}"],
            "{other}: expected the vocabulary of {model}, but from token 1 on they read the "
            "text as different tokens; choose two conversions of one model",
        ),
        (
            ["-f", "{text}", "-c", "16", "--kl-base", "{text}.no"],
            "{text}.no: no such file; a model is a .qlm file, a checkpoint",
        ),
    ],
)
def test_perplexity_that_cannot_be_measured_is_one_line(
    run, tiny_qlm, text, tmp_path, arguments, message
):
    names = {
        "model": tiny_qlm,
        "text": text,
        "wider": write_tiny_qlm(tmp_path / "wider.qlm", vocab_size=274),
        "other": write_tiny_qlm(tmp_path / "other.qlm", add_bos=False),
    }
    result = run("perplexity", str(tiny_qlm), *(word.format(**names) for word in arguments))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"qllama: error: {message.format(**names)}")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def interrupted_after(monkeypatch):
    """Have Ctrl-C come after so many windows."""

    def install(n_windows):
        scored = runner.negative_log_likelihoods
        calls = []

        def score(*arguments):
            calls.append(arguments)
            if len(calls) > n_windows:
                raise KeyboardInterrupt
            return scored(*arguments)

        monkeypatch.setattr(runner, "negative_log_likelihoods", score)

    return install


@pytest.mark.parametrize("output", ["text", "json"])
def test_perplexity_interrupted_prints_what_it_has_and_exits_130(
    run, tiny_qlm, text, interrupted_after, output
):
    interrupted_after(2)
    result = run("perplexity", str(tiny_qlm), "-f", text, "-c", "16", "-o", output)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "qllama: interrupted: read 2 of 3 windows"
    if output == "json":
        assert json.loads(result.stdout)["n_windows"] == 2
    else:
        assert result.stdout == (
            "[1]258.0000,[2]258.0000,\nFinal estimate: PPL = 258.0000 +/- 0.00000\n"
        )


def test_perplexity_interrupted_in_the_first_window_prints_no_figures(
    run, tiny_qlm, text, interrupted_after
):
    interrupted_after(0)
    result = run("perplexity", str(tiny_qlm), "-f", text, "-c", "16")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "qllama: interrupted: read 0 of 3 windows"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def on_terminal(monkeypatch):
    """Make stderr a terminal; in the test itself, as pytest changes it after fixtures."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "120"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def report(progress):
    for estimate in ("[1]9.1000,", "[2]8.2000,"):
        progress.report(estimate)


def test_perplexity_progress_on_a_terminal_keeps_stdout_until_the_bar_is_gone(monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", terminal)
    with PerplexityProgress("reading [x]", 2, prints=True) as progress:
        report(progress)
        progress._bar.refresh()
        shown = terminal.getvalue()
    assert "reading [x] [2]8.2000 " in shown
    assert "2/2" in shown
    assert "[1]9.1000,[2]8.2000," not in shown
    assert terminal.getvalue().endswith("[1]9.1000,[2]8.2000,\n")


@pytest.mark.parametrize(("prints", "expected"), [(True, "[1]9.1000,[2]8.2000,"), (False, "")])
def test_perplexity_progress_beside_a_pipe_prints_at_once(monkeypatch, prints, expected):
    terminal = on_terminal(monkeypatch)
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    with PerplexityProgress("reading", 2, prints=prints) as progress:
        report(progress)
        assert pipe.getvalue() == expected
        progress._bar.refresh()
    assert pipe.getvalue() == (f"{expected}\n" if prints else "")
    assert "reading [2]8.2000 " in terminal.getvalue()
