"""`qllama convert`: turn a checkpoint into a `.qlm` file."""

from __future__ import annotations

from pathlib import Path

import click

from qllama.cli.options import DEFAULT_WEIGHT_TYPE, debug_option, weight_type
from qllama.cli.progress import ProgressReport, notice

__all__ = ["command"]


@click.command(
    "convert",
    short_help="Convert a checkpoint into a .qlm file.",
    epilog="Example: qllama convert model.gguf model.qlm --type q8",
)
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o",
    "--outfile",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The same as the argument OUT.  [default: NAME-TYPE.qlm here, NAME being SRC's]",
)
@click.option(
    "--type",
    "--outtype",
    "type_name",
    type=weight_type,
    default=DEFAULT_WEIGHT_TYPE,
    show_default=True,
    help="Weight type: q4 and q8 are mixes that suit most models.",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads that quantize.  [default: the physical cores this process may use]",
)
@debug_option
def command(
    src: Path, out: Path | None, outfile: Path | None, type_name: str, threads: int | None
) -> None:
    """Convert the checkpoint SRC (a .gguf file) into the file OUT and print its path.

    An existing OUT is replaced, and only once the new one is complete.
    """
    if out is not None and outfile is not None:
        raise click.UsageError(f"OUT is given twice: {str(out)!r} and -o {str(outfile)!r}.")
    from converter.pipeline import convert

    with ProgressReport() as progress:
        report = convert(
            src, out or outfile, type=type_name, on_progress=progress.report, n_threads=threads
        )
    notice(str(report))
    click.echo(report.out)
