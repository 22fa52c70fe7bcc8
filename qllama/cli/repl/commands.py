"""The slash commands: what each is called, what it takes, what it does.

Owns the table, and what `/?` and completion make of it. What `/set` and `/show` do is in
modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qllama.cli.keyboard import keys_not_echoed
from qllama.cli.list import models_table
from qllama.cli.repl import setting, showing
from qllama.cli.repl.parameters import PARAMETERS
from qllama.cli.repl.session_file import restore_session, save_session
from qllama.cli.repl.wording import counted, shortened, table, unknown
from qllama.cli.text_input import read_file
from qllama.errors import QllamaError
from qllama.hub.installed import cached_models

if TYPE_CHECKING:
    from qllama.cli.repl.chat import Chat

__all__ = ["COMMANDS", "Command", "Leave", "find_command", "obey"]


class Leave(Exception):
    """Ends the session."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Parameters
    ----------
    names : tuple of str
        The first is the one that help shows, with the others after it.
    arguments : str
        As help shows them; where it begins with `<`, they must be given.
    help : str
        What it does, in a few words.
    run : callable
        Given the chat and the text after the name.
    words : dict of str to tuple of str
        What may come next, and after that, for completion.
    takes_file, takes_model : bool
        Whether its argument is the path of a file, or a model's name or path.
    """

    names: tuple[str, ...]
    arguments: str
    help: str
    run: Callable[[Chat, str], None]
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    takes_file: bool = False
    takes_model: bool = False

    @property
    def usage(self) -> str:
        """Names and arguments, as help shows them."""
        return ", ".join(self.names) + (f" {self.arguments}" if self.arguments else "")

    def completions(self, before: Sequence[str]) -> Iterable[str]:
        """Return what may come after the words that stand `before` the cursor."""
        if not before:
            return self.words
        return self.words.get(before[0], ()) if len(before) == 1 else ()


def obey(chat: Chat, line: str) -> None:
    """Do what a `line` says that begins with a slash.

    Parameters
    ----------
    chat : Chat
        What it is said to.
    line : str
        The command and its arguments.

    Raises
    ------
    Leave
        When it is `/bye`.
    """
    name, argument = (*line.split(maxsplit=1), "")[:2]
    command = find_command(name)
    if command is None:
        chat.screen.say(unknown(name, (name for c in COMMANDS for name in c.names)))
    elif command.arguments.startswith("<") and not argument.strip():
        chat.screen.say(f"Usage:\n  {command.names[0]} {command.arguments}")
    else:
        try:
            command.run(chat, argument.strip())
        except (QllamaError, ValueError, OSError, click.ClickException) as error:
            chat.screen.say(f"error: {_reason(error)}")


def find_command(name: str) -> Command | None:
    """Return the command `name`, slash included; None when there is none."""
    return next((command for command in COMMANDS if name in command.names), None)


def _reason(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


SHORTCUTS = (
    ("Ctrl + a", "Move to the beginning of the line (Home)"),
    ("Ctrl + e", "Move to the end of the line (End)"),
    (" Alt + b", "Move back (left) one word"),
    (" Alt + f", "Move forward (right) one word"),
    ("Ctrl + k", "Delete the sentence after the cursor"),
    ("Ctrl + u", "Delete the sentence before the cursor"),
    ("Ctrl + w", "Delete the word before the cursor"),
    ("", ""),
    ("Ctrl + l", "Clear the screen"),
    ("Ctrl + r", "Search what was typed before"),
    ("Ctrl + g", "Open default editor to compose a prompt"),
    (" Alt + Enter", "Begin a new line without sending"),
    ("Ctrl + c", "Stop the model from responding"),
    ("Ctrl + d", "Exit (/bye)"),
)


def _help(chat: Chat, topic: str) -> None:
    topic = topic.removeprefix("/")
    if topic in ("shortcut", "shortcuts"):
        chat.screen.say(f"Available keyboard shortcuts:\n{table(SHORTCUTS)}\n")
    elif topic == "set":
        chat.screen.say(setting.usage())
    elif topic == "show":
        chat.screen.say(showing.usage())
    elif topic and (command := find_command(f"/{topic}")):
        chat.screen.say(table([(command.usage, command.help)]))
    else:
        rows = [(command.usage, command.help) for command in COMMANDS]
        rows.append(("/? shortcuts", "Help for keyboard shortcuts"))
        chat.screen.say(
            f'Available Commands:\n{table(rows)}\n\nUse """ to begin a multi-line message.\n'
        )


