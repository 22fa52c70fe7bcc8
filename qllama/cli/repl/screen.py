"""Where a session shows itself: answers on stdout, all else on stderr.

Owns the seam between the session and what draws; `PlainScreen` writes text as it is,
into files, pipes and tests.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import click

from qllama.cli.progress import notice

__all__ = ["PlainReply", "PlainScreen", "Reply", "Screen"]


class Reply(Protocol):
    """One answer on the screen, while its `with` block runs."""

    def __enter__(self) -> Reply: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def write(self, text: str) -> None:
        """Show the next part of the answer."""

    def progress(self, done: int, total: int) -> None:
        """Hear that `done` of `total` tokens of the prompt are evaluated."""


class Screen(Protocol):
    """What a session shows itself on.

    Attributes
    ----------
    wordwrap : bool
        Whether the lines of answers are broken between words, on a terminal.
    """

    wordwrap: bool

    def say(self, text: str) -> None:
        """Show lines that are no answer."""

    def reply(self) -> Reply:
        """Return where the next answer is shown."""


class PlainReply:
    """Passes text on at once, and ends it with an empty line."""

    def __enter__(self) -> PlainReply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        click.echo("\n")

    def write(self, text: str) -> None:
        """Print `text` and no more."""
        click.echo(text, nl=False)

    def progress(self, done: int, total: int) -> None:
        """Show nothing: neither `done` nor `total` belongs to the answer."""


class PlainScreen:
    """Text as it comes."""

    def __init__(self) -> None:
        self.wordwrap = True

    def say(self, text: str) -> None:
        """Print `text` to stderr."""
        notice(text)

    def reply(self) -> Reply:
        """Return what prints an answer to stdout."""
        return PlainReply()
