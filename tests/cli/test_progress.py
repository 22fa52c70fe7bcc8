"""Progress on stderr: bars on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from qllama.cli.progress import ProgressReport


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def report_two_stages():
    with ProgressReport() as progress:
        for done in range(3):
            progress.report("fetching [a]", done, 2)
        progress.report("converting", 1, 0)


def test_progress_without_a_terminal_is_one_line_a_stage(capsys):
    report_two_stages()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "qllama: fetching [a]\nqllama: converting\n")


def test_progress_on_a_dumb_terminal_is_one_line_a_stage(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", Terminal())
    report_two_stages()
    assert sys.stderr.getvalue() == "qllama: fetching [a]\nqllama: converting\n"


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_progress_on_a_terminal_draws_bars(terminal):
    report_two_stages()
    assert "fetching [a]" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_progress_on_a_terminal_without_colour_uses_none(terminal, monkeypatch):
    report_two_stages()
    assert "\x1b[38;5" in terminal.getvalue() or "\x1b[3" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    report_two_stages()
    assert "\x1b[3" not in sys.stderr.getvalue()


def test_progress_without_reports_prints_nothing(terminal):
    with ProgressReport():
        pass
    assert terminal.getvalue() == ""
