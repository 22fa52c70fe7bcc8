"""`qllama calibrate`: measure which columns of a model's matrices matter."""

from __future__ import annotations

from pathlib import Path

import click

from qllama.cli.loading import model_path
from qllama.cli.options import debug_option, model_argument, text_windows_options
from qllama.cli.progress import ProgressReport, notice
from qllama.cli.text_input import read_file

__all__ = ["command"]


@click.command(
    "calibrate",
    short_help="Measure on a text which weights matter, for convert --importance.",
    epilog="Example: qllama calibrate ./Llama-3.2-1B -f text.txt -o llama-imatrix.gguf",
)
@model_argument
@text_windows_options
@click.option(
    "-o",
    "--output",
    "--output-file",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The importance file.  [default: NAME-imatrix.gguf here, NAME being MODEL's]",
)
@debug_option
def command(
    model: str | None, file: Path, out: Path | None, ctx_size: int, chunks: int | None
) -> None:
    """Have MODEL read the text of -f, write an importance file and print its path.

    It holds the mean squares of what each matrix of MODEL is multiplied with, column by
    column; convert --importance then spends a type's precision on the columns that matter.
    MODEL is best a checkpoint that was not quantized, or a .qlm file of f16; a checkpoint is
    read as it is, without converting it. The text, best of the kind that the model will
    read and write, is cut into windows of -c tokens, each read by itself; some fifty
    windows are enough.

    The file is llama.cpp's importance matrix: llama-quantize reads it, and files of
    llama-imatrix serve convert --importance as well.
    """
    text = read_file(file)
    is_path = model is not None and Path(model).exists()
    path = Path(model) if model is not None and is_path else model_path(model, "f16")
    from converter.calibration import calibrate, open_weights
    from converter.importance import write_importance
    from converter.naming import model_name
    from qllama.evaluation.windows import cut

    out = out or Path(f"{model_name(path)}-imatrix.gguf")
    with open_weights(path) as (weights, tokenizer), ProgressReport() as progress:
        windows = cut(text, str(file), tokenizer, ctx_size, chunks).tokens
        sums = calibrate(weights, windows, progress.report)
    write_importance(
        out, sums, windows.size, model=path.name, text=file.name, n_windows=len(windows)
    )
    notice(f"{out}: {len(sums)} matrices, {windows.size} tokens in {len(windows)} windows")
    click.echo(out)
