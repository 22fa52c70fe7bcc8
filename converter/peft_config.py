"""What the `adapter_config.json` of a PEFT LoRA adapter asks for.

Owns the list of its fields: each is used, known to change nothing, or refused by
name. A field that is not on the list is refused too, unless it is off. Opens no
weights.

Reference: `peft.LoraConfig`, and of `peft`: `get_pattern_key`,
`check_target_module_exists`, `LoraLayer.update_layer`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from converter.wording import quoted, shown
from qllama.errors import ConversionError, UnsupportedModelError

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

# What any value but "off" asks for.
_REFUSED = {
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
}

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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConversionError(_no_adapter(directory)) from None
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e
    except ValueError as e:
        raise ConversionError(f"{path}: expected JSON: {e}") from None
    if not isinstance(values, dict):
        raise ConversionError(f"{path}: expected a JSON object, found {quoted(values)}")
    fields = _Fields(path, values)
    fields.check_all_known()
    targets = fields.names("target_modules")
    return AdapterConfig(
        path=path,
        r=fields.positive("r", values.get("r")),
        lora_alpha=fields.number("lora_alpha", values.get("lora_alpha")),
        use_rslora=bool(values.get("use_rslora")),
        rank_pattern=fields.patterns("rank_pattern", fields.positive),
        alpha_pattern=fields.patterns("alpha_pattern", fields.number),
        # Saved adapters list the modules; PEFT's shorthand leaves the head out.
        target_modules=r".*_proj" if targets == "all-linear" else targets,
        exclude_modules=fields.names("exclude_modules"),
        layers_to_transform=fields.integers("layers_to_transform"),
        layers_pattern=_listed(fields.names("layers_pattern", regular=True)),
        modules_to_save=_listed(fields.names("modules_to_save", regular=True)),
        base_model=str(values.get("base_model_name_or_path") or ""),
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


def _listed(names: tuple[str, ...] | str | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


class _Fields:
    """The fields of an `adapter_config.json`, with their types checked on the way out."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self._values = values

    def check_all_known(self) -> None:
        kind = self._values.get("peft_type")
        if kind != "LORA":
            self._refuse("peft_type", "only adapters of PEFT's type 'LORA' can be merged")
        for key, value in self._values.items():
            if key in _USED or key in _IGNORED or value in (None, False, [], {}):
                continue
            if key in _REFUSED:
                self._refuse(key, f"the adapter has {_REFUSED[key]}; qllama does not merge that")
            self._refuse(key, "qllama does not know this field, and might merge wrongly")
        start = self._values.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            self._refuse(
                "init_lora_weights",
                "training changed the base weights too; save the adapter with PEFT's "
                "path_initial_model_for_weight_conversion",
            )

    def _refuse(self, key: str, why: str) -> NoReturn:
        value = quoted(self._values.get(key))
        raise UnsupportedModelError(f"{self.path}: {shown(key)} = {value}: {why}")

    def _mistyped(self, key: str, expected: str, value: Any) -> NoReturn:
        raise ConversionError(f"{self.path}: {key}: expected {expected}, found {quoted(value)}")

    def positive(self, key: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            self._mistyped(key, "a positive integer", value)
        return value

    def number(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            self._mistyped(key, "a finite number", value)
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self._values.get(key)
        value = [] if value is None else [value] if isinstance(value, int) else value
        if not isinstance(value, list) or any(type(i) is not int for i in value):
            self._mistyped(key, "integers", value)
        return tuple(value)

    def patterns(self, key: str, check: Callable[[str, Any], _Number]) -> dict[str, _Number]:
        value = self._values.get(key) or {}
        if not isinstance(value, dict):
            self._mistyped(key, "an object", value)
        for pattern in value:
            self._compiled(key, pattern)
        return {pattern: check(f"{key}.{shown(pattern)}", v) for pattern, v in value.items()}

    def names(self, key: str, regular: bool = False) -> tuple[str, ...] | str | None:
        value = self._values.get(key)
        if value is None or isinstance(value, str):
            self._compiled(key, value or "")
            return value
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self._mistyped(key, "names", value)
        for name in value if regular else ():
            self._compiled(key, name)
        return tuple(value)

    def _compiled(self, key: str, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error:
            self._mistyped(key, "a regular expression", pattern)
