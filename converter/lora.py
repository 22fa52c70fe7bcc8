"""LoRA adapters, merged into a checkpoint while it is read.

Owns what becomes of the model that an adapter is merged into: its tensors, whether its
head stays tied, its vocabulary and tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from converter.adapter import Adapter, open_adapter
from converter.hf_tensors import equal_values
from converter.lora_checks import compare_names, compare_tokenizers
from converter.sources.base import CheckpointSource, OpenedSource, SourceTensor
from converter.sources.views import LowRankUpdate
from converter.tokenizer_files import has_tokenizer
from qllama.config import ModelConfig, TokenizerConfig
from qllama.errors import ConversionError, TokenizerError
from qllama.tensors import EMBEDDING, HEAD, expected_shapes

__all__ = ["with_adapter"]


@dataclass(frozen=True)
class _Adapted(OpenedSource):
    """A source with adapters merged in; `touched` are the tensors that they changed."""

    touched: frozenset[str] = frozenset()


def with_adapter(source: CheckpointSource, directory: Path, scale: float) -> CheckpointSource:
    """Merge a PEFT LoRA adapter into a checkpoint; nothing is computed before it is read.

    A model whose head is tied to its embedding is untied where the adapter changes one of
    the two: that is what was trained. Where it adds rows for tokens, the tokenizer is the
    adapter's, unless the user has named one.

    Parameters
    ----------
    source : CheckpointSource
        The base model, with or without adapters already merged.
    directory, scale
        As `open_adapter` takes them, which says what is raised.
    """
    model = source.config
    base = dict(source.tensors)
    base.setdefault(HEAD, base[EMBEDDING])
    earlier = source.touched if isinstance(source, _Adapted) else frozenset()
    shapes = {name: tensor.shape for name, tensor in base.items()}
    adapter = open_adapter(directory, shapes, scale, earlier)
    path = adapter.weights.path
    tensors = {**base, **adapter.replaced}
    for name, update in adapter.updates.items():
        tensors[name] = LowRankUpdate(
            tensors[name], update.left, update.right, update.scale, str(path)
        )
    changed = adapter.replaced.keys() | adapter.updates.keys()
    model = _grown(path, model, tensors)
    if model.tie_word_embeddings and {EMBEDDING, HEAD} & changed:
        model = _retied(model, tensors)
    compare_names(adapter.config, source.files[0], source.provenance)
    return _Adapted(
        config=model,
        load_tokenizer=partial(_tokenizer, source, directory),
        tensors={name: tensors[name] for name in expected_shapes(model)},
        files=(*source.files, path),
        provenance=_provenance(source.provenance, adapter, scale),
        touched=earlier | changed,
    )


def _grown(path: Path, model: ModelConfig, tensors: Mapping[str, SourceTensor]) -> ModelConfig:
    """Give the model as many tokens as its embedding has."""
    rows = tensors[EMBEDDING].shape[0]
    if tensors[HEAD].shape[0] != rows:
        raise ConversionError(
            f"{path}: with it the embedding has {rows} tokens, the head "
            f"{tensors[HEAD].shape[0]}; the adapter must hold both, save it with "
            "save_embedding_layers=True"
        )
    return replace(model, vocab_size=rows)


def _tokenizer(
    source: CheckpointSource, directory: Path, vocab_size: int, trained: Path | None
) -> tuple[TokenizerConfig, bytes]:
    """Load the tokenizer of the base model, or the adapter's where it has added rows."""
    if vocab_size == source.config.vocab_size:
        found = source.load_tokenizer(vocab_size, trained)
        if trained is None and has_tokenizer(directory):
            with suppress(TokenizerError):  # It may have tokens that the model has no rows for.
                own = source.load_tokenizer(vocab_size, directory)
                compare_tokenizers(directory, own, found)
        return found
    try:
        return source.load_tokenizer(vocab_size, trained or directory)
    except TokenizerError as e:
        raise TokenizerError(
            f"{e}; the adapter adds tokens to the {source.config.vocab_size} of the base model, "
            "so it needs the tokenizer that it was trained with"
        ) from None


def _retied(model: ModelConfig, tensors: Mapping[str, SourceTensor]) -> ModelConfig:
    """Untie head and embedding, unless the adapter changed both to the same."""
    same = equal_values(tensors[HEAD], tensors[EMBEDDING])
    return model if same else replace(model, tie_word_embeddings=False)


def _provenance(base: Mapping[str, Any], adapter: Adapter, scale: float) -> dict[str, Any]:
    config = adapter.config
    record = {
        "name": config.path.resolve().parent.name,
        "base_model": config.base_model,
        "scale": scale,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "updated_modules": len(adapter.weights.updates),
        "replaced_tensors": len(adapter.weights.whole),
    }
    return {**base, "adapters": [*base.get("adapters", []), record]}
