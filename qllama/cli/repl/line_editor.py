"""The line editor of a session: history, editing keys and completion from prompt_toolkit.

Imported only for an interactive terminal; it takes a tenth of a second to load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style

from qllama.cli.repl.completion import CommandCompleter
from qllama.cli.repl.wording import is_open

if TYPE_CHECKING:
    from qllama.cli.repl.chat import Chat

__all__ = ["line_reader"]

_STYLE = Style.from_dict({"bottom-toolbar": "noreverse ansibrightblack"})


def line_reader(chat: Chat) -> Callable[[str], str]:
    """Return a function that shows a prompt and reads one message.

    It raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C.

    Parameters
    ----------
    chat : Chat
        Says what its status line shows and whether history is kept.
    """
    session: PromptSession[str] = PromptSession(
        history=_SwitchedHistory(_history(), lambda: chat.remembers),
        # When stdout goes to a file, the prompt is drawn on stderr and the file gets answers only.
        output=create_output(always_prefer_tty=True),
        completer=CommandCompleter(),
        complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
        key_bindings=_keys(),
        multiline=True,
        # A line that is too long for the screen goes on without a mark: it is one line.
        prompt_continuation=lambda width, line, is_wrapped: "" if is_wrapped else "... ",
        placeholder=HTML("<ansibrightblack>Send a message (/? for help)</ansibrightblack>"),
        bottom_toolbar=lambda: chat.status(get_app().output.get_size().columns),
        # A pasted tab is drawn as one.
        input_processors=[TabsProcessor(char1=" ", char2=" ")],
        style=_STYLE,
        reserve_space_for_menu=4,
    )
    return session.prompt


def _keys() -> KeyBindings:
    """Enter sends, but for a text whose quotes are open; a pasted newline never does."""
    keys = KeyBindings()

    # What is typed while an answer comes ends in Ctrl-J: nobody has yet told the terminal
    # that Enter is Enter.
    @keys.add("enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-g")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


class _SwitchedHistory(History):
    """Another history, to which nothing is added while it is switched off.

    Parameters
    ----------
    history : History
        The other one.
    is_on : callable
        Whether what is typed now is kept.
    """

    def __init__(self, history: History, is_on: Callable[[], bool]) -> None:
        super().__init__()
        self._history = history
        self._is_on = is_on

    def load_history_strings(self) -> Iterable[str]:
        """Return what was typed before, newest first."""
        return self._history.load_history_strings()

    def store_string(self, string: str) -> None:
        """Keep `string`, where that is wanted."""
        if self._is_on():
            self._history.store_string(string)


def _history() -> History:
    """Return the user's history file, or a history of this session where none can be kept."""
    path = Path(platformdirs.user_data_dir("qllama")) / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
