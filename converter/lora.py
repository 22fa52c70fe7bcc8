"""PEFT LoRA adapters, merged into a checkpoint while it is read.

Owns which tensors of a model an adapter changes: low-rank updates W + s B A, and
tensors that it replaces whole. Works on qllama's names and row order, so it does not
matter what format the base model comes in. Everything in the adapter is applied, or
the adapter is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from converter.hf_tensors import canonical_name, equal_values
from converter.peft_config import AdapterConfig, read_adapter_config
from converter.peft_weights import AdapterWeights, read_adapter_weights
from converter.sources.base import CheckpointSource, OpenedSource, SourceTensor
from converter.sources.views import LowRankUpdate, RowSlice
from converter.wording import quoted, shown
from qllama.config import ModelConfig
from qllama.errors import ConversionError
from qllama.notice import notice
from qllama.tensors import EMBEDDING, HEAD, expected_shapes

__all__ = ["adapter_argument", "with_adapter"]

# Modules that some families train in one piece, and the model's own for them, from the first row.
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}

# What some trainers add to the name of the base model that they load quantized.
_NAME_ADDITIONS = re.compile(r"(-unsloth)?(-bnb-4bit)?(-hf)?$")


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
    the two: that is what was trained.

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
    _check_whole(config, weights, scale, changed, earlier, base)
    changed |= _updated(weights, {**base, **changed}, scale)
    _check_targets(config, weights, base)
    if model.tie_word_embeddings and {EMBEDDING, HEAD} & changed.keys():
        model = _retied(model, {**base, **changed})
    _compare_names(config, source)
    tensors = {**base, **changed}
    return _Adapted(
        config=model,
        load_tokenizer=lambda: source.tokenizer,
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
    for fused, parts in _FUSED.items():
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
        found |= _split(name, tensor, base)
    _check_known(weights.path, found, base)
    for name, tensor in found.items():
        if tensor.shape != base[name].shape:
            grown = name in (EMBEDDING, HEAD) and tensor.shape[1:] == base[name].shape[1:]
            raise ConversionError(
                f"{tensor.where}: expected shape {base[name].shape} of the model's {name}, found "
                f"{tensor.shape}"
                + ("; the vocabulary was changed before training" if grown else "")
            )
    return found


def _updated(
    weights: AdapterWeights, tensors: Mapping[str, SourceTensor], scale: float
) -> dict[str, SourceTensor]:
    """Return the tensors with a low-rank update, by canonical name."""
    found: dict[str, SourceTensor] = {}
    for module, update in weights.updates.items():
        lefts = _split(f"{module}.weight", update.left, tensors)
        _check_known(weights.path, lefts, tensors)
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


def _check_known(path: Path, names: Iterable[str], base: Mapping[str, SourceTensor]) -> None:
    unknown = [name for name in names if name not in base]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ConversionError(
            f"{path}: the model has no tensor {shown(unknown[0])}{more}; is the adapter for "
            "another model?"
        )


def _check_whole(
    config: AdapterConfig,
    weights: AdapterWeights,
    scale: float,
    replaced: Collection[str],
    earlier: Collection[str],
    base: Mapping[str, SourceTensor],
) -> None:
    """Refuse replaced tensors that a scale or an earlier adapter contradict, or that lack."""
    if weights.trained and scale != 1.0:
        raise ConversionError(
            f"{weights.path}: replaces {shown(weights.trained[0])} whole, which the "
            f"scale {scale:g} cannot be applied to; use 1"
        )
    twice = sorted(set(replaced) & set(earlier))
    if twice:
        raise ConversionError(
            f"{weights.path}: replaces {twice[0]}, which an adapter before it has changed; only "
            "one of them can be merged"
        )
    for saved in config.modules_to_save:
        lacking = [name for name in base if _belongs(name, saved) and name not in replaced]
        if lacking:
            raise ConversionError(
                f"{weights.path}: lacks {lacking[0]}, although modules_to_save in "
                f"{config.path.name} has {quoted(saved)}; the adapter is incomplete"
            )


def _belongs(tensor: str, saved: str) -> bool:
    """Whether a tensor is part of a module that PEFT's `modules_to_save` means by `saved`."""
    parts = tensor.split(".")
    return any(".".join(parts[:n]).endswith(saved) for n in range(1, len(parts)))


def _check_targets(
    config: AdapterConfig, weights: AdapterWeights, base: Mapping[str, SourceTensor]
) -> None:
    """Compare the modules that have an update with those that the config says have one."""
    if config.target_modules is None:
        return
    unnamed = [module for module in weights.updates if not config.targets(module)]
    if unnamed:
        raise ConversionError(
            f"{weights.path}: has an update of {shown(unnamed[0])}, which target_modules in "
            f"{config.path.name} does not name, so PEFT would not apply it"
        )
    modules = _trained_modules(weights, base)
    lacking = sorted(m for m in modules if config.targets(m) and m not in weights.updates)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ConversionError(
            f"{weights.path}: lacks lora_A and lora_B of {lacking[0]}{more}, which target_modules "
            f"in {config.path.name} names; the adapter is incomplete, or for another model"
        )


def _trained_modules(weights: AdapterWeights, base: Mapping[str, SourceTensor]) -> set[str]:
    """Names that the trained model has for the modules of the base model."""
    ends = {module.rpartition(".")[2] for module in weights.updates}
    fused = {part: whole for whole, parts in _FUSED.items() if whole in ends for part in parts}
    # The bare decoder, trained without its head, starts one level deeper.
    bare = any(module.startswith("layers.") for module in weights.updates)
    modules = set()
    for name, tensor in base.items():
        if len(tensor.shape) == 2:
            module = name.removesuffix(".weight").removeprefix("model." if bare else "")
            parent, dot, end = module.rpartition(".")
            modules.add(f"{parent}{dot}{fused.get(end, end)}")
    return modules


def _retied(model: ModelConfig, tensors: Mapping[str, SourceTensor]) -> ModelConfig:
    """Untie head and embedding, unless the adapter changed both to the same."""
    same = equal_values(tensors[HEAD], tensors[EMBEDDING])
    return model if same else replace(model, tie_word_embeddings=False)


def _compare_names(config: AdapterConfig, source: CheckpointSource) -> None:
    """Say it where nothing hints that the adapter was trained on this model."""
    wanted = _NAME_ADDITIONS.sub("", config.base_model.rstrip("/").rpartition("/")[2].lower())
    wanted = re.sub(r"[^a-z0-9]", "", wanted)
    paths = [str(path.resolve()) for path in source.files[:1]]
    known = re.sub(r"[^a-z0-9]", "", "".join([*paths, str(source.provenance)]).lower())
    if wanted and wanted not in known:
        notice(
            f"{config.path.parent}: trained on {quoted(config.base_model)}; nothing in the name "
            f"of {source.files[0]} says that it is that model"
        )


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
