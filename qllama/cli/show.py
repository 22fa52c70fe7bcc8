"""`qllama show`: a short card of a model, in the manner of ollama's."""

from __future__ import annotations

from pathlib import Path

import click

from qllama.cli.completion import complete_cached
from qllama.cli.options import DEFAULT_WEIGHT_TYPE, debug_option

__all__ = ["command"]


@click.command(
    "show",
    short_help="Show a short card of a model.",
    epilog="Example: qllama show smollm2-135m",
)
@click.argument("model", required=False, shell_complete=complete_cached)
@click.option("--template", is_flag=True, help="Print the model's chat template, and only that.")
@debug_option
def command(model: str | None, template: bool) -> None:
    """Show what MODEL is, and how `qllama chat` runs it.

    MODEL is a .qlm file or a model of the cache (default smollm2-135m); nothing is fetched
    or converted for it. `qllama inspect` shows more, also of a checkpoint.
    """
    from qllama.cli.inspection.short_card import short_card
    from qllama.cli.inspection.tables import as_table, terminal
    from qllama.format.reader import QlmFile

    with QlmFile.open(_path(model)) as file:
        if template:
            source = file.tokenizer.chat_template
            if source is None:
                raise click.ClickException(f"{file.path}: the model has no chat template")
            click.echo(source)
            return
        card = as_table(short_card(file), terminal())
    # rich has left colours out where they do not belong.
    click.echo(card, color=True)


def _path(model: str | None) -> Path:
    """Return the file of MODEL; of several in the cache that of the default weight type."""
    from qllama.hub.installed import find, find_all
    from qllama.hub.registry import DEFAULT_MODEL

    if model is not None and Path(model).is_file():
        return Path(model)
    name = DEFAULT_MODEL if model is None else model
    usual = [m for m in find_all(name) if m.type == DEFAULT_WEIGHT_TYPE]
    return usual[0].path if len(usual) == 1 else find(name).path
