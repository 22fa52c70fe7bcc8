"""`qllama inspect`: say what is in a `.qlm` file."""

from __future__ import annotations

import json

import click

from qllama.cli.loading import model_path
from qllama.cli.options import debug_option, model_argument

__all__ = ["command"]


@click.command(
    "inspect",
    short_help="Show what is in a .qlm file.",
    epilog="Example: qllama inspect model.qlm --format json --tensors",
)
@model_argument
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "markdown", "mermaid"], case_sensitive=False),
    default="table",
    show_default=True,
    help="mermaid draws the forward pass as a flowchart.",
)
@click.option("--tensors", is_flag=True, help="List every tensor too.")
@debug_option
def command(model: str | None, output_format: str, tensors: bool) -> None:
    """Show the hyperparameters, weights, tokenizer and origin of MODEL.

    Reads the file's header only, whatever the size of the file.
    """
    from qllama.cli.inspection.diagram import as_mermaid
    from qllama.cli.inspection.facts import gather_facts
    from qllama.cli.inspection.tables import as_markdown, as_table
    from qllama.format.reader import QlmFile

    with QlmFile.open(model_path(model)) as file:
        facts = gather_facts(file)
    if output_format == "json":
        data = facts.to_dict()
        if not tensors:
            del data["tensors"]
        text = json.dumps(data, indent=2, ensure_ascii=False)
    elif output_format == "mermaid":
        text = as_mermaid(facts)
    elif output_format == "markdown":
        text = as_markdown(facts, with_tensors=tensors)
    else:
        text = as_table(facts, with_tensors=tensors)
    click.echo(text)
