"""The short card of a model, in the manner of ollama's: what it is, and how `chat` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qllama.cli.inspection.subject import subject_of_file
from qllama.cli.inspection.tables import Section, human_count, human_size, pairs
from qllama.format.reader import QlmFile
from qllama.hub.registry import chat_defaults
from qllama.tokenizer import load_tokenizer

__all__ = ["short_card"]


def short_card(file: QlmFile) -> Iterator[Section]:
    """Yield the tables of a `.qlm` file's card.

    Parameters
    ----------
    file : QlmFile
        Open.
    """
    config, provenance, subject = file.config, file.provenance, subject_of_file(file)
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
    tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
    yield "stop", " ".join(map(tokenizer.token_text, file.tokenizer.eos_token_ids)) or "none"
    defaults = chat_defaults(file.provenance)
    if defaults is not None:
        yield "temperature", defaults.temperature
        yield "top_p", defaults.top_p
        yield "repeat_penalty", defaults.repeat_penalty
        yield "system", defaults.system or "(empty)"
    yield "chat template", "none" if file.tokenizer.chat_template is None else "yes (--template)"
