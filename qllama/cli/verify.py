"""`qllama verify`: check a `.qlm` file against its checksums."""

from __future__ import annotations

import click

from qllama.cli.loading import model_path
from qllama.cli.options import debug_option, model_argument
from qllama.cli.progress import ProgressReport

__all__ = ["command"]


@click.command(
    "verify",
    short_help="Check a .qlm file against its checksums.",
    epilog="Example: qllama verify model.qlm",
)
@model_argument
@debug_option
def command(model: str | None) -> None:
    """Check the layout of MODEL and every checksum in it.

    Exits with 0 when all is well and with 1 when anything is not, naming it.
    """
    from qllama.format.reader import QlmFile

    path = model_path(model)
    with QlmFile.open(path) as file, ProgressReport() as progress:
        file.verify(on_progress=lambda done, total: progress.report("verifying", done, total))
        click.echo(f"{path}: good ({len(file.tensors)} tensors, {path.stat().st_size:,} bytes)")
