"""`qllama chat` on a real pseudo-terminal, with a scripted model behind it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")

SCRIPT = Path(__file__).with_name("fake_llama.py")
# Its trailing space is drawn by moving the cursor.
PROMPT = ">>>"
CTRL_C = "\x03"
CTRL_D = "\x04"
UP = "\x1b[A"


@pytest.fixture
def chat(isolated_home: Path) -> Iterator[pexpect.spawn]:
    """A chat session that waits at its first prompt."""
    # prompt_toolkit asks a terminal where its cursor is, and pexpect does not answer.
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1"}
    session = pexpect.spawn(
        sys.executable, [str(SCRIPT)], env=environment, encoding="utf-8", timeout=60
    )
    session.expect_exact(PROMPT)
    yield session
    session.close(force=True)


def leave(session: pexpect.spawn, keys: str) -> None:
    session.send(keys)
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0


def test_terminal_answer_streams_and_the_prompt_returns(chat):
    chat.send("hello\r")
    chat.expect_exact("You said: hello [user]")
    chat.expect_exact(PROMPT)
    chat.send("again\r")
    chat.expect_exact("You said: again [user assistant user]")
    chat.expect_exact(PROMPT)
    leave(chat, "/bye\r")


def test_terminal_ctrl_c_stops_the_answer_and_keeps_the_session(chat):
    chat.send("count\r")
    chat.expect_exact("3 4 5 ")
    chat.send(CTRL_C)
    chat.expect_exact(PROMPT)
    assert "999" not in chat.before
    chat.send("hello\r")
    chat.expect_exact("You said: hello [user assistant user]")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_D)


def test_terminal_ctrl_c_when_idle_tells_how_to_leave(chat):
    chat.send(CTRL_C)
    chat.expect_exact("Use Ctrl + d or /bye to exit.")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_D)


def test_terminal_error_leaves_the_session_usable(chat):
    chat.send("fail\r")
    chat.expect_exact("error: no more")
    chat.expect_exact(PROMPT)
    leave(chat, "/bye\r")


def test_terminal_clear_forgets_and_unknown_command_is_named(chat):
    chat.send("one\r")
    chat.expect_exact("[user]")
    chat.expect_exact(PROMPT)
    chat.send("/clear\r")
    chat.expect_exact("Cleared session context")
    chat.expect_exact(PROMPT)
    chat.send("two\r")
    chat.expect_exact("You said: two [user]")
    chat.expect_exact(PROMPT)
    chat.send("/nonsense\r")
    chat.expect_exact("Unknown command '/nonsense'.")
    leave(chat, CTRL_D)


def test_terminal_triple_quotes_continue_on_the_next_line(chat):
    chat.send('"""first\r')
    chat.expect_exact("...")
    chat.send('second"""\r')
    chat.expect("You said: first\r\nsecond")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_D)


def test_terminal_history_is_kept_in_the_users_data_directory(chat, isolated_home):
    chat.send("remember me\r")
    chat.expect_exact("You said: remember me [user]")
    chat.expect_exact(PROMPT)
    chat.send(UP + "\r")
    chat.expect_exact("You said: remember me [user assistant user]")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_D)
    histories = list(isolated_home.rglob("history"))
    assert len(histories) == 1
    assert "remember me" in histories[0].read_text(encoding="utf-8")


def test_terminal_pasted_lines_are_one_message_that_enter_sends(chat):
    chat.send("\x1b[200~first\rsecond\r\x1b[201~")
    chat.expect_exact("second")
    chat.send("third\r")
    chat.expect("You said: first\r\nsecond\r\nthird \\[user\\]")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_D)


def test_terminal_what_is_typed_while_a_model_loads_stands_at_the_prompt_only(chat):
    chat.send("/load slow\r")
    chat.expect_exact("Loading model 'slow'")
    chat.send("typed ahead\r")
    chat.expect_exact(PROMPT)
    assert "typed" not in chat.before
    chat.expect_exact("You said: typed ahead [user]")
    leave(chat, CTRL_D)


def test_terminal_pasted_tab_is_drawn_as_spaces(chat):
    chat.send("\x1b[200~if x:\r\ty()\x1b[201~\r")
    chat.expect_exact("You said: if x:")
    assert "^I" not in chat.before
    leave(chat, CTRL_D)


def test_terminal_line_feed_sends_too(chat):
    # What was typed while nobody read it ends so.
    chat.send("hello\n")
    chat.expect_exact("You said: hello [user]")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_D)


def test_terminal_alt_enter_begins_a_new_line(chat):
    chat.send("first\x1b\rsecond\r")
    chat.expect("You said: first\r\nsecond")
    chat.expect_exact(PROMPT)
    leave(chat, CTRL_D)


@pytest.mark.parametrize("plain", [["--plain"], []])
def test_terminal_one_answer_is_broken_between_words(isolated_home, plain):
    environment = {**os.environ, "COLUMNS": "20"}
    command = [str(SCRIPT), "-p", "hello out there", *plain]
    session = pexpect.spawn(sys.executable, command, env=environment, encoding="utf-8", timeout=60)
    session.expect_exact("You said: hello out\r\nthere [user]\r\n")
    session.expect(pexpect.EOF)


@pytest.mark.parametrize("where", ["at the prompt", "in an answer"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_terminal_ended_by_a_signal_is_put_back(chat, where, name):
    if where == "in an answer":
        chat.send("count\r")
        chat.expect_exact("3 4 5 ")
    else:  # where it answers to keys: it is still beginning when it is drawn
        chat.send("half")
        chat.expect_exact("half")
    number = getattr(signal, name)
    chat.kill(number)
    chat.expect(pexpect.EOF)
    assert "Traceback" not in chat.before
    assert chat.getecho()
    chat.close()
    assert chat.exitstatus == 128 + number
