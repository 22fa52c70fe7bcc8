"""Reads what the user types and has it obeyed or answered, until they leave.

Reads lines through a function it is given, so that tests can play a session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qllama.cli.repl.commands import Leave, find_command, obey
from qllama.cli.repl.wording import is_open, unquoted

if TYPE_CHECKING:
    from qllama.cli.repl.chat import Chat

__all__ = ["CONTINUATION", "PROMPT", "talk"]

PROMPT = ">>> "
CONTINUATION = "... "


def talk(chat: Chat, read_line: Callable[[str], str]) -> None:
    """Talk until the user leaves.

    Parameters
    ----------
    chat : Chat
        Answers and obeys.
    read_line : callable
        Given a prompt, returns what was typed, which may be several lines. Raises EOFError
        when the user leaves and KeyboardInterrupt when they press Ctrl-C.
    """
    while True:
        try:
            text = _read_message(read_line)
        except KeyboardInterrupt:
            chat.screen.say("Use Ctrl + d or /bye to exit.")
            continue
        except EOFError:
            return
        try:
            if _is_command(text):
                obey(chat, text)
            elif (message := unquoted(text)).strip():
                chat.ask(message)
        except KeyboardInterrupt:
            chat.screen.say("Interrupted.")
        except Leave:
            return


def _read_message(read_line: Callable[[str], str]) -> str:
    """Read one line, or several between triple quotes."""
    text = read_line(PROMPT)
    while is_open(text):
        text += "\n" + read_line(CONTINUATION)
    return text


def _is_command(text: str) -> bool:
    """Whether `text` is meant for the session: several pasted lines may begin with a path."""
    if not text.startswith("/"):
        return False
    is_one_line = "\n" not in text.strip()
    return is_one_line or find_command(text.split(maxsplit=1)[0]) is not None
