"""Prints an answer while it is made, and what there is to say about it afterwards."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qllama.cli.interrupts import ctrl_c_cancels
from qllama.cli.progress import PromptProgress, notice
from qllama.cli.statistics import statistics_table

if TYPE_CHECKING:
    from qllama.cli.terminal_text import WordWrap
    from qllama.generation.generator import GenerationOptions
    from qllama.generation.loop import Stream
    from qllama.generation.results import Piece

__all__ = ["PrintedAnswer", "print_answer"]


@dataclass(slots=True)
class PrintedAnswer:
    """What has been printed of an answer; right also after an exception cut it short."""

    text: str = ""
    last_piece: Piece | None = None

    def print(self, stream: Stream, reading: PromptProgress) -> None:
        """Print the pieces of `stream` to stdout as they come; Ctrl-C cancels it.

        What goes to a terminal is broken between words and cannot steer it; all else
        gets the text as it is.

        Parameters
        ----------
        stream : Stream
            The answer, as it is made.
        reading : PromptProgress
            Shown until there is something of the answer.
        """
        wrap = _word_wrap() if sys.stdout.isatty() else None
        try:
            with ctrl_c_cancels(stream):
                for piece in stream:
                    if piece.finish_reason != "cancelled":
                        reading.finish()
                    # Kept before it is shown: an interrupt in between must not lose it.
                    self.text += piece
                    self.last_piece = piece
                    click.echo(piece if wrap is None else wrap.push(piece), nl=False)
        finally:
            if wrap is not None:
                click.echo(wrap.flush(), nl=False)

    def print_remarks(self, options: GenerationOptions, *, verbose: bool) -> None:
        """Say on stderr what the answer does not say itself.

        Parameters
        ----------
        options : GenerationOptions
            What the answer was made with.
        verbose : bool
            Print its timings too.
        """
        last = self.last_piece
        if last is None:
            return
        if last.finish_reason == "length" and options.get("max_tokens") == -1:
            notice("qllama: stopped because the context window is full; -c sets its size")
        timings = last.timings
        if not verbose or timings is None:
            return
        # Of a prompt that was not read to its end, the statistics would be wrong.
        if last.finish_reason != "cancelled" or timings.completion_tokens > 0:
            notice(f"\n{statistics_table(timings)}")


def _word_wrap() -> WordWrap:
    # It brings a part of rich, which pipes do without.
    from qllama.cli.terminal_text import WordWrap

    return WordWrap()


def print_answer(
    stream: Stream, options: GenerationOptions, reading: PromptProgress, *, verbose: bool
) -> None:
    """Print a whole answer and end its line.

    Parameters
    ----------
    stream : Stream
        The answer, as it is made.
    options : GenerationOptions
        What it is made with.
    reading : PromptProgress
        Shown until there is something of the answer.
    verbose : bool
        Print its timings to stderr.

    Raises
    ------
    KeyboardInterrupt
        When Ctrl-C ended it.
    """
    answer = PrintedAnswer()
    try:
        with reading:
            answer.print(stream, reading)
    except BaseException:
        if answer.text:
            click.echo()
        raise
    click.echo()
    answer.print_remarks(options, verbose=verbose)
    if answer.last_piece is not None and answer.last_piece.finish_reason == "cancelled":
        raise KeyboardInterrupt
