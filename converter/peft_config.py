"""What the `adapter_config.json` of a PEFT LoRA adapter asks for.

Owns the list of its fields: each is used, known to change nothing, or refused by
name. A field that is not on the list is refused too, unless it is off. Opens no
weights.

Reference: `peft.LoraConfig`, and of `peft`: `get_pattern_key`,
`check_target_module_exists`, `LoraLayer.update_layer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from converter.fields import OFF, Fields, Refused
from converter.json_files import read_json_object
from qllama.errors import ConversionError

__all__ = ["CONFIG_NAME", "AdapterConfig", "read_adapter_config"]

CONFIG_NAME = "adapter_config.json"

_USED = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)

# How it was trained and with what, and what the tensors themselves tell (`bias`). `fan_in_fan_out`
# is for layers that store their weight transposed (GPT-2's); no model here has one, and PEFT
# itself takes it back for an `nn.Linear`.
_IGNORED = frozenset(
    {
        "auto_mapping",
        "bias",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "merge_weights",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)

_REFUSED: Refused = {
    key: (OFF, f"the adapter has {asked}; qllama does not merge that")
    for key, asked in {
        "alora_invocation_tokens": "it acts only after an invocation text, so it cannot be merged",
        "enable_lora": "the fused layers of early PEFT versions",
        "ensure_weight_tying": "tied adapters",
        "layer_replication": "repeated layers",
        "lora_bias": "biases in lora_B",
        "megatron_config": "Megatron's layers",
        "target_parameters": "low-rank updates of bare parameters",
        "trainable_token_indices": "single trained rows of the embedding",
        "use_dora": "DoRA, whose magnitudes are no low-rank update",
        "use_qalora": "QALoRA, whose inputs are pooled",
    }.items()
}
_UNKNOWN = "qllama does not know this field, and might merge wrongly"

_Number = TypeVar("_Number", int, float)

# Of these the base weights are changed before training starts.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields that merging needs; module names are the trained model's own.

    Parameters
    ----------
    path : Path
        The file, for messages.
    r, lora_alpha, use_rslora
        Rank and scale where no pattern says otherwise.
    rank_pattern, alpha_pattern : mapping
        Regular expression for the end of a module's name to its rank or alpha.
    target_modules, exclude_modules : tuple of str, str or None
        Ends of names; a str is one regular expression for whole names.
    layers_to_transform : tuple of int
        Empty for all layers.
    layers_pattern : tuple of str
        What the list of layers is called; empty for any name.
    modules_to_save : tuple of str
        Ends of the names of modules that the adapter replaces whole.
    base_model : str
        What it was trained on, empty where it does not say.
    """

    path: Path
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str | None
    exclude_modules: tuple[str, ...] | str | None
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    base_model: str

    def rank(self, module: str) -> int:
        """Rank of the update of `module`."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """Factor of lora_B @ lora_A in the update of `module`."""
        rank = self.rank(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the config says that `module` has an update."""
        if self.exclude_modules and _named(self.exclude_modules, module):
            return False
        if any(re.match(rf"(^|.*\.){m}($|\..*)", module) for m in self.modules_to_save):
            return False
        if self.target_modules is None or not _named(self.target_modules, module):
            return False
        # A name that is given whole counts whatever layer it is in.
        if isinstance(self.target_modules, str) or module in self.target_modules:
            return True
        if not self.layers_to_transform:
            return True
        for pattern in self.layers_pattern or (r"[^.]*",):
            match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
            if match:
                return int(match[1]) in self.layers_to_transform
        return False


def _named(modules: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, module) is not None
    return any(module == m or module.endswith(f".{m}") for m in modules)


def _by_pattern(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read and check the `adapter_config.json` of an adapter.

    Raises
    ------
    ConversionError
        When there is none, or a field is missing or of the wrong type.
    UnsupportedModelError
        When it asks for more than a low-rank update; names field and value.
    """
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise ConversionError(_no_adapter(directory))
    fields = Fields(path, read_json_object(path))
    _check_all_known(fields)
    targets = _names(fields, "target_modules")
    r, alpha = fields.inner("rank_pattern"), fields.inner("alpha_pattern")
    return AdapterConfig(
        path=path,
        r=_rank(fields, "r"),
        lora_alpha=fields.number("lora_alpha"),
        use_rslora=fields.flag("use_rslora", False),
        rank_pattern={_pattern(fields, "rank_pattern", k): _rank(r, k) for k in r.values},
        alpha_pattern={_pattern(fields, "alpha_pattern", k): alpha.number(k) for k in alpha.values},
        # Saved adapters list the modules; PEFT's shorthand leaves the head out.
        target_modules=r".*_proj" if targets == "all-linear" else targets,
        exclude_modules=_names(fields, "exclude_modules"),
        layers_to_transform=_integers(fields, "layers_to_transform"),
        layers_pattern=_patterns(fields, "layers_pattern"),
        modules_to_save=_patterns(fields, "modules_to_save"),
        base_model=fields.text("base_model_name_or_path", ""),
    )


def _no_adapter(directory: Path) -> str:
    if not directory.exists():
        return f"{directory}: no such adapter directory"
    if directory.is_file():
        return (
            f"{directory}: a file, expected the directory of a PEFT adapter, with its {CONFIG_NAME}"
        )
    below = sorted(p.parent.name for p in directory.glob(f"*/{CONFIG_NAME}"))
    hint = f"; there is one in {', '.join(below[:3])}" if below else ""
    return f"{directory}: not a PEFT adapter: {CONFIG_NAME} is missing{hint}"


def _check_all_known(fields: Fields) -> None:
    if fields.values.get("peft_type") != "LORA":
        fields.refuse("peft_type", "only adapters of PEFT's type 'LORA' can be merged")
    fields.check_known(_USED | _IGNORED, _REFUSED, _UNKNOWN)
    start = fields.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        fields.refuse(
            "init_lora_weights",
            "training changed the base weights too; save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion",
        )


def _rank(fields: Fields, key: str) -> int:
    rank = fields.integer(key)
    if rank < 1:
        fields.mistyped(key, "a positive integer")
    return rank


def _integers(fields: Fields, key: str) -> tuple[int, ...]:
    value = fields.values.get(key, [])
    value = value if isinstance(value, list) else [value]
    if any(type(i) is not int for i in value):
        fields.mistyped(key, "integers")
    return tuple(value)


def _names(fields: Fields, key: str) -> tuple[str, ...] | str | None:
    """Names, or one regular expression."""
    value = fields.values.get(key)
    if isinstance(value, str):
        return _pattern(fields, key, value)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        fields.mistyped(key, "names")
    return tuple(value)


def _patterns(fields: Fields, key: str) -> tuple[str, ...]:
    """Regular expressions."""
    value = _names(fields, key) or ()
    value = (value,) if isinstance(value, str) else value
    return tuple(_pattern(fields, key, pattern) for pattern in value)


def _pattern(fields: Fields, key: str, pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error:
        fields.mistyped(key, "a regular expression")
    return pattern
