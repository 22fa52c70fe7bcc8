"""`qllama pull`: get a model ready in the user's cache."""

from __future__ import annotations

import click

from qllama.cli.loading import model_path
from qllama.cli.options import DEFAULT_WEIGHT_TYPE, debug_option, weight_type

__all__ = ["command"]


@click.command(
    "pull",
    short_help="Fetch a model and convert it into the cache.",
    epilog="Example: qllama pull smollm2-135m --type q8",
)
@click.argument("name", required=False)
@click.option(
    "--type",
    "type_name",
    type=weight_type,
    default=DEFAULT_WEIGHT_TYPE,
    show_default=True,
    help="Weight type to convert to.",
)
@debug_option
def command(name: str | None, type_name: str) -> None:
    """Fetch the model NAME, convert it into the cache and print where it is.

    NAME is a registered name (default smollm2-135m) or org/name on the Hugging
    Face hub. A model that is already there is not fetched again.
    """
    click.echo(model_path(name, type_name))
