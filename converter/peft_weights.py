"""What the weight file of a PEFT LoRA adapter holds, by the trained model's module names.

Owns the names PEFT saves tensors under: factors of low-rank updates, and whole tensors.
Everything in the file is one of these, or the file is refused. Knows nothing of the
model that the adapter is for.

Reference: `peft`'s `get_peft_model_state_dict`, and `LoraLayer` for the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.peft_config import AdapterConfig
from converter.sources.base import SourceTensor
from converter.sources.safetensors_file import safetensors_arrays
from converter.sources.torch_file import read_torch_file
from converter.sources.views import Transposed
from converter.wording import shown
from qllama.errors import ConversionError, UnsupportedModelError

__all__ = ["AdapterWeights", "LowRank", "read_adapter_weights"]

_SAFETENSORS, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight|(.+)\.lora_embedding_(A|B)")
_WHOLE = re.compile(r"(.+?)(\.base_layer)?\.(weight|bias)")
# Beside a replaced module, on request: what it was before, and the same once more.
_COPY = re.compile(r"(.+)\.(?:original_module|modules_to_save)\.(weight|bias)")
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update `scale` times `left` @ `right` of a module's weight.

    Parameters
    ----------
    left, right : SourceTensor
        (rows, r) and (r, k), whichever way round the file has them.
    scale : float
    """

    left: SourceTensor
    right: SourceTensor
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """All that an adapter changes.

    Parameters
    ----------
    path : Path
        The file.
    updates : mapping
        Module name to its update.
    whole : mapping
        Tensor name to what replaces it, before any update.
    trained : sequence of str
        Those of `whole` that training changed; others repeat the base model.
    """

    path: Path
    updates: Mapping[str, LowRank]
    whole: Mapping[str, SourceTensor]
    trained: Sequence[str]


def read_adapter_weights(directory: Path, config: AdapterConfig) -> AdapterWeights:
    """Open the weight file of an adapter and sort its tensors.

    Parameters
    ----------
    directory : Path
    config : AdapterConfig
        For ranks and scales.

    Raises
    ------
    ConversionError
        When the file is missing, damaged, empty, or lacks a factor; names the tensor.
    UnsupportedModelError
        When it holds tensors that are no part of plain LoRA.
    """
    path, arrays = _arrays(directory)
    factors: dict[str, dict[str, SourceTensor]] = {}
    whole: dict[str, SourceTensor] = {}
    trained: list[str] = []
    unknown = []
    for name, array in arrays.items():
        inner = name.removeprefix(_PREFIX)
        factor, copy = _FACTOR.fullmatch(inner), _COPY.fullmatch(inner)
        tensor = _WHOLE.fullmatch(inner)
        if name == inner:
            unknown.append(name)
        elif factor:
            module, part = (factor[1], factor[2]) if factor[1] else (factor[3], f"T{factor[4]}")
            factors.setdefault(module, {})[part] = _checked(array, 2)
        elif copy and f"{_PREFIX}{copy[1]}.{copy[2]}" in arrays:
            continue
        elif tensor and "lora_" not in inner and not copy:
            whole[f"{tensor[1]}.{tensor[3]}"] = _checked(array, 2 if tensor[3] == "weight" else 1)
            # PEFT saves a module's weight from below its update as it was, its bias as trained.
            if not tensor[2] or tensor[3] == "bias":
                trained.append(f"{tensor[1]}.{tensor[3]}")
        else:
            unknown.append(name)
    if unknown:
        raise UnsupportedModelError(_unknown(path, unknown))
    if not factors and not whole:
        raise ConversionError(
            f"{path}: holds no tensors, so training has left nothing here; save the adapter again "
            "(early training scripts saved it empty)"
        )
    updates = {module: _low_rank(path, module, found, config) for module, found in factors.items()}
    return AdapterWeights(path, updates, whole, trained)


def _arrays(directory: Path) -> tuple[Path, Mapping[str, SourceTensor]]:
    path = directory / _SAFETENSORS
    if path.exists():
        return path, safetensors_arrays(path)
    path = directory / _PICKLE
    if path.exists():
        return path, read_torch_file(path)
    raise ConversionError(
        f"{directory}: the adapter's weights are missing: expected {_SAFETENSORS} or {_PICKLE}"
    )


def _checked(array: SourceTensor, most_dimensions: int) -> SourceTensor:
    if not 1 <= len(array.shape) <= most_dimensions or 0 in array.shape:
        raise ConversionError(
            f"{array.where}: expected at most {most_dimensions} dimensions, none of them 0, found "
            f"{array.shape}; shards that were not gathered before saving look so"
        )
    if array.source_type not in _FLOATS:
        raise UnsupportedModelError(
            f"{array.where} is of type {array.source_type}, expected one of {', '.join(_FLOATS)}"
        )
    return array


def _unknown(path: Path, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    kinds = {
        "lora_magnitude_vector": "DoRA, which qllama does not merge",
        "lora_B.bias": "biases of lora_B, which qllama does not merge",
        "trainable_tokens": "single trained rows of the embedding, which qllama does not merge",
    }
    kind = next(
        (text for part, text in kinds.items() if part in names[0]),
        f"expected names that start with {_PREFIX} and end with those of lora_A, lora_B, "
        "weight or bias",
    )
    return f"{path}: tensor {shown(names[0])}{more}: {kind}"


def _low_rank(
    path: Path, module: str, factors: Mapping[str, SourceTensor], config: AdapterConfig
) -> LowRank:
    if factors.keys() == {"A", "B"}:
        left, right = factors["B"], factors["A"]
    elif factors.keys() == {"TA", "TB"}:
        left, right = Transposed(factors["TA"]), Transposed(factors["TB"])
    else:
        raise ConversionError(
            f"{path}: module {shown(module)}: expected lora_A and lora_B, found only one of them"
        )
    rank = config.rank(module)
    for factor, axis in ((left, 1), (right, 0)):
        if len(factor.shape) != 2 or factor.shape[axis] != rank:
            raise ConversionError(
                f"{factor.where}: expected the rank {rank} that {config.path.name} says, found "
                f"shape {factor.shape}"
            )
    return LowRank(left, right, config.scaling(module))
