"""`qllama embed`: texts as vectors."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from qllama.cli.loading import load_model
from qllama.cli.options import debug_option
from qllama.cli.runtime import RuntimeOptions, runtime_options
from qllama.cli.text_input import read_file, read_stdin

if TYPE_CHECKING:
    from qllama.generation.embedding import Pooling

__all__ = ["command"]


@click.command(
    "embed",
    short_help="Turn texts into vectors.",
    epilog='Example: qllama embed model.qlm "A cat." "A dog." -o vectors.npy',
)
@click.argument("arguments", nargs=-1, metavar="[MODEL] TEXT...")
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help="MODEL as an option; every argument is then a TEXT.  "
    "[default: smollm2-135m, fetched on first use]",
)
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take each line of a file for a text, too; - reads stdin.",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "last", "cls"]),
    default="mean",
    show_default=True,
    help="A text's vector: the mean of its tokens' states, or the last's, or the first's.",
)
@click.option(
    "--normalize/--no-normalize",
    default=True,
    show_default=True,
    help="Make vectors of length one, whose products are cosines.",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write a numpy array, float32 (texts, hidden size), to this file; - is stdout.  "
    "[default: JSON on stdout]",
)
@runtime_options
@debug_option
def command(
    arguments: tuple[str, ...],
    model: str | None,
    file: Path | None,
    pooling: str,
    normalize: bool,
    out: Path | None,
    runtime: RuntimeOptions,
) -> None:
    """Print a vector for each TEXT, from the last layer of MODEL, as one JSON list.

    Of several arguments the first is MODEL, unless -m or -f is given; a single argument
    is a TEXT for the default model. Texts of all lengths are evaluated together, and a
    vector does not depend on the others. A text that does not fit the context is refused.
    """
    texts = list(arguments)
    if model is None and (file is not None or len(texts) > 1) and texts:
        model = texts.pop(0)
    if file is not None:
        texts += (read_stdin() if str(file) == "-" else read_file(file)).splitlines()
    if not texts:
        raise click.UsageError("Give a TEXT, or -f FILE with a text a line.")
    with load_model(model, runtime) as llm:
        vectors = llm.embed(texts, pooling=cast("Pooling", pooling), normalize=normalize)
    if out is None:
        click.echo(json.dumps(vectors.tolist()))
        return
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, vectors)
    if str(out) == "-":
        sys.stdout.buffer.write(buffer.getvalue())
    else:
        out.write_bytes(buffer.getvalue())
