"""`qllama perplexity`: how well a model predicts a text, alone or beside another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qllama.cli.group import EXIT_INTERRUPTED
from qllama.cli.loading import compilation_progress, model_path
from qllama.cli.options import debug_option, model_argument, text_windows_options
from qllama.cli.perplexity_progress import PerplexityProgress
from qllama.cli.progress import ProgressReport, notice
from qllama.cli.runtime import cache_type_options
from qllama.cli.text_input import read_file

if TYPE_CHECKING:
    from qllama.evaluation.runner import Results

__all__ = ["command"]


@click.command(
    "perplexity",
    short_help="Measure how well a model predicts a text.",
    epilog="Example: qllama perplexity model-q4.qlm -f wiki.test.raw --kl-base model-f16.qlm",
)
@model_argument
@text_windows_options
@click.option(
    "--kl-base",
    metavar="MODEL",
    help="Compare with the probabilities of this model, read in the same pass; a checkpoint is "
    "converted to f16 first.  [default: no comparison]",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compute threads.  [default: the physical cores this process may use]",
)
@cache_type_options
@click.option(
    "-o",
    "--output",
    "output_format",
    type=click.Choice(["text", "json"], case_sensitive=False),
    default="text",
    show_default=True,
    help="json is one document, with every window's running estimate.",
)
@debug_option
def command(
    model: str | None,
    file: Path,
    ctx_size: int,
    chunks: int | None,
    kl_base: str | None,
    threads: int | None,
    kv_type: str,
    output_format: str,
) -> None:
    """Measure how well MODEL predicts the text of -f, as llama.cpp's llama-perplexity does.

    The text is cut into windows of -c tokens. Each is read by itself, with BOS in the
    place of its first token if the model wants BOS, and the tokens of its second half are
    scored. Perplexity (PPL) is e to their mean negative log-likelihood: the lower, the
    better. It compares models of one vocabulary only. While it runs, [N]X is the PPL of
    the first N windows.

    With --kl-base also how near MODEL is to another of the same vocabulary, most often
    the model that it was quantized from: the Kullback-Leibler divergence of its
    probabilities (KLD), the change of the probability of the token that came (Δp), and
    how often both hold the same token for the likeliest (Same top p). The base's keys and
    values are always held in f16: a MODEL that is its own base shows what -ctk costs.

    ± is one standard error. Ctrl-C ends the run; the figures until then are printed.
    """
    text = read_file(file)
    path = model_path(model)
    base = None if kl_base is None else model_path(kl_base, "f16")
    from qllama.evaluation.report import running_estimate
    from qllama.evaluation.runner import Evaluation, Settings

    settings = Settings(ctx_size, chunks, threads, kv_type)
    with ProgressReport() as compiling:
        evaluation = Evaluation(
            path, text, str(file), settings, base, compilation_progress(compiling)
        )
    n_windows = len(evaluation.windows.tokens)
    stage = f"reading {n_windows} windows of {ctx_size} tokens"
    asked = {
        "model": str(path),
        "base": None if base is None else str(base),
        "file": str(file),
        "n_ctx": ctx_size,
        "kv_type": kv_type,
    }
    results = evaluation.results
    try:
        with evaluation, PerplexityProgress(stage, n_windows, output_format == "text") as progress:
            evaluation.run(lambda: progress.report(running_estimate(results)))
    except KeyboardInterrupt:
        if results.nll:
            _print(results, asked, output_format)
        notice(f"qllama: interrupted: read {len(results.nll)} of {n_windows} windows")
        click.get_current_context().exit(EXIT_INTERRUPTED)
    _print(results, asked, output_format)


def _print(results: Results, asked: dict[str, Any], output_format: str) -> None:
    from qllama.evaluation import report

    if output_format == "json":
        document = {**report.as_document(results), **asked}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(report.as_text(results))
