"""`qllama warmup`: compile the kernels ahead of their first use."""

from __future__ import annotations

import click

from qllama.cli.loading import compilation_progress
from qllama.cli.options import debug_option
from qllama.cli.progress import ProgressReport, notice

__all__ = ["command"]


@click.command(
    "warmup",
    short_help="Compile all kernels into the cache.",
    epilog="Example: qllama warmup",
)
@debug_option
def command() -> None:
    """Compile every kernel for this CPU into the user's cache.

    Kernels are otherwise compiled when a model first needs them.
    """
    from qllama.model.warmup import warmup

    with ProgressReport() as progress:
        warmup(on_compile=compilation_progress(progress))
    notice("qllama: all kernels are compiled")