def _load(chat: Chat, name: str) -> None:
    chat.screen.say(f"Loading model '{name}'")
    with keys_not_echoed():
        chat.load(name)


def _list(chat: Chat, _: str) -> None:
    models = cached_models()
    chat.screen.say(models_table(models) if models else "There are no models in the cache.")


def _save(chat: Chat, name: str) -> None:
    path = Path(name).expanduser()
    n_bytes = save_session(path, chat.conversation, chat.options, chat.llm, chat.name)
    chat.screen.say(
        f"Saved the session to '{name}' ({counted(len(chat.conversation.turns), 'turn')}, "
        f"{n_bytes / 1e6:.1f} MB)"
    )


def _restore(chat: Chat, name: str) -> None:
    conversation, options = restore_session(Path(name).expanduser(), chat.llm)
    chat.resume(conversation)
    chat.options = {**chat.options, **options}
    turns = conversation.turns
    said = f"Restored the session from '{name}' ({counted(len(turns), 'turn')}, "
    said += f"{counted(chat.n_used, 'token')})"
    if turns:
        said += f"; you last asked {shortened(turns[-1].question)!r}"
    chat.screen.say(said)


def _clear(chat: Chat, _: str) -> None:
    chat.clear()
    chat.screen.say("Cleared session context")


def _undo(chat: Chat, _: str) -> None:
    question = chat.undo()
    if question is None:
        chat.screen.say("There is nothing to take back.")
    else:
        chat.screen.say(f"Took back {shortened(question)!r}")


def _regenerate(chat: Chat, _: str) -> None:
    turns = chat.conversation.turns
    if turns:
        chat.ask_instead(turns[-1].question)
    else:
        chat.screen.say("There is no answer to make again.")


def _edit(chat: Chat, _: str) -> None:
    turns = chat.conversation.turns
    text = click.edit(turns[-1].question if turns else "", extension=".md")
    if text is None or not text.strip():
        chat.screen.say("Nothing was saved in the editor; nothing is sent.")
        return
    chat.ask_instead(text.strip("\n"))


def _read(chat: Chat, name: str) -> None:
    text = read_file(Path(name).expanduser())
    chat.attached += text.rstrip("\n") + "\n\n"
    n_tokens = len(chat.llm.tokenize(text, add_bos=False))
    chat.screen.say(
        f"Loaded text from '{name}' ({counted(n_tokens, 'token')}); it goes with your next message."
    )


def _tokens(chat: Chat, text: str) -> None:
    ids = chat.llm.tokenize(text, add_bos=False)
    pieces = [chat.llm.detokenize([token], special=True) for token in ids]
    lines = [f"  {token:>6}  {piece!r}" for token, piece in zip(ids, pieces, strict=True)]
    chat.screen.say("\n".join([counted(len(ids), "token"), *lines]))


def _leave(_chat: Chat, _: str) -> None:
    raise Leave


_SET_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(setting.VARIABLES, ()),
    "parameter": tuple(p.name for p in PARAMETERS),
    "format": ("json",),
}
_SHOW_WORDS = dict.fromkeys(showing.TOPICS, ())
_HELP_WORDS = dict.fromkeys(("set", "show", "shortcuts"), ())

COMMANDS = (
    Command(("/set",), "...", "Set session variables", setting.set_variable, _SET_WORDS),
    Command(("/show",), "...", "Show model information", showing.show, _SHOW_WORDS),
    Command(("/load",), "<model>", "Load another model and begin anew", _load, takes_model=True),
    Command(("/list",), "", "List the models in the cache", _list),
    Command(("/save",), "<file>", "Save the session and its KV cache", _save, takes_file=True),
    Command(("/restore",), "<file>", "Go on with a saved session", _restore, takes_file=True),
    Command(("/clear",), "", "Clear session context, but not the system message", _clear),
    Command(("/undo",), "", "Take the last question and its answer back", _undo),
    Command(("/regen",), "", "Answer the last question again", _regenerate),
    Command(("/edit",), "", "Edit the last question in $EDITOR and ask it anew", _edit),
    Command(("/read",), "<file>", "Put a file before the next message", _read, takes_file=True),
    Command(("/tokens",), "<text>", "Show the tokens of a text", _tokens),
    Command(("/bye", "/exit"), "", "Exit", _leave),
    Command(("/?", "/help"), "", "Help for a command", _help, _HELP_WORDS),
)
