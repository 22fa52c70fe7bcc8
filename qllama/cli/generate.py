"""`qllama generate`: continue a text, without any chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qllama.cli.answering import print_answer
from qllama.cli.loading import load_model
from qllama.cli.options import (
    RuntimeOptions,
    debug_option,
    generation_options,
    model_argument,
    runtime_options,
    verbose_option,
)
from qllama.cli.text_input import read_file, read_stdin

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = ["command"]


@click.command(
    "generate",
    short_help="Continue a text.",
    epilog='Example: qllama generate -p "Once upon a time" -n 100 --temp 0',
)
@model_argument
@click.option("-p", "--prompt", metavar="TEXT", help="The text to continue; - reads stdin.")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the text to continue from FILE.",
)
@generation_options
@runtime_options
@verbose_option
@debug_option
def command(
    model: str | None,
    prompt: str | None,
    file: Path | None,
    options: GenerationOptions,
    runtime: RuntimeOptions,
    verbose: bool,
) -> None:
    """Continue the text of -p or -f with MODEL and print the continuation.

    The text is taken as it is, without a chat template; <|im_start|> and its like in
    it are control tokens. Only the continuation goes to stdout.
    """
    if (prompt is None) == (file is None):
        raise click.UsageError("Give the text to continue as -p TEXT, -p - or -f FILE.")
    if file is not None:
        prompt = read_file(file)
    elif prompt == "-":
        prompt = read_stdin()
    assert prompt is not None
    llm = load_model(model, runtime)
    print_answer(llm.generate(prompt, stream=True, **options), options, verbose=verbose)
