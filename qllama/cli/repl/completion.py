"""Completes slash commands, their arguments, and paths where a file is wanted."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from qllama.cli.completion import model_names
from qllama.cli.repl.commands import COMMANDS, find_command

__all__ = ["CommandCompleter"]


class CommandCompleter(Completer):
    """Completes what begins with a slash; a message is the user's own business."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what may stand at the cursor.

        Parameters
        ----------
        document : Document
            What is typed, and where the cursor is.
        complete_event : CompleteEvent
            How completion was asked for.
        """
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, separator, argument = text.partition(" ")
        if not separator:
            for command in COMMANDS:
                for known in command.names:
                    if known.startswith(name):
                        yield Completion(known, -len(name), display_meta=command.help)
            return
        found = find_command(name)
        if found is None:
            return
        if found.takes_model:
            for known in model_names():
                if known.startswith(argument):
                    yield Completion(known, -len(argument))
        if found.takes_file or found.takes_model:
            yield from self._paths.get_completions(Document(argument), complete_event)
            return
        *before, word = argument.split(" ")
        for known in found.completions(before):
            if known.startswith(word):
                yield Completion(known, -len(word))
