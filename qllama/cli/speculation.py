"""Options of speculative decoding, spelled as llama.cpp spells them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = ["speculation_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

# As many as `qllama.generation.speculation`, which would bring numpy, takes at most.
_MOST_GUESSES = 15


def speculation_options(command: _Command) -> _Command:
    """Give `command` --draft-max; its `options` say so. Stands below `generation_options`."""

    @click.option(
        "--draft-max",
        "--draft",
        "--draft-n",
        "draft_max",
        type=click.IntRange(min=0),
        default=_MOST_GUESSES,
        show_default=True,
        metavar="N",
        help="Most tokens to guess from the text so far and verify in one step; 0 is none. "
        "Answers are the same, those that repeat their prompt come faster.",
    )
    @functools.wraps(command)
    def wrapper(*args: Any, draft_max: int, options: GenerationOptions, **kwargs: Any) -> Any:
        options["draft_max"] = draft_max
        return command(*args, options=options, **kwargs)

    return wrapper  # type: ignore[return-value]
