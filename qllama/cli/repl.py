"""The chat session behind the `>>> ` prompt: messages, commands, interruptions.

Owns the conversation. Reads lines through a function it is given and knows no
terminal, so that tests can play a whole session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from qllama.cli.answering import PrintedAnswer
from qllama.cli.progress import notice
from qllama.errors import QllamaError

if TYPE_CHECKING:
    from qllama.api import Llama
    from qllama.generation.generator import GenerationOptions

__all__ = ["Message", "Repl", "opening_messages"]

Message = dict[str, str]

PROMPT = ">>> "
CONTINUATION = "... "
QUOTES = '"""'

HELP = f"""\
Available Commands:
  /clear          Forget the conversation, but not the system message
  /bye            Leave
  /?, /help       Show this help

Begin and end a message with {QUOTES} to write it on several lines.
Ctrl + c stops an answer, Ctrl + d leaves."""


def opening_messages(system: str | None) -> list[Message]:
    """Return how a conversation begins: with the `system` message, empty or not, if given."""
    return [] if system is None else [{"role": "system", "content": system}]


class Repl:
    """A conversation with a model, line by line.

    Parameters
    ----------
    llm : Llama
        Answers; it keeps the conversation's evaluated tokens between turns.
    read_line : callable
        Given a prompt, returns one line without its end. Raises EOFError when the
        user leaves and KeyboardInterrupt when they press Ctrl-C.
    system : str or None
        System message; it survives `/clear`.
    options : GenerationOptions
        Used for every answer.
    verbose : bool
        Print statistics after each answer.
    """

    def __init__(
        self,
        llm: Llama,
        read_line: Callable[[str], str],
        *,
        system: str | None,
        options: GenerationOptions,
        verbose: bool,
    ) -> None:
        self._llm = llm
        self._read_line = read_line
        self._system = system
        self._options = options
        self._verbose = verbose
        self.messages = opening_messages(system)

    def run(self) -> None:
        """Talk until the user leaves."""
        while True:
            try:
                if self._turn() == "leave":
                    return
            except KeyboardInterrupt:
                click.echo("Use Ctrl + d or /bye to exit.")
            except EOFError:
                return

    def _turn(self) -> str | None:
        """Read one message and answer or obey it."""
        text = self._read_message()
        if not text.strip():
            return None
        if text.startswith("/"):
            return self._obey(text.split()[0])
        self._answer(text)
        return None

    def _read_message(self) -> str:
        """Read one line, or several between triple quotes."""
        line = self._read_line(PROMPT)
        if not line.lstrip().startswith(QUOTES):
            return line.rstrip()
        text = line.lstrip()[len(QUOTES) :]
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + self._read_line(CONTINUATION)
        return text.rstrip()[: -len(QUOTES)].strip("\n")

    def _obey(self, command: str) -> str | None:
        if command == "/bye":
            return "leave"
        if command == "/clear":
            self.messages = opening_messages(self._system)
            click.echo("Cleared the conversation.")
        elif command in ("/?", "/help"):
            click.echo(HELP)
        else:
            click.echo(f"Unknown command '{command}'. Type /? for help")
        return None

    def _answer(self, text: str) -> None:
        """Answer `text`; what was said before a Ctrl-C or an error stays said."""
        question: Message = {"role": "user", "content": text}
        answer = PrintedAnswer()
        try:
            answer.print(self._llm.chat([*self.messages, question], stream=True, **self._options))
        except KeyboardInterrupt:
            pass
        except QllamaError as error:
            notice(f"qllama: error: {error}")
        # A question without any answer would leave two user messages in a row, which
        # many chat templates refuse.
        if answer.text:
            self.messages += [question, {"role": "assistant", "content": answer.text}]
        click.echo("\n")
        answer.print_remarks(self._options, verbose=self._verbose)
