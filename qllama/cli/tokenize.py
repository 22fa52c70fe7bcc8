"""`qllama tokenize`: show the tokens that a text becomes."""

from __future__ import annotations

import click

from qllama.cli.loading import model_path
from qllama.cli.options import debug_option
from qllama.cli.text_input import read_stdin

__all__ = ["command"]


@click.command(
    "tokenize",
    short_help="Show the tokens of a text.",
    epilog='Example: qllama tokenize model.qlm "Hello world" --ids',
)
@click.argument("arguments", nargs=-1, metavar="[MODEL] TEXT")
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help="MODEL as an option; the only argument is then TEXT.  "
    "[default: smollm2-135m, fetched on first use]",
)
@click.option("--ids", is_flag=True, help="Print only the ids, as one list.")
@debug_option
def command(arguments: tuple[str, ...], model: str | None, ids: bool) -> None:
    """Print the tokens of TEXT, one a line: its id and the bytes it stands for.

    The last argument is always TEXT, so a single argument is tokenized with -m
    MODEL or with the default model. TEXT - reads stdin. Special tokens that the
    model wants at the beginning are included; those spelled out in TEXT are plain
    text.
    """
    if len(arguments) not in (1, 2):
        raise click.UsageError(f"Expected [MODEL] TEXT, found {len(arguments)} arguments.")
    if len(arguments) == 2 and model is not None:
        raise click.UsageError(f"MODEL is given twice: {arguments[0]!r} and -m {model!r}.")
    text = read_stdin() if arguments[-1] == "-" else arguments[-1]
    from qllama.format.reader import QlmFile
    from qllama.tokenizer import load_tokenizer

    with QlmFile.open(model_path(arguments[0] if len(arguments) == 2 else model)) as file:
        tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
    tokens = tokenizer.encode(text, add_special=True, parse_special=False)
    if ids:
        click.echo(str(tokens))
        return
    for token in tokens:
        special = tokenizer.is_special(token)
        shown = tokenizer.token_text(token) if special else repr(tokenizer.token_bytes(token))
        click.echo(f"{token:6d} -> {shown}")
