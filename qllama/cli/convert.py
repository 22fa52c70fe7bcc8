"""`qllama convert`: turn a checkpoint into a `.qlm` file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qllama.cli.options import DEFAULT_WEIGHT_TYPE, debug_option, source_options, weight_type
from qllama.cli.progress import ProgressReport, notice
from qllama.cli.sections import SectionedCommand

if TYPE_CHECKING:
    from converter.feedback import CalibrationText

__all__ = ["command"]

# Of the text of --feedback: some multiples of the widest matrix's columns.
_N_CTX, _N_WINDOWS = 512, 32


@click.command(
    "convert",
    cls=SectionedCommand,
    short_help="Convert a checkpoint into a .qlm file.",
    epilog="Example: qllama convert ./Llama-3.2-1B llama.qlm --type q8",
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
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Another type for the matrices whose name has the regular expression PATTERN in it, as "
    "down_proj=q6 or 'layers\\.[0-3]\\.=q8_0'; the first that fits counts. May be given again.",
)
@click.option(
    "--importance",
    "--imatrix",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Spend precision on the columns that matter, by a file of `qllama calibrate` or "
    "llama-imatrix.  [default: none; all columns matter alike]",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Round weights by a formula instead of searching: several times as fast, and a larger "
    "error.",
)
@click.option(
    "--feedback",
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="Have SRC read 32 windows of this text, and let codes make up for each other's errors "
    "there (GPTQ): the nearest to SRC, and slow.  [default: none; each to its nearest]",
)
@source_options
@click.option(
    "--lora",
    "adapters",
    multiple=True,
    metavar="DIR[=SCALE]",
    help="Merge the PEFT adapter in DIR, its weights times SCALE. May be given again.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only print what would be made: every tensor, and the size."
)
@click.option(
    "--check/--no-check",
    default=True,
    help="Compare the new file with SRC, and see that it can read.  [default: --check]",
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
    src: Path,
    out: Path | None,
    outfile: Path | None,
    type_name: str,
    tensor_types: tuple[str, ...],
    importance: Path | None,
    fast: bool,
    feedback: Path | None,
    source_format: str | None,
    config: Path | None,
    tokenizer: Path | None,
    rope_layout: str | None,
    fused_layout: str | None,
    adapters: tuple[str, ...],
    dry_run: bool,
    check: bool,
    threads: int | None,
) -> None:
    """Convert the checkpoint SRC into the file OUT and print its path.

    SRC is a file or directory: GGUF, a Hugging Face repository, Meta's release, or a
    MindSpore checkpoint. An existing OUT is replaced, and only once the new one is
    complete.
    """
    if out is not None and outfile is not None:
        raise click.UsageError(f"OUT is given twice: {str(out)!r} and -o {str(outfile)!r}.")
    from converter.pipeline import convert, plan
    from converter.recipe import tensor_type_argument
    from converter.sources.options import SourceOptions

    merged = []
    if adapters:
        from converter.adapter import adapter_argument

        merged = [adapter_argument(text) for text in adapters]
    out = out or outfile
    rules = [tensor_type_argument(text) for text in tensor_types]
    options = SourceOptions(source_format, config, tokenizer, rope_layout, fused_layout)
    if dry_run:
        from qllama.cli.dry_run import as_text
        from qllama.format.partial import check_target

        planned = plan(
            src,
            out,
            type_name,
            options=options,
            adapters=merged,
            tensor_types=rules,
            importance=importance,
        )
        click.echo(as_text(planned))
        check_target(planned.out, planned.n_bytes)
        return
    with ProgressReport() as progress:
        report = convert(
            src,
            out,
            type_name,
            options=options,
            adapters=merged,
            tensor_types=rules,
            importance=importance,
            fast=fast,
            feedback=None if feedback is None else _calibration_text(feedback),
            on_progress=progress.report,
            n_threads=threads,
            check=check,
        )
    for oddity in report.notices:
        notice(f"qllama: {src}: {oddity}")
    notice(str(report))
    click.echo(report.out)


def _calibration_text(path: Path) -> CalibrationText:
    from converter.feedback import CalibrationText
    from qllama.cli.text_input import read_file
    from qllama.evaluation.windows import cut

    text = read_file(path)
    return CalibrationText(
        path.name, lambda tokenizer: cut(text, str(path), tokenizer, _N_CTX, _N_WINDOWS).tokens
    )
