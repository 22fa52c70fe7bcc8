"""`qllama list`: the models in the cache."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from qllama.cli.columns import aligned
from qllama.cli.inspection.tables import human_size
from qllama.cli.options import debug_option
from qllama.cli.progress import notice

if TYPE_CHECKING:
    from qllama.hub.installed import CachedModel

__all__ = ["command", "human_age", "models_table"]

_COLUMNS = ("NAME", "TYPE", "SIZE", "MODIFIED", "FROM")
_SECONDS = {
    "year": 31_557_600,
    "month": 2_629_800,
    "week": 604_800,
    "day": 86_400,
    "hour": 3600,
    "minute": 60,
    "second": 1,
}


@click.command(
    "list",
    short_help="List the models in the cache.",
    epilog="Example: qllama list",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects instead.")
@debug_option
def command(as_json: bool) -> None:
    """List the models in the cache, the newest first.

    They were pulled, or converted because a command was given a checkpoint. NAME is what
    every command takes as MODEL. QLLAMA_CACHE_DIR names another directory for the cache.
    """
    from qllama.hub.cache import models_dir
    from qllama.hub.installed import cached_models

    models = cached_models()
    if as_json:
        click.echo(json.dumps([_plain(model) for model in models], indent=2))
        return
    if not models:
        notice(f"qllama: no models in {models_dir()}; `qllama pull` fetches one")
        return
    click.echo(models_table(models))
    total = human_size(sum(model.n_bytes for model in models))
    notice(f"qllama: {total} in {models_dir()}")


def models_table(models: Iterable[CachedModel]) -> str:
    """Return `models` as aligned lines, under a heading."""
    now = time.time()
    rows = [
        (
            model.name,
            model.type or "?",
            human_size(model.n_bytes),
            human_age(now - model.modified),
            model.origin or "?",
        )
        for model in models
    ]
    return "\n".join(aligned([_COLUMNS, *rows], right=(2,)))


def _plain(model: CachedModel) -> dict[str, Any]:
    modified = datetime.fromtimestamp(model.modified, timezone.utc)
    return {
        "name": model.name,
        **asdict(model),
        "path": str(model.path),
        "modified": modified.isoformat(timespec="seconds"),
    }


def human_age(seconds: float) -> str:
    """Return how long ago `seconds` are, in the largest unit that fits: `3 days ago`."""
    for unit, length in _SECONDS.items():
        n = int(seconds // length)
        if n >= 1:
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"
