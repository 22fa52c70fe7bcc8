"""`qllama rm`: remove models from the cache."""

from __future__ import annotations

import sys

import click

from qllama.cli.completion import complete_cached
from qllama.cli.inspection.tables import human_size
from qllama.cli.options import debug_option
from qllama.cli.progress import notice

__all__ = ["command"]


@click.command(
    "rm",
    short_help="Remove models from the cache.",
    epilog="Example: qllama rm smollm2-135m-q8",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_cached)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@debug_option
def command(names: tuple[str, ...], yes: bool) -> None:
    """Remove the models NAME from the cache, and nothing anywhere else.

    NAME is as `qllama list` shows it, or as it was pulled where it is there in one
    weight type only. At a terminal you are asked first; a script is not. What the Hugging
    Face hub's own cache holds stays there (`hf cache`).
    """
    from qllama.hub.installed import find

    # All are found before one is removed.
    models = {model.path: model for model in map(find, names)}
    if not yes and sys.stdin is not None and sys.stdin.isatty():
        listed = ", ".join(f"{m.name} ({human_size(m.n_bytes)})" for m in models.values())
        if not click.confirm(f"Remove {listed}?", err=True):
            notice("qllama: nothing was removed")
            return
    for model in models.values():
        model.path.unlink()
        notice(f"qllama: removed {model.name} ({human_size(model.n_bytes)})")
