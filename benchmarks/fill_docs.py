"""Write measured results into Markdown files; see `--help`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.reports import filled


@click.command()
@click.argument(
    "files",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    nargs=-1,
    required=True,
    metavar="FILE...",
)
def main(files: tuple[Path, ...]) -> None:
    """Bring the results in each Markdown FILE up to date.

    They stand between a line `<!-- results: DOCUMENT.json -->` and a line
    `<!-- end of results -->`.
    """
    for path in files:
        text = filled(path.read_text(encoding="utf-8"), path.parent)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
