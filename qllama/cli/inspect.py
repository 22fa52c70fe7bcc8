"""`qllama inspect`: say what a model is and what it takes, before or after conversion."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qllama.cli.loading import model_path
from qllama.cli.options import debug_option, model_argument, source_options
from qllama.cli.progress import ProgressReport
from qllama.cli.sections import SectionedCommand

if TYPE_CHECKING:
    from converter.sources.options import SourceOptions
    from qllama.cli.inspection.subject import Subject

__all__ = ["command"]


@click.command(
    "inspect",
    cls=SectionedCommand,
    short_help="Show what a model is, and what it takes to run.",
    epilog="Example: qllama inspect model.qlm -c 8192 --format markdown",
)
@model_argument
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "markdown", "mermaid"], case_sensitive=False),
    default="table",
    show_default=True,
    help="mermaid draws the forward pass as a flowchart.",
)
@click.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(min=0),
    metavar="N",
    help="Length of context to count for; 0 is the model's own.  [default: 4096 and the own]",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compute threads to count for.  [default: the physical cores this process may use]",
)
@click.option("--expand", is_flag=True, help="Show every layer, also those that are alike.")
@click.option("--tensors", is_flag=True, help="List every tensor too.")
@click.option("--quality", is_flag=True, help="Show what quantizing cost, and the worst matrices.")
@click.option(
    "--speed/--no-speed",
    default=True,
    help="Measure how fast this machine reads memory, to estimate tokens/s.  [default: --speed]",
)
@source_options
@debug_option
def command(
    model: str | None,
    output_format: str,
    ctx_size: int | None,
    threads: int | None,
    expand: bool,
    tensors: bool,
    quality: bool,
    speed: bool,
    source_format: str | None,
    config: Path | None,
    tokenizer: Path | None,
    rope_layout: str | None,
    fused_layout: str | None,
) -> None:
    """Show the architecture, weights, tokenizer and origin of MODEL, and what it takes to run.

    MODEL is a .qlm file, or a checkpoint that `qllama convert` takes: it is then shown as it
    is, and what it would take once it is converted. Reads headers and the tokenizer, and no
    weights but norms and the head of a release of Meta's.
    """
    from converter.sources.options import SourceOptions
    from qllama.cli.inspection import card
    from qllama.cli.inspection.costs import MachineFacts, chosen_contexts
    from qllama.cli.inspection.diagram import as_mermaid
    from qllama.cli.inspection.facts import gather_facts
    from qllama.cli.inspection.tables import as_markdown, as_table, terminal
    from qllama.kernels.cores import default_n_threads

    subject = _subject(
        model, SourceOptions(source_format, config, tokenizer, rope_layout, fused_layout)
    )
    contexts = chosen_contexts(subject.config, ctx_size)
    n_threads = threads or default_n_threads()
    measured = _read_gb_s(n_threads) if speed and output_format != "mermaid" else None
    machine = MachineFacts.of(n_threads, measured)
    facts = gather_facts(subject, contexts, machine=machine, expand=expand)
    if output_format == "json":
        data = facts.to_dict()
        if not (tensors or quality):
            del data["tensors"]
        text = json.dumps(data, indent=2, ensure_ascii=False)
    elif output_format == "mermaid":
        text = as_mermaid(facts)
    elif output_format == "markdown":
        text = as_markdown(
            card.sections(facts, card.MARKDOWN_GUIDES, with_tensors=tensors, with_quality=quality)
        )
    else:
        console = terminal()
        guides = card.ASCII_GUIDES if console.options.ascii_only else card.LINE_GUIDES
        text = as_table(
            card.sections(facts, guides, with_tensors=tensors, with_quality=quality), console
        )
    # rich has left colours out where they do not belong.
    click.echo(text, color=True)


def _subject(model: str | None, options: SourceOptions) -> Subject:
    """Read MODEL: what exists as a file or directory is not converted for it."""
    from converter.sources.options import SourceOptions
    from qllama.cli.inspection.subject import subject_of_checkpoint, subject_of_file
    from qllama.format.reader import QlmFile
    from qllama.hub import registry

    path = Path(model or "")
    with contextlib.suppress(RuntimeError):  # no such user: "~" is a character as any other
        path = path.expanduser()
    if model is not None and _is_checkpoint(path, registry.find(model) is not None):
        from converter.sources.registry import open_source

        return subject_of_checkpoint(path, open_source(path, options))
    if options != SourceOptions():
        raise click.UsageError(
            "--from, --config, --tokenizer, --rope-layout and --fused-layout are for checkpoints, "
            f"found {model or 'the default model'}."
        )
    with QlmFile.open(model_path(model)) as file:
        return subject_of_file(file)


def _is_checkpoint(path: Path, is_registered: bool) -> bool:
    """Whether a path is one that exists and is no `.qlm` file; a name beats a directory."""
    from qllama.format.spec import MAGIC

    if path.is_dir():
        return not is_registered
    if not path.is_file() or path.suffix == ".qlm":
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) != MAGIC
    except OSError:
        return True  # whoever opens it next says why it cannot be read


def _read_gb_s(n_threads: int) -> float:
    from qllama.bench.estimate import measured_read_gb_s

    with ProgressReport(patience=2.0) as progress:
        progress.report("measuring how fast memory is read", 0, 0)
        return measured_read_gb_s(n_threads)
