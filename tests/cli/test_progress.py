"""Progress on stderr: bars on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest

from qllama.cli.progress import ProgressReport, PromptProgress, notice

NEVER = 1e6


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def report_two_stages():
    with ProgressReport(patience=NEVER) as progress:
        progress.show()
        for done in range(3):
            progress.report("fetching [a]", done, 2)
        progress.report("converting", 1, 0)


def test_progress_without_a_terminal_is_one_line_a_stage(capsys):
    report_two_stages()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "qllama: fetching [a]\nqllama: converting\n")


@pytest.fixture
def terminal(monkeypatch):
    """Make stderr a terminal; called in the test, since pytest sets stderr before that."""

    def connect(term="xterm", **environment):
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in ({"TERM": term} | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return connect


def test_progress_on_a_dumb_terminal_is_one_line_a_stage(terminal):
    stderr = terminal(term="dumb")
    report_two_stages()
    assert stderr.getvalue() == "qllama: fetching [a]\nqllama: converting\n"


def test_progress_on_a_terminal_draws_bars(terminal):
    stderr = terminal()
    report_two_stages()
    assert "fetching [a]" in stderr.getvalue()
    assert "100%" in stderr.getvalue()


def test_progress_on_a_terminal_uses_colour_unless_told_not_to(terminal):
    coloured = terminal()
    report_two_stages()
    plain = terminal(NO_COLOR="1")
    report_two_stages()
    assert "\x1b[3" in coloured.getvalue()
    assert "\x1b[3" not in plain.getvalue()


def test_notice_is_broken_between_words_on_a_terminal_only(terminal, capsys):
    notice("one two three")
    assert capsys.readouterr().err == "one two three\n"
    stderr = terminal(COLUMNS="8")
    notice("one two three")
    assert stderr.getvalue() == "one two\nthree\n"


def test_progress_of_a_prompt_is_complete_when_the_answer_begins(terminal):
    stderr = terminal(COLUMNS="100")
    with PromptProgress() as reading:
        reading.show()
        reading.read(512, 700)
        reading.finish()
        assert re.findall(r"\d+%", stderr.getvalue())[-1] == "100%"
        n_drawn = len(stderr.getvalue())
        reading.finish()
        assert len(stderr.getvalue()) == n_drawn


def test_progress_of_a_prompt_that_is_not_reported_is_none(terminal):
    stderr = terminal()
    with PromptProgress() as reading:
        reading.show()
        reading.finish()
    assert stderr.getvalue() == ""


def test_progress_without_reports_prints_nothing(terminal):
    stderr = terminal()
    with ProgressReport(patience=0) as progress:
        progress.show()
    assert stderr.getvalue() == ""


def test_progress_of_quick_work_is_not_shown(capsys):
    with ProgressReport(patience=NEVER) as progress:
        progress.report("loading", 1, 2)
    assert capsys.readouterr().err == ""


@pytest.fixture
def timer_calls(monkeypatch):
    """What timers would call if they were up; cancelling them comes too late."""

    class Timer:
        def __init__(self, seconds, function):
            self.start = lambda: calls.append(function)
            self.cancel = lambda: None

    calls = []
    monkeypatch.setattr("threading.Timer", Timer)
    return calls


def test_progress_of_slow_work_is_shown_without_a_further_report(timer_calls, capsys):
    with ProgressReport() as progress:
        progress.report("compiling", 0, 2)
        assert capsys.readouterr().err == ""
        timer_calls[0]()
        assert capsys.readouterr().err == "qllama: compiling\n"


def test_progress_timer_that_is_up_after_the_work_shows_nothing(timer_calls, terminal):
    stderr = terminal()
    with ProgressReport() as progress:
        progress.report("compiling", 0, 2)
    timer_calls[0]()
    progress.report("compiling", 1, 2)
    assert stderr.getvalue() == ""
