"""The texts that quality is measured and models are calibrated on; see `--help`."""

from __future__ import annotations

from pathlib import Path
from pydoc_data import topics

import click

_N_EVALUATION, _N_CALIBRATION = 30_000, 120_000


@click.command(epilog="Example: python benchmarks/make_texts.py texts")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def main(directory: Path) -> None:
    """Write evaluation.txt and calibration.txt to DIRECTORY.

    Both are of `pydoc_data.topics`, the English prose that Python ships for help(), its
    entries sorted by name and joined by newlines: the first 30,000 characters to evaluate on,
    the 120,000 after them to calibrate on. Tables in docs/ are of Python 3.11's.
    """
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    directory.mkdir(parents=True, exist_ok=True)
    parts = {
        "evaluation": text[:_N_EVALUATION],
        "calibration": text[_N_EVALUATION:][:_N_CALIBRATION],
    }
    for name, part in parts.items():
        path = directory / f"{name}.txt"
        path.write_text(part, encoding="utf-8", newline="\n")
        click.echo(path)


if __name__ == "__main__":
    main()
