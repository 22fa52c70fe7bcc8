"""The JSON document that every script writes: where, when, with what, and all samples.

`schema` counts up when a key changes its meaning or goes away.
"""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from harness.comparison import Comparison, Side
from qllama.bench.environment import environment
from qllama.bench.plan import Test

__all__ = ["SCHEMA", "comparisons_in", "new_document", "read", "write"]

SCHEMA = 2


def new_document(
    benchmark: str, settings: dict[str, Any], results: dict[str, Any]
) -> dict[str, Any]:
    """Put results, which may hold records, together with where they were measured.

    Parameters
    ----------
    benchmark : str
        The script's name; `read` checks it.
    settings : dict
        Of the run, as JSON values.
    results : dict
        Keys of the document besides those of every document.
    """
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": settings,
        **results,
    }


def write(document: dict[str, Any], path: Path) -> None:
    """Write `document` to the file `path`, at once; its directory is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False, default=_plain)
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read a document of this schema.

    Raises
    ------
    click.ClickException
        When the file holds none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{path}: expected a benchmark's JSON document") from error
    if schema != SCHEMA:
        raise click.ClickException(f"{path}: expected schema {SCHEMA}, found {schema}")
    return document  # type: ignore[no-any-return]


def comparisons_in(document: dict[str, Any]) -> list[Comparison]:
    """Read the key `comparisons`, which `write` made of a list of `Comparison`."""

    def comparison(entry: dict[str, Any]) -> Comparison:
        return Comparison(
            model=entry["model"],
            test=Test(**entry["test"]),
            n_threads=entry["n_threads"],
            ours=Side(**entry["ours"]),
            rivals=[Side(**rival) for rival in entry["rivals"]],
        )

    return [comparison(entry) for entry in document["comparisons"]]


def _plain(value: Any) -> Any:
    """JSON values of what `json` does not know."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not for a document")
