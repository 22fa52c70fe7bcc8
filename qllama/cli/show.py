"""`qllama show`: a short card of a model, in the manner of ollama's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qllama.cli.completion import complete_cached
from qllama.cli.options import DEFAULT_WEIGHT_TYPE, debug_option

if TYPE_CHECKING:
    from qllama.cli.inspection.subject import Subject
    from qllama.cli.inspection.tables import Section
    from qllama.format.reader import QlmFile

__all__ = ["command"]


@click.command(
    "show",
    short_help="Show a short card of a model.",
    epilog="Example: qllama show smollm2-135m",
)
@click.argument("model", required=False, shell_complete=complete_cached)
@click.option("--template", is_flag=True, help="Print the model's chat template, and only that.")
@debug_option
def command(model: str | None, template: bool) -> None:
    """Show what MODEL is, and how `qllama chat` runs it.

    MODEL is a .qlm file or a model of the cache (default smollm2-135m); nothing is fetched
    or converted for it. `qllama inspect` shows more, also of a checkpoint.
    """
    from qllama.cli.inspection.subject import subject_of_file
    from qllama.cli.inspection.tables import as_table, terminal
    from qllama.format.reader import QlmFile

    with QlmFile.open(_path(model)) as file:
        if template:
            source = file.tokenizer.chat_template
            if source is None:
                raise click.ClickException(f"{file.path}: the model has no chat template")
            click.echo(source)
            return
        sections = list(_sections(file, subject_of_file(file)))
    # rich has left colours out where they do not belong.
    click.echo(as_table(sections, terminal()), color=True)


def _path(model: str | None) -> Path:
    """Return the file of MODEL; of several in the cache that of the default weight type."""
    from qllama.hub.installed import find, find_all
    from qllama.hub.registry import DEFAULT_MODEL

    if model is not None and Path(model).is_file():
        return Path(model)
    name = DEFAULT_MODEL if model is None else model
    usual = [m for m in find_all(name) if m.type == DEFAULT_WEIGHT_TYPE]
    return usual[0].path if len(usual) == 1 else find(name).path


def _sections(file: QlmFile, subject: Subject) -> Iterator[Section]:
    from qllama.cli.inspection.tables import human_count, human_size, pairs

    config, provenance = file.config, file.provenance
    weights = sum(tensor.parameters for tensor in subject.tensors)
    bits = 8 * sum(tensor.n_bytes for tensor in subject.tensors) / weights
    yield pairs(
        "Model",
        {
            "architecture": config.model_type,
            "parameters": human_count(weights),
            "context length": config.max_position_embeddings,
            "embedding length": config.hidden_size,
            "quantization": f"{file.recipe.get('name', 'unknown')} ({bits:.2f} bits/weight)",
        },
    )
    yield pairs("Parameters", dict(_parameters(file)))
    license_name = provenance.get("metadata", {}).get("general.license")
    yield pairs(
        "File",
        {
            "path": str(file.path),
            "size": human_size(subject.n_bytes),
            "from": provenance.get("origin") or provenance.get("source"),
            **({"license": license_name} if license_name else {}),
        },
    )


def _parameters(file: QlmFile) -> Iterator[tuple[str, Any]]:
    """What `chat` does with the model unless it is told otherwise."""
    from qllama.hub.registry import chat_defaults
    from qllama.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
    yield "stop", " ".join(map(tokenizer.token_text, file.tokenizer.eos_token_ids)) or "none"
    defaults = chat_defaults(file.provenance)
    if defaults is not None:
        yield "temperature", defaults.temperature
        yield "top_p", defaults.top_p
        yield "repeat_penalty", defaults.repeat_penalty
        yield "system", defaults.system or "(empty)"
    yield "chat template", "none" if file.tokenizer.chat_template is None else "yes (--template)"
