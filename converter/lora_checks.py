"""Whether a LoRA adapter is complete, and for the model that it is to change.

Owns the comparison of what an adapter's config promises with what its weights hold.
Computes nothing.

Reference: `peft`'s `check_target_module_exists`, and `ModulesToSaveWrapper`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from converter.peft_config import AdapterConfig
from converter.peft_weights import AdapterWeights
from converter.wording import listed, quoted, shown
from qllama.config import TokenizerConfig
from qllama.errors import ConversionError
from qllama.notice import notice
from qllama.tokenizer import load_tokenizer

__all__ = ["FUSED", "check_targets", "check_whole", "compare_names", "compare_tokenizers"]

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Modules that some families train in one piece: the model's own for them, from the first row."""

# What some trainers add to the name of the base model that they load quantized.
_NAME_ADDITIONS = re.compile(r"(-unsloth)?(-bnb-4bit)?(-hf)?$")


def check_whole(
    config: AdapterConfig,
    weights: AdapterWeights,
    scale: float,
    replaced: Collection[str],
    earlier: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse replaced tensors that a scale or an earlier adapter contradicts, or that lack.

    Parameters
    ----------
    config : AdapterConfig
    weights : AdapterWeights
    scale : float
        That the user gave.
    replaced, earlier : collection of str
        Canonical names of what this adapter replaces, and of what those before it changed.
    shapes : mapping
        Of the model's tensors, by canonical name.

    Raises
    ------
    ConversionError
        Names the tensor.
    """
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
        lacking = [name for name in shapes if _belongs(name, saved) and name not in replaced]
        if lacking:
            raise ConversionError(
                f"{weights.path}: lacks {lacking[0]}, although modules_to_save in "
                f"{config.path.name} has {quoted(saved)}; the adapter is incomplete"
            )


def _belongs(tensor: str, saved: str) -> bool:
    """Whether a tensor is part of a module that PEFT's `modules_to_save` means by `saved`."""
    parts = tensor.split(".")
    return any(".".join(parts[:n]).endswith(saved) for n in range(1, len(parts)))


def check_targets(
    config: AdapterConfig, weights: AdapterWeights, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the modules that have an update with those that the config says have one.

    Parameters
    ----------
    config : AdapterConfig
    weights : AdapterWeights
    shapes : mapping
        Of the model's tensors, by canonical name.

    Raises
    ------
    ConversionError
        Names the first module that has none, or has one and should not.
    """
    if config.target_modules is None:
        return
    unnamed = [module for module in weights.updates if not config.targets(module)]
    if unnamed:
        raise ConversionError(
            f"{weights.path}: has an update of {shown(unnamed[0])}, which target_modules in "
            f"{config.path.name} does not name, so PEFT would not apply it"
        )
    modules = _trained_modules(weights, shapes)
    lacking = sorted(m for m in modules if config.targets(m) and m not in weights.updates)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ConversionError(
            f"{weights.path}: lacks lora_A and lora_B of {lacking[0]}{more}, which target_modules "
            f"in {config.path.name} names; the adapter is incomplete, or for another model"
        )


def _trained_modules(weights: AdapterWeights, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Names that the trained model has for the modules of the base model."""
    ends = {module.rpartition(".")[2] for module in weights.updates}
    fused = {part: whole for whole, parts in FUSED.items() if whole in ends for part in parts}
    # The bare decoder, trained without its head, starts one level deeper.
    bare = any(module.startswith("layers.") for module in weights.updates)
    modules = set()
    for name, shape in shapes.items():
        if len(shape) == 2:
            module = name.removesuffix(".weight").removeprefix("model." if bare else "")
            parent, dot, end = module.rpartition(".")
            modules.add(f"{parent}{dot}{fused.get(end, end)}")
    return modules


def compare_names(config: AdapterConfig, model: Path, provenance: Mapping[str, Any]) -> None:
    """Say so on stderr where nothing hints that the adapter was trained on this model.

    Parameters
    ----------
    config : AdapterConfig
        Has the name of the model it was trained on.
    model : Path
        The base model's file.
    provenance : mapping
        What that says of itself.
    """
    wanted = _NAME_ADDITIONS.sub("", config.base_model.rstrip("/").rpartition("/")[2].lower())
    wanted = re.sub(r"[^a-z0-9]", "", wanted)
    known = re.sub(r"[^a-z0-9]", "", f"{model.resolve()}{provenance}".lower())
    if wanted and wanted not in known:
        notice(
            f"{config.path.parent}: trained on {quoted(config.base_model)}; nothing in the name "
            f"of {model} says that it is that model"
        )


def compare_tokenizers(
    directory: Path, own: tuple[TokenizerConfig, bytes], used: tuple[TokenizerConfig, bytes]
) -> None:
    """Say so on stderr where an adapter's tokenizer knows what the one in use does not.

    Parameters
    ----------
    directory : Path
        The adapter.
    own, used : tuple of TokenizerConfig and bytes
        Its tokenizer, and the base model's.
    """
    known = set(_tokens(used))
    lacking = [token for token in _tokens(own) if token not in known]
    found = [f"tokens of its own ({listed(lacking)})"] if lacking else []
    if own[0].chat_template not in (None, used[0].chat_template):
        found.append("another chat template")
    if found:
        notice(
            f"{directory}: its tokenizer has {' and '.join(found)}; the base model's is used, "
            f"--tokenizer {directory} takes this one"
        )


def _tokens(record: tuple[TokenizerConfig, bytes]) -> list[str]:
    """All tokens as text, alike in both kinds of tokenizers."""
    tokenizer = load_tokenizer(*record)
    return [
        tokenizer.token_text(i)
        if tokenizer.is_special(i)
        else tokenizer.token_bytes(i).decode("utf-8", "backslashreplace")
        for i in range(tokenizer.vocab_size)
    ]
