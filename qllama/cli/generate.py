"""`qllama generate`: continue a text, without any chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qllama.cli.answering import print_answer
from qllama.cli.form import form_options
from qllama.cli.json_answer import print_json
from qllama.cli.loading import load_model
from qllama.cli.options import (
    debug_option,
    file_option,
    generation_options,
    json_option,
    model_argument,
    verbose_option,
)
from qllama.cli.progress import PromptProgress
from qllama.cli.runtime import RuntimeOptions, runtime_options
from qllama.cli.sections import SectionedCommand
from qllama.cli.speculation import speculation_options
from qllama.cli.text_input import read_prompt

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = ["command"]


@click.command(
    "generate",
    cls=SectionedCommand,
    short_help="Continue a text.",
    epilog="""\b
Examples:
  qllama generate -p "Once upon a time" -n 100 --temp 0
  qllama generate -p - --json < story.txt
""",
)
@model_argument
@click.option("-p", "--prompt", metavar="TEXT", help="The text to continue; - reads stdin.")
@file_option
@generation_options
@form_options
@runtime_options
@speculation_options
@json_option
@verbose_option
@debug_option
def command(
    model: str | None,
    prompt: str | None,
    file: Path | None,
    options: GenerationOptions,
    runtime: RuntimeOptions,
    as_json: bool,
    verbose: bool,
) -> None:
    """Continue the text of -p or -f, or piped in, with MODEL and print the continuation.

    The text is taken as it is, without a chat template; <|im_start|> and its like in
    it are control tokens. Of a file or pipe, a line end at the very end is left out.
    Only the continuation goes to stdout.
    """
    text = None if prompt is not None and file is not None else read_prompt(prompt, file)
    if text is None:
        raise click.UsageError(
            "Give the text to continue as -p TEXT, -p - or -f FILE, or pipe it in."
        )
    if not text:
        raise click.UsageError("The text is empty: give -p TEXT, -f FILE or pipe text in.")
    llm = load_model(model, runtime)
    reading = PromptProgress()
    options = {**options, "on_progress": reading.read}
    stream = llm.generate(text, stream=True, **options)
    (print_json if as_json else print_answer)(stream, options, reading, verbose=verbose)
