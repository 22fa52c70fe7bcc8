"""Documents as Markdown, and the places in a Markdown file where they go.

A line `<!-- results: FILE -->` begins such a place and `<!-- end of results -->` ends it;
FILE is a document's, relative to the Markdown file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from harness.document import comparisons_in, read
from harness.kernel_rows import Row, kernel_table
from harness.layer_rows import LayerRow, layer_table
from harness.quality_rows import QualityRow, quality_table
from harness.speculation_rows import SpeculationRow, speculation_table
from harness.start_rows import startup_table
from harness.tables import comparison_table

__all__ = ["as_markdown", "filled"]

_PLACE = re.compile(r"(?m)^<!-- results: (?P<file>\S+) -->\n(?:.*\n)*?<!-- end of results -->$")


def as_markdown(document: dict[str, Any]) -> str:
    """Tabulate a document of any benchmark, and say where it was measured."""
    return f"{_table(document)}\n{_origin(document)}\n"


def filled(text: str, directory: Path) -> str:
    """Return `text` with the present results in its places; one without a document is kept.

    Parameters
    ----------
    text : str
        Of a Markdown file.
    directory : Path
        Where that file is.

    Raises
    ------
    click.ClickException
        A file that a place names is something else than a document.
    """

    def fill(place: re.Match[str]) -> str:
        file = place["file"]
        if not (directory / file).exists():
            return place[0]
        results = as_markdown(read(directory / file))
        return f"<!-- results: {file} -->\n{results}<!-- end of results -->"

    return _PLACE.sub(fill, text)


def _table(document: dict[str, Any]) -> str:
    if "comparisons" in document:
        return comparison_table(comparisons_in(document))
    if "kernels" in document:
        return kernel_table([Row(**entry) for entry in document["kernels"]])
    if "starts" in document:
        return startup_table(document["starts"], document["open_seconds"])
    if "layers" in document:
        return layer_table([LayerRow(**row) for row in document["layers"]])
    if "speculation" in document:
        return speculation_table([SpeculationRow(**row) for row in document["speculation"]])
    if "rows" in document:
        return quality_table([QualityRow(**row) for row in document["rows"]])
    raise click.ClickException(f"no table for the results of {document['benchmark']}")


def _origin(document: dict[str, Any]) -> str:
    where, git = document["environment"], document["environment"]["git"]
    revision = f" {git['revision'][:9]}{', changed' * git['is_dirty']}" if git else ""
    parts = [
        f"{document['time'][:10]}, {where['cpu']}, {where['n_cpus']} CPUs, {where['isa']}",
        f"qllama {where['qllama']}{revision}, numba {where['numba']}",
        *filter(None, [_samples(document["settings"])]),
    ]
    if not document.get("is_complete", True):
        parts.append("**not all that was to be measured**")
    return f"{'; '.join(parts)}."


def _samples(settings: dict[str, Any]) -> str:
    """How often everything was measured."""
    names = (("rounds", "round"), ("repetitions", "sample"))
    counts = [(settings[key], name) for key, name in names if key in settings]
    return " of ".join(f"{n} {name}{'s' * (n > 1)}" for n, name in counts)
