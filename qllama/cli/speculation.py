"""Options of speculative decoding, spelled as llama.cpp spells them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qllama.cli.completion import complete_model
from qllama.cli.runtime import RuntimeOptions

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = ["speculation_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

# As many as `qllama.generation.expectation`, whose package would bring numpy, takes at most.
_MOST_GUESSES = 15


def speculation_options(command: _Command) -> _Command:
    """Give `command` -md and --draft-max; its `runtime` and `options` hold them.

    Stands below `generation_options` and `runtime_options`.
    """

    @click.option(
        "-md",
        "--model-draft",
        metavar="MODEL",
        shell_complete=complete_model,
        help="Have a smaller model of the same vocabulary guess.  [default: look up the text]",
    )
    @click.option(
        "--draft-max",
        "--draft",
        "--draft-n",
        "draft_max",
        type=click.IntRange(min=0),
        default=_MOST_GUESSES,
        show_default=True,
        metavar="N",
        help="Most tokens to guess and verify in one step; 0 is none. Answers are the same, "
        "those that repeat their prompt come faster.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        model_draft: str | None,
        draft_max: int,
        options: GenerationOptions,
        runtime: RuntimeOptions,
        **kwargs: Any,
    ) -> Any:
        options["draft_max"] = draft_max
        runtime = replace(runtime, draft_model=model_draft)
        return command(*args, options=options, runtime=runtime, **kwargs)

    return wrapper  # type: ignore[return-value]
