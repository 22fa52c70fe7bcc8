"""PEFT LoRA adapters, merged into a checkpoint while it is read.

Owns which tensors of a model an adapter changes: low-rank updates W + s B A, and
tensors that it replaces whole. Works on qllama's names and row order, so it does not
matter what format the base model comes in. Everything in the adapter is applied, or
the adapter is refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from converter.hf_tensors import canonical_name, equal_values
from converter.lora_checks import (
    FUSED,
    check_targets,
    check_whole,
    compare_names,
    compare_tokenizers,
)
from converter.peft_config import AdapterConfig, read_adapter_config
from converter.peft_weights import AdapterWeights, read_adapter_weights
from converter.sources.base import CheckpointSource, OpenedSource, SourceTensor
from converter.sources.views import LowRankUpdate, RowSlice
from converter.tokenizer_files import has_tokenizer
from converter.wording import quoted, shown
from qllama.config import ModelConfig, TokenizerConfig
from qllama.errors import ConversionError, TokenizerError
from qllama.tensors import EMBEDDING, HEAD, expected_shapes

__all__ = ["adapter_argument", "with_adapter"]


@dataclass(frozen=True)
class _Adapted(OpenedSource):
    """A source with adapters merged in; `touched` are the tensors that they changed."""

    touched: frozenset[str] = frozenset()


def adapter_argument(text: str) -> tuple[Path, float]:
    """Split the `DIR[=SCALE]` of `--lora`; a directory of that whole name comes first.

    Raises
    ------
    ConversionError
        When SCALE is no finite number.
    """
    directory, equals, scale = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConversionError(f"--lora {text}: expected a number after '=', found {quoted(scale)}")
    return Path(directory), value


def with_adapter(source: CheckpointSource, directory: Path, scale: float) -> CheckpointSource:
    """Merge a PEFT LoRA adapter into a checkpoint; nothing is computed before it is read.

    A model whose head is tied to its embedding is untied where the adapter changes one of
    the two: that is what was trained. Where it adds rows for tokens, the tokenizer is the
    adapter's, unless the user has named one.

    Parameters
    ----------
    source : CheckpointSource
        The base model, with or without adapters already merged.
    directory : Path
        Holds `adapter_config.json` and the weights.
    scale : float
        Multiplies the low-rank updates, beside the adapter's own alpha over rank.

    Raises
    ------
    ConversionError
        When the adapter is damaged, incomplete, or does not fit the model.
    UnsupportedModelError
        When it asks for more than low-rank updates and replaced tensors.
    """
    config = read_adapter_config(directory)
    weights = read_adapter_weights(directory, config)
    model = source.config
    base = dict(source.tensors)
    base.setdefault(HEAD, base[EMBEDDING])
    earlier = source.touched if isinstance(source, _Adapted) else frozenset()
    changed = _replaced(weights, base)
    check_whole(config, weights, scale, changed, earlier, base)
    changed |= _updated(weights, {**base, **changed}, scale)
    check_targets(config, weights, base)
    tensors = {**base, **changed}
    model = _grown(weights.path, model, tensors)
    if model.tie_word_embeddings and {EMBEDDING, HEAD} & changed.keys():
        model = _retied(model, tensors)
    compare_names(config, source)
    return _Adapted(
        config=model,
        load_tokenizer=partial(_tokenizer, source, directory),
        tensors={name: tensors[name] for name in expected_shapes(model)},
        files=(*source.files, weights.path),
        provenance=_provenance(source.provenance, config, weights, scale),
        touched=earlier | changed.keys(),
    )


def _split(
    name: str, tensor: SourceTensor, base: Mapping[str, SourceTensor]
) -> dict[str, SourceTensor]:
    """Cut a tensor of the trained model's name into the rows of each canonical one."""
    canonical = canonical_name(name) or name
    for fused, parts in FUSED.items():
        layer, found, kind = canonical.rpartition(f".{fused}.")
        names = [f"{layer}.{part}.{kind}" for part in parts]
        if found and all(n in base for n in names):
            ends = list(accumulate(base[n].shape[0] for n in names))
            if tensor.shape[0] != ends[-1]:
                raise ConversionError(
                    f"{tensor.where}: expected {ends[-1]} rows for this model, found "
                    f"{tensor.shape[0]}"
                )
            starts = [0, *ends[:-1]]
            return {
                n: RowSlice(tensor, start, stop)
                for n, start, stop in zip(names, starts, ends, strict=True)
            }
    return {canonical: tensor}


def _replaced(weights: AdapterWeights, base: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Return the tensors that the adapter has whole, by canonical name."""
    found: dict[str, SourceTensor] = {}
    for name, tensor in weights.whole.items():
        parts = _split(name, tensor, base)
        _check_known(weights.path, parts, base, found)
        found |= parts
    for name, tensor in found.items():
        expected = base[name].shape
        # A vocabulary that grew for the training: rows were added.
        grown = name in (EMBEDDING, HEAD) and tensor.shape[1:] == expected[1:]
        if tensor.shape != expected and not (grown and tensor.shape > expected):
            raise ConversionError(
                f"{tensor.where}: expected shape {expected} of the model's {name}, found "
                f"{tensor.shape}"
            )
    return found


def _updated(
    weights: AdapterWeights, tensors: Mapping[str, SourceTensor], scale: float
) -> dict[str, SourceTensor]:
    """Return the tensors with a low-rank update, by canonical name."""
    found: dict[str, SourceTensor] = {}
    for module, update in weights.updates.items():
        lefts = _split(f"{module}.weight", update.left, tensors)
        _check_known(weights.path, lefts, tensors, found)
        for name, left in lefts.items():
            tensor = tensors[name]
            shape = (left.shape[0], update.right.shape[1])
            if shape != tensor.shape:
                raise ConversionError(
                    f"{left.where}: the update has shape {shape}, the model's {name} "
                    f"{tensor.shape}; is the adapter for another model?"
                )
            found[name] = LowRankUpdate(
                tensor, left, update.right, scale * update.scale, str(weights.path)
            )
    return found


def _check_known(
    path: Path,
    names: Iterable[str],
    base: Collection[str],
    taken: Collection[str],
) -> None:
    for name in names:
        if name not in base:
            raise ConversionError(
                f"{path}: the model has no tensor {shown(name)}; is the adapter for another model?"
            )
        if name in taken:
            raise ConversionError(f"{path}: changes {name} twice, under two names")


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


def _provenance(
    base: Mapping[str, Any], config: AdapterConfig, weights: AdapterWeights, scale: float
) -> dict[str, Any]:
    adapter = {
        "name": config.path.resolve().parent.name,
        "base_model": config.base_model,
        "scale": scale,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "updated_modules": len(weights.updates),
        "replaced_tensors": len(weights.whole),
    }
    return {**base, "adapters": [*base.get("adapters", []), adapter]}
