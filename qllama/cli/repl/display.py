"""Answers on a terminal: markdown drawn while it comes, or plain text between its edges.

Owns what is drawn and how often. Loaded only for a session on a terminal.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from types import TracebackType

import click
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

from qllama.cli.keyboard import keys_not_echoed
from qllama.cli.repl.markdown import blocks, finished_blocks, rendered
from qllama.cli.repl.screen import PlainScreen, Reply, Screen
from qllama.cli.terminal_text import WordWrap, harmless

__all__ = ["choose_screen"]

# Drawing takes time from the model: at most a tenth, and not more often than eyes follow.
_LEAST_SECONDS = 0.05
_DRAWING_SHARE = 0.1
# A prompt that is read sooner needs no telling.
_PATIENCE_SECONDS = 0.5
# rich's are for terminals with a dark background.
_THEME = Theme({"markdown.code": "bold cyan", "markdown.code_block": "none"})


def choose_screen(*, plain: bool) -> Screen:
    """Return what suits where stdout goes.

    Parameters
    ----------
    plain : bool
        Draw no markdown, on a terminal either.
    """
    if not sys.stdout.isatty():
        return PlainScreen()
    if plain or os.environ.get("TERM") == "dumb":
        return WrappedScreen()
    return MarkdownScreen(Console(theme=_THEME))


class WrappedScreen(PlainScreen):
    """Text as it comes, but words are never torn at the right edge."""

    def reply(self) -> Reply:
        """Return what prints an answer to stdout."""
        return WrappedReply(wordwrap=self.wordwrap)


class WrappedReply:
    """An answer in words; ends with an empty line.

    Parameters
    ----------
    wordwrap : bool
        False leaves its lines as long as they are.
    """

    def __init__(self, *, wordwrap: bool) -> None:
        self._wrap = WordWrap() if wordwrap else None
        self._open = ExitStack()

    def __enter__(self) -> WrappedReply:
        self._open.enter_context(keys_not_echoed())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            click.echo(("" if self._wrap is None else self._wrap.flush()) + "\n")

    def write(self, text: str) -> None:
        """Print the words of `text` that are whole."""
        click.echo(harmless(text) if self._wrap is None else self._wrap.push(text), nl=False)

    def progress(self, done: int, total: int) -> None:
        """Show nothing: `done` of `total` tokens could not be wiped away again."""


class MarkdownScreen(WrappedScreen):
    """Markdown, drawn while it comes.

    Parameters
    ----------
    console : Console
        Of stdout.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def reply(self) -> Reply:
        """Return what draws an answer; without word wrap, its text is printed as it is."""
        return MarkdownReply(self._console) if self.wordwrap else super().reply()


class MarkdownReply:
    """An answer whose last block is drawn again as it grows; those before it stay.

    Parameters
    ----------
    console : Console
        Of a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._open = ExitStack()
        self._text = ""
        self._n_blocks = 0
        self._next_drawing = 0.0
        self._started = 0.0

    def __enter__(self) -> MarkdownReply:
        self._open.enter_context(keys_not_echoed())
        self._live.start()
        self._started = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            self._live.stop()
            self._keep(blocks(self._text))
            self._console.print()

    def write(self, text: str) -> None:
        """Draw the answer with `text` at its end, now or soon."""
        self._text += harmless(text)
        started = time.monotonic()
        if started < self._next_drawing:
            return
        finished, self._text = finished_blocks(self._text)
        if finished:
            self._live.update(Text())
            self._keep(finished)
        self._draw(rendered(self._text))
        took = time.monotonic() - started
        self._next_drawing = started + max(_LEAST_SECONDS, took / _DRAWING_SHARE)

    def progress(self, done: int, total: int) -> None:
        """Say how far the prompt is read: `done` of `total` tokens."""
        if time.monotonic() - self._started > _PATIENCE_SECONDS:
            status = Text(f"reading the prompt: {done} of {total} tokens", "dim")
            self._draw(Group(rendered(self._text), status) if self._text else status)

    def _draw(self, content: RenderableType) -> None:
        self._live.update(_Lines(content, self._console.height - 2), refresh=True)

    def _keep(self, finished: list[str]) -> None:
        """Print blocks for good, with an empty line between two."""
        for block in finished:
            if self._n_blocks:
                self._console.print()
            self._n_blocks += 1
            self._console.print(_Lines(rendered(block)))


class _Lines:
    """What something draws, without the blanks around it.

    Parameters
    ----------
    content : renderable
    most : int, optional
        Only so many of its last lines, at least one.
    """

    def __init__(self, content: RenderableType, most: int | None = None) -> None:
        self._content = content
        self._most = most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [*map(_trimmed, console.render_lines(self._content, options, pad=False))]
        while lines and not lines[0]:
            del lines[0]
        while lines and not lines[-1]:
            del lines[-1]
        for line in lines if self._most is None else lines[-max(1, self._most) :]:
            yield from line
            yield Segment.line()


def _trimmed(line: list[Segment]) -> list[Segment]:
    """Return a line without the spaces that fill it up, which copying would take along."""
    line = line.copy()
    while line:
        text, style, _ = line.pop()
        if style is not None and style.bgcolor is not None:
            return [*line, Segment(text, style)]
        if text.rstrip():
            return [*line, Segment(text.rstrip(), style)]
    return []
