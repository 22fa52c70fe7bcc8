"""`qllama pull`: get models ready in the user's cache."""

from __future__ import annotations

import click

from qllama.cli.group import report_error
from qllama.cli.loading import model_path
from qllama.cli.options import DEFAULT_WEIGHT_TYPE, Diagnostics, debug_option, weight_type
from qllama.errors import QllamaError

__all__ = ["command"]


@click.command(
    "pull",
    short_help="Fetch models and convert them into the cache.",
    epilog="""\b
Examples:
  qllama pull smollm2-135m --type q8
  qllama pull org/name org/other:q8_0
""",
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--type",
    "type_name",
    type=weight_type,
    default=DEFAULT_WEIGHT_TYPE,
    show_default=True,
    help="Weight type to convert to.",
)
@debug_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], type_name: str) -> None:
    """Fetch the models NAME, convert them into the cache and print where each is.

    NAME is a registered name (default smollm2-135m) or org/name on the Hugging Face hub,
    with :FILE or :TYPE to choose among a repository's GGUF files. A model that is already
    there is not fetched again, and one that fails does not keep the others from coming.
    """
    code = 0
    for name in names or (None,):
        try:
            click.echo(model_path(name, type_name))
        except QllamaError as error:
            code = report_error(error, ctx.find_object(Diagnostics))
    ctx.exit(code)
