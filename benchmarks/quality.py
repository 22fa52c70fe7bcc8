"""What each weight type costs, beside llama.cpp's of the same weights; see `--help`."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import gguf

from harness.document import new_document, write
from harness.options import output_option
from harness.program import QLLAMA, named_command, output_of
from harness.quality_rows import FED, WEIGHTED, QualityRow, quality_table
from qllama.format import QlmFile

_PRESETS = ("q4", "q4-small", "q8")
_RIVALS = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
_ESTIMATE = r"\s*:?\s+(-?[\d.]+) ±\s+([\d.]+)"


@click.command(
    epilog="Example: python benchmarks/quality.py smollm2-f16.gguf -f texts/evaluation.txt "
    "--llama llama.cpp/build/bin made"
)
@click.argument("original", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("made", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "-f",
    "--file",
    "text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="TEXT",
    help="What the models read, in windows of 512 tokens.",
)
@click.option(
    "--llama",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where llama-quantize and llama-perplexity are.  [default: none; qllama alone]",
)
@click.option(
    "--importance",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Of `qllama calibrate`, on another text: 4-bit types are made with it as well.",
)
@click.option(
    "--feedback",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TEXT",
    help="Of `qllama convert`, with an --importance: q4 is made with both as well.",
)
@click.option(
    "--qllama",
    "recipes",
    multiple=True,
    metavar="NAME=ARGUMENTS",
    callback=lambda ctx, param, values: [named_command(value) for value in values],
    help="A model to make besides, with these arguments of `qllama convert`, as "
    "'q4 large=--type q4 --tensor-type down_proj=q6'. May be given again.",
)
@output_option("quality.json")
def main(
    original: Path,
    made: Path,
    text: Path,
    llama: Path | None,
    importance: Path | None,
    feedback: Path | None,
    recipes: list[tuple[str, list[str]]],
    output: Path,
) -> None:
    """Quantize ORIGINAL, an f16 GGUF file, in many ways, and compare each with it on a text.

    Each engine makes its own files, in MADE, and compares them with the original as it
    runs it itself. `quality_speeds.py` adds speeds.
    """
    if feedback is not None and importance is None:
        raise click.UsageError("--feedback: expected an --importance beside it.")
    made.mkdir(parents=True, exist_ok=True)
    rows: list[QualityRow] = []
    base = _converted(original, made / "f16.qlm", ["--type", "f16"])
    asked = [(name, ["--type", name]) for name in _PRESETS]
    if importance is not None:
        weighted = ["--importance", str(importance)]
        asked += [(f"{n}{WEIGHTED}", ["--type", n, *weighted]) for n in _PRESETS if "4" in n]
        if feedback is not None:
            asked.append((f"q4{FED}", ["--type", "q4", *weighted, "--feedback", str(feedback)]))
    for name, arguments in [*asked, *recipes]:
        path = _converted(original, made / f"{name.replace(' ', '')}.qlm", arguments)
        rows.append(_qllama_row(name, path, base, text))
        click.echo(f"{name}: {rows[-1].kld:.5f}", err=True)
    if llama is not None:
        logits = made / "logits.kld"
        told = ["-f", str(text), "-c", "512", "--kl-divergence-base", str(logits)]
        output_of([str(llama / "llama-perplexity"), "-m", str(original), *told])
        for name, options in _rival_types(importance):
            path = made / f"{name.replace(' ', '')}.gguf"
            quantize = [str(llama / "llama-quantize"), *options, str(original), str(path)]
            output_of([*quantize, name.removesuffix(WEIGHTED)])
            rows.append(_llama_row(name, path, llama / "llama-perplexity", told))
            click.echo(f"{name}: {rows[-1].kld:.5f}", err=True)
        logits.unlink()
    settings = {
        "original": original.name,
        "text": text.name,
        "qllama": {name: shlex.join(arguments) for name, arguments in recipes},
    }
    write(new_document("quality", settings, {"rows": rows}), output)
    click.echo(quality_table(rows))


def _rival_types(importance: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield names of llama.cpp's types, and options of llama-quantize."""
    for name in _RIVALS:
        yield name, []
        if importance is not None and "4" in name:
            yield f"{name}{WEIGHTED}", ["--imatrix", str(importance)]


def _converted(original: Path, path: Path, arguments: Sequence[str]) -> Path:
    output_of([*QLLAMA, "convert", str(original), str(path), *arguments])
    return path


def _qllama_row(name: str, path: Path, base: Path, text: Path) -> QualityRow:
    command = [*QLLAMA, "perplexity", str(path), "-f", str(text), "--kl-base", str(base)]
    document = json.loads(output_of([*command, "-o", "json"]))
    found = document["comparison"]
    with QlmFile.open(path) as file:
        n_bytes = sum(tensor.n_bytes for tensor in file.tensors.values())
        n_weights = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    return QualityRow(
        "qllama",
        name,
        path.name,
        path.stat().st_size,
        8 * n_bytes / n_weights,
        *(found["ppl"]["value"], found["ppl"]["error"]),
        *(found["mean_kld"]["value"], found["mean_kld"]["error"]),
        found["same_top"]["value"],
    )


def _llama_row(name: str, path: Path, program: Path, told: Sequence[str]) -> QualityRow:
    said = output_of([str(program), "-m", str(path), *told, "--kl-divergence"])
    tensors = gguf.GGUFReader(path).tensors
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    ppl, kld = estimate(said, r"Mean PPL\(Q\)"), estimate(said, "Mean +KLD")
    same_top = estimate(said, "Same top p")[0] / 100
    return QualityRow("llama.cpp", name, path.name, path.stat().st_size, bits, *ppl, *kld, same_top)


def estimate(said: str, label: str) -> tuple[float, float]:
    """Figure and error that llama-perplexity prints on the line of `label`."""
    found = re.search(rf"(?m)^{label}{_ESTIMATE}", said)
    if found is None:
        raise click.ClickException(f"llama-perplexity: expected a line {label!r}")
    return float(found[1]), float(found[2])


if __name__ == "__main__":
    main()
