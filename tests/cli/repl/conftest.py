"""A way to play a session: typed lines in, what was shown out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from fake_llama import FakeLlama

from qllama.cli.repl.chat import Chat, OpenedModel
from qllama.cli.repl.loop import talk
from qllama.cli.repl.screen import PlainScreen


class Played(NamedTuple):
    """What a session showed, and what remains of it."""

    shown: str
    """Stdout and stderr as a terminal mixes them, typed lines among them."""
    answers: str
    """Stdout alone."""
    chat: Chat
    messages: list[dict[str, str]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Played]:
    """Type the given lines (or raise the given keys), then Ctrl-D."""
    shown: list[str] = []
    answers: list[str] = []

    def echo(text: str = "", nl: bool = True, err: bool = False) -> None:
        line = text + "\n" * nl
        shown.append(line)
        if not err:
            answers.append(line)

    def session(
        llm: FakeLlama,
        *keys: str | BaseException,
        system: str | None = None,
        verbose: bool = False,
        on_overflow: str = "shift",
        open_model: Any = None,
        **options: Any,
    ) -> Played:
        monkeypatch.setattr("click.echo", echo)
        typed = iter([*keys, EOFError()])

        def read_line(prompt: str) -> str:
            key = next(typed)
            echo(prompt, nl=False, err=True)
            if isinstance(key, BaseException):
                raise key
            echo(key, err=True)
            return key

        options = {"max_tokens": -1, "seed": 1, **options}
        opened = OpenedModel("fake", llm, system, options)
        chat = Chat(opened, open_model, PlainScreen(), on_overflow=on_overflow, verbose=verbose)
        talk(chat, read_line)
        return Played("".join(shown), "".join(answers), chat, chat.conversation.messages())

    return session
