"""An answer as one JSON object, for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from qllama.cli.interrupts import ctrl_c_cancels
from qllama.cli.progress import PromptProgress, notice
from qllama.cli.statistics import statistics_table

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions
    from qllama.generation.loop import Stream

__all__ = ["print_json"]


def print_json(
    stream: Stream, options: GenerationOptions, reading: PromptProgress, *, verbose: bool
) -> None:
    """Print a whole answer as one line of JSON once it has ended; nothing when it fails.

    Parameters
    ----------
    stream : Stream
        The answer, as it is made.
    options : GenerationOptions
        What it is made with; the object says all that there is to remark.
    reading : PromptProgress
        Shown until there is something of the answer.
    verbose : bool
        Print its timings to stderr too.

    Raises
    ------
    KeyboardInterrupt
        When Ctrl-C ended it, after what there is has been printed as `cancelled`.
    """
    pieces = []
    with ctrl_c_cancels(stream), reading:
        for piece in stream:
            if piece.finish_reason != "cancelled":
                reading.finish()
            pieces.append(piece)
    timings = stream.timings
    answer = {
        "text": "".join(pieces),
        "finish_reason": stream.finish_reason,
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "guessed_tokens": timings.guessed_tokens,
        "accepted_tokens": timings.accepted_tokens,
        "seed": stream.seed,
        "timings": {
            "load_seconds": timings.load_seconds,
            "prompt_seconds": timings.prompt_seconds,
            "completion_seconds": timings.completion_seconds,
            "total_seconds": timings.total_seconds,
            "prompt_tokens_per_second": timings.prompt_rate,
            "completion_tokens_per_second": timings.completion_rate,
        },
    }
    # In ASCII, which every encoding of stdout has.
    click.echo(json.dumps(answer))
    if verbose:
        notice(f"\n{statistics_table(timings)}")
    if stream.finish_reason == "cancelled":
        raise KeyboardInterrupt
