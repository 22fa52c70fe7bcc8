"""The line editor of `qllama chat`: history and editing keys from prompt_toolkit.

Imported only for an interactive terminal; it takes a tenth of a second to load.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import create_output

__all__ = ["line_reader"]


def _history() -> History:
    """Return the user's history file, or a history of this session where none can be kept."""
    path = Path(platformdirs.user_data_dir("qllama")) / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def line_reader() -> Callable[[str], str]:
    """Return a function that shows a prompt and reads one line.

    It raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C.
    """
    # When stdout goes to a file, the prompt is drawn on stderr and the file gets answers only.
    session: PromptSession[str] = PromptSession(
        history=_history(), output=create_output(always_prefer_tty=True)
    )

    def read_line(prompt: str) -> str:
        return session.prompt(prompt)

    return read_line
